"""LFM2.5's detokenizer: equal to the reference, and frame by frame equal to the whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audio.codec import open_codec
from audio.detokenizer import AT_ONCE, Detokenizer, DetokenizerConfig
from lfm2_mm.device import Choice
from lfm2_mm.errors import BadInput, CheckpointDamaged
from tests import tiny_codecs
from tests.golden.parts import DETOKENIZED, EVERY

FP32, INT8 = Choice("cpu", "fp32", 1, ""), Choice("cpu", "int8", 1, "")
# fp32 at a level of 0.3: 6e-7 was seen.
CLOSE = {"atol": 5e-6, "rtol": 1e-5}


def opened(path: Path, **settings: Any) -> Detokenizer:
    tiny_codecs.detokenizer_folder(path, **settings)
    codec = open_codec(path, FP32)
    assert isinstance(codec, Detokenizer)
    return codec


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Detokenizer:
    """The published hidden and output size, fewer and narrower layers."""
    return opened(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Detokenizer:
    return opened(tmp_path_factory.mktemp("small"), **tiny_codecs.SMALL_DETOKENIZER)


@pytest.fixture(params=["published", "small"])
def either(request: pytest.FixtureRequest) -> Detokenizer:
    return request.getfixturevalue(request.param)


def codes(codec: Detokenizer, frames: int, seed: int = 0) -> Tensor:
    given = tiny_codecs.some_codes(codec.codebooks, frames, codec.codebook_size, seed)
    return torch.from_numpy(given)


def streamed(codec: Detokenizer, given: Tensor, size: int) -> Tensor:
    state, out = codec.start(), []
    for part in given.split(size, 1):
        samples, state = codec.decode(part, state)
        out.append(samples)
    return torch.cat([*out, codec.finish(state)])


def test_sizes(published: Detokenizer, small: Detokenizer) -> None:
    assert (published.rate, published.samples_per_frame) == (24_000, 1920)
    assert (published.codebooks, published.codebook_size) == (8, 2048)
    assert (small.codebooks, small.codebook_size, small.samples_per_frame) == (3, 20, 60)


def test_the_wave_equals_the_reference(published: Detokenizer) -> None:
    expected = np.load(Path(__file__).parent / "golden/parts.npz")["detokenizer/wave"]
    wave = published.wave(codes(published, DETOKENIZED))
    assert wave.shape == (DETOKENIZED * 1920,)
    torch.testing.assert_close(wave[::EVERY], torch.from_numpy(expected), **CLOSE)


def whole_by_transformers(folder: Path, codec: Detokenizer, given: Tensor) -> Tensor:
    """The definition without any state: transformers' Lfm2Model over the clip, torch.istft's sums
    written out one by one."""
    from transformers import Lfm2Config, Lfm2Model

    raw = json.loads((folder / "config.json").read_text())
    kinds = [k.replace("sliding", "full") for k in raw["layer_types"]]
    config = Lfm2Config(**raw | {"layer_types": kinds})
    config._attn_implementation = "sdpa"
    tensors = load_file(folder / "model.safetensors")
    model = Lfm2Model(config).eval()
    model.load_state_dict({k[4:]: t for k, t in tensors.items() if k.startswith("lfm.")})
    rows = given + codec.codebook_size * torch.arange(codec.codebooks)[:, None]
    x = tensors["emb.emb.weight"][rows].mean(0).repeat_interleave(6, 0)[None]
    back = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    sees = ((back >= 0) & (back < raw["sliding_window"]))[None, None]
    with torch.inference_mode():
        hidden = model(inputs_embeds=x, attention_mask=sees, use_cache=False).last_hidden_state[0]
    log, phase = (hidden @ tensors["lin.weight"].T + tensors["lin.bias"]).chunk(2, -1)
    window, size = tensors["istft.window"], len(tensors["istft.window"])
    hop, total = size // 4, len(log) * size // 4 + size - size // 4
    wave, weight = torch.zeros(total), torch.zeros(total)
    for n, spectrum in enumerate(torch.polar(log.exp(), phase)):
        wave[n * hop : n * hop + size] += torch.fft.irfft(spectrum, size) * window
        weight[n * hop : n * hop + size] += window**2
    beside = (size - hop) // 2
    return (wave / weight)[beside : total - beside]


@pytest.mark.parametrize("frames", [1, 2, 33])
def test_the_wave_equals_its_definition(tmp_path: Path, frames: int) -> None:
    small = opened(tmp_path, **tiny_codecs.SMALL_DETOKENIZER)
    given = codes(small, frames, frames)
    expected = whole_by_transformers(tmp_path / "audio_detokenizer", small, given)
    torch.testing.assert_close(small.wave(given), expected, **CLOSE)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_streamed_is_the_whole(either: Detokenizer, size: int) -> None:
    given = codes(either, 40, 5)
    torch.testing.assert_close(streamed(either, given, size), either.wave(given), **CLOSE)


def test_only_the_last_480_samples_are_held_back(published: Detokenizer) -> None:
    first, state = published.decode(codes(published, 1), published.start())
    second, state = published.decode(codes(published, 2, 1), state)
    assert (len(first), len(second), len(published.finish(state))) == (1440, 3840, 480)


def test_long_streams_are_computed_in_pieces_of_bounded_size(small: Detokenizer) -> None:
    given = codes(small, 2 * AT_ONCE + 3, 6)
    torch.testing.assert_close(small.wave(given), streamed(small, given, 1), **CLOSE)
    _, state = small.decode(given, small.start())
    assert state.layers[1][0].shape[2] == small.config.window - 1
    assert state.layers[0][0].shape[1] == 2


def test_the_past_matters_only_inside_the_windows(published: Detokenizer) -> None:
    """Two layers of 30 steps and two convolutions here: 2 · 29 + 2 · 2 = 62 steps, 10.3 frames
    after the changed one; the published eight layers reach 16.5."""
    one, other = codes(published, 30, 1), codes(published, 30, 1)
    other[:, 2] = (other[:, 2] + 1) % 2048
    waves = [published.wave(given).view(30, -1) for given in (one, other)]
    differs = (waves[0] - waves[1]).abs().amax(1) > 1e-5
    assert not differs[0] and differs[2] and not differs[2 + 12 :].any()
    assert int(differs.nonzero().max()) > 2 + 8


def test_a_state_is_a_value(small: Detokenizer) -> None:
    _, early = small.decode(codes(small, 9), small.start())
    end = small.finish(early)
    once, later = small.decode(codes(small, 4, 1), early)
    small.decode(codes(small, 7, 2), early)
    again, _ = small.decode(codes(small, 4, 1), early)
    assert torch.equal(once, again) and later.steps == early.steps + 24
    assert torch.equal(end, small.finish(early))


def test_no_frames_are_no_sound(either: Detokenizer) -> None:
    assert either.wave(codes(either, 0)).shape == (0,)
    assert either.finish(either.start()).shape == (0,)


def test_codes_that_do_not_sound_are_refused(small: Detokenizer) -> None:
    for given in (torch.full((3, 1), 20), torch.full((3, 1), -1), torch.zeros(2, 1).long()):
        with pytest.raises(BadInput):
            small.wave(given)


def test_int8_stays_near_and_streams_as_the_whole(tmp_path: Path) -> None:
    """Rows are rounded each by itself, so cuts change nothing but rounding."""
    codec = opened(tmp_path, **tiny_codecs.SMALL_DETOKENIZER)
    quick = open_codec(tmp_path, INT8)
    assert isinstance(quick, Detokenizer)
    given = codes(codec, 20)
    exact, near = codec.wave(given), quick.wave(given)
    assert 0 < (near - exact).norm() < 0.1 * exact.norm()
    assert (streamed(quick, given, 1) - near).norm() < 0.02 * exact.norm()


def test_the_unused_words_are_not_kept(published: Detokenizer) -> None:
    assert published.backbone.embedding.shape == (1, 512)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("lin.bias", "lacks lin.bias"),
        ("lfm.layers.1.self_attn.q_proj.weight", "lack layers.1"),
        ("extra", "'extra', which"),
        ("lfm.extra", "'extra', which"),
        ("shape", "shape"),
        ("nan", "NaN"),
        ("cut", "cut off"),
        ("window", "window"),
        ("config", "lacks 'hidden_size'"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, change: str, says: str) -> None:
    folder = tiny_codecs.detokenizer_folder(tmp_path, **tiny_codecs.SMALL_DETOKENIZER)
    file, config = folder / "model.safetensors", folder / "config.json"
    tensors, raw = load_file(file), json.loads(config.read_text())
    if "extra" in change:
        tensors[change] = torch.zeros(1)
    elif change == "shape":
        tensors["emb.emb.weight"] = torch.zeros(2, 2)
    elif change == "nan":
        tensors["lin.weight"][0] = torch.nan
    elif change == "window":
        raw["sliding_window"] = 0
    elif change == "config":
        del raw["hidden_size"]
    else:
        tensors.pop(change, None)
    save_file(tensors, file)
    config.write_text(json.dumps(raw))
    if change == "cut":
        os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(CheckpointDamaged, match=says):
        open_codec(tmp_path, FP32)


def test_the_published_configuration() -> None:
    config = DetokenizerConfig.from_json(
        tiny_codecs.DETOKENIZER
        | {"block_ff_dim": 3328, "num_hidden_layers": 8, "layer_types": ["conv", "conv"] + [
            "sliding_attention", "conv"] * 3}
    )  # fmt: skip
    assert (config.backbone.feed_forward, config.backbone.head_dim) == (2304, 32)
    assert (config.size, config.hop, config.window) == (1280, 320, 30)
    assert sum(kind == "full_attention" for kind in config.backbone.layer_types) == 3
