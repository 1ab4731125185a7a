"""Both published layouts load, nothing else does, and what is saved is what was loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from audio.config import AudioConfig
from audio.loading import load_speech, published_speech
from audio.model import SpeechModel
from lfm2_mm.checkpoint import write
from lfm2_mm.device import choose
from lfm2_mm.errors import CheckpointDamaged
from tests import tiny_audio

Change = Callable[[dict[str, np.ndarray]], Any]


def folder_of(path: Path, **settings: Any) -> Path:
    return tiny_audio.speech_folder(path, **{**tiny_audio.SMALL, **settings})


def loaded(folder: Path, dtype: str = "fp32") -> SpeechModel:
    return load_speech(folder, choose("cpu", dtype))


def changed(folder: Path, change: Change) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


def outputs(model: SpeechModel) -> list[torch.Tensor]:
    """Something of every part."""
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(33, 128, generator=generator)
    heard = model.ears.hear(mel)
    spoken = model.frames(torch.tensor([[1, 40, 2], [0, 0, 39]]))
    embeds = torch.cat(
        (heard.float(), spoken.float(), model.backbone.embed(torch.tensor([5])).float())
    )
    hidden = model.backbone(embeds[None].to(model.backbone.dtype))[0]
    return [
        heard,
        hidden,
        model.logits(hidden),
        model.depth(hidden[-2:], torch.tensor([[1, 2, 3]] * 2)),
    ]


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_stored_copies_and_unused_tensors_change_nothing(tmp_path: Path, tie: bool) -> None:
    depth = {**tiny_audio.SMALL["depthformer"], "tie": tie}
    lean = folder_of(tmp_path / "lean", depthformer=depth)
    full = folder_of(tmp_path / "full", depthformer=depth, stored_copies=True)
    assert len(load_file(full / "model.safetensors")) > len(load_file(lean / "model.safetensors"))
    for a, b in zip(outputs(loaded(lean)), outputs(loaded(full)), strict=True):
        assert torch.equal(a, b)


def test_what_was_loaded_is_saved_as_it_was(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    saved = published_speech(loaded(folder))
    stored = load_file(folder / "model.safetensors")
    assert saved.keys() == stored.keys()
    for key, tensor in stored.items():
        assert np.array_equal(saved[key].numpy(), tensor), key


def test_a_new_model_is_saved_and_loads(tmp_path: Path) -> None:
    """As a recipe does it, in half the bytes."""
    config = AudioConfig.from_json({**tiny_audio.CONFIG, **tiny_audio.SMALL})
    model = SpeechModel.new(config, seed=3)
    tensors = {k: t.to(torch.bfloat16) for k, t in published_speech(model).items()}
    write(tmp_path / "new", tensors, config.to_json())
    again = loaded(tmp_path / "new")
    assert again.config == config
    for ours, theirs in zip(outputs(model.eval()), outputs(again), strict=True):
        assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max() + 1e-6
    assert all(torch.isfinite(tensor).all() for tensor in outputs(again))


def test_new_models_differ_by_their_seed_alone() -> None:
    config = AudioConfig.from_json({**tiny_audio.CONFIG, **tiny_audio.SMALL})
    one, same, other = (published_speech(SpeechModel.new(config, seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.06), ("int8", 0.16)])
def test_other_dtypes_stay_near(tmp_path: Path, dtype: str, tolerance: float) -> None:
    """Through ears, backbone and mouth one after the other, all of width 64 and random: rounding
    adds up to far more than in one product of a real width."""
    folder = folder_of(tmp_path)
    for exact, near in zip(outputs(loaded(folder)), outputs(loaded(folder, dtype)), strict=True):
        difference = (exact - near.float()).square().mean().sqrt()
        assert difference < tolerance * exact.square().mean().sqrt()


LOST = [
    "lfm.layers.1.self_attn.q_proj.weight",
    "conformer.layers.0.norm_conv.bias",
    "audio_adapter.model.3.weight",
    "audio_embedding.embedding.weight",
    "depth_linear.bias",
    "depthformer.layers.1.operator.bounded_attention.k_layernorm.weight",
    "depth_embeddings.2.embedding_norm.weight",
]


@pytest.mark.parametrize("key", LOST)
def test_a_missing_tensor_is_named(tmp_path: Path, key: str) -> None:
    folder = changed(folder_of(tmp_path), lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointDamaged, match=key.rpartition(".")[0].rpartition(".")[2]):
        loaded(folder)


@pytest.mark.parametrize(
    "key",
    [
        "lfm.layers.0.extra.weight",
        "conformer.layers.0.extra.weight",
        "audio_adapter.model.4.weight",
        "audio_embedding.extra",
        "depth_embeddings.3.embedding.weight",
        "depth_embeddings.3.to_logits.weight",
        "something",
        "depth_embeddings.0.to_logits.bias",
    ],
)
def test_an_unexpected_tensor_is_named(tmp_path: Path, key: str) -> None:
    extra = np.zeros(3, np.float32)
    folder = changed(folder_of(tmp_path), lambda tensors: tensors.update({key: extra}))
    with pytest.raises(CheckpointDamaged, match="lacks"):
        loaded(folder)


@pytest.mark.parametrize("key", LOST)
def test_nan_and_wrong_shapes_are_named(tmp_path: Path, key: str) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[key].reshape(-1)[0] = np.nan

    def widen(tensors: dict[str, np.ndarray]) -> None:
        tensors[key] = np.concatenate((tensors[key], tensors[key]))

    with pytest.raises(CheckpointDamaged, match="NaN"):
        loaded(changed(folder_of(tmp_path / "nan"), spoil))
    with pytest.raises(CheckpointDamaged, match="shape"):
        loaded(changed(folder_of(tmp_path / "wide"), widen))


def test_a_copy_that_differs_is_refused(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["depth_embeddings.0.to_logits.weight"][4, 4] += 1

    with pytest.raises(CheckpointDamaged, match="should be tied"):
        loaded(changed(folder_of(tmp_path, stored_copies=True), spoil))


def test_int8_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype='fp32'"):
        published_speech(loaded(folder_of(tmp_path), "int8"))
