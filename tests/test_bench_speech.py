"""The figures of `bench speech` are of what they say: every row there, lengths and bytes right."""

from __future__ import annotations

import json

import pytest
import torch

from apps import bench_speech
from apps.cli import SPEECH_SHAPES, main
from audio import shapes
from audio.config import AudioConfig, DepthConfig, EncoderConfig, MelConfig
from audio.detokenizer import DetokenizerConfig
from lfm2_mm.config import BackboneConfig
from lfm2_mm.device import choose
from lfm2_mm.errors import BadInput

MIXED = ("conv", "full_attention")
TINY = AudioConfig(
    BackboneConfig(640, 64, MIXED, 4, 2, 80, head_dim=16),
    MelConfig(features=16),
    EncoderConfig(features=16, layers=1, width=32, heads=2, feed_forward=64, channels=8),
    DepthConfig(layers=1, width=32, feed_forward=48, heads=2, kv_heads=1),
    codebooks=3, codebook_size=20,
)  # fmt: skip
VOICE = DetokenizerConfig(
    BackboneConfig(1, 48, MIXED, 3, 1, 64, head_dim=16), window=9, codebooks=3, codebook_size=20,
    bins=21,
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setitem(shapes.VOICES, "tiny", "detokenizer")
    monkeypatch.setattr(shapes, "DETOKENIZER", VOICE)


def test_shapes_of_the_flag_are_those_there_are() -> None:
    assert {*SPEECH_SHAPES, "tiny"} == {*shapes.SHAPES}
    assert shapes.find_shape("lfm2-audio-1.5b")[1] == "Mimi"
    with pytest.raises(BadInput, match="LFM2.5-Audio"):
        shapes.find_shape("LFM3")


def test_the_published_shape_has_the_published_parameters() -> None:
    """spec: 1,453,523,105 with tied depth logits."""
    config = shapes.WHOLE
    with torch.device("meta"):
        from audio.model import SpeechModel

        model = SpeechModel.new(config)
    count = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for n, b in model.ears.named_buffers() if "num_batches" not in n)
    unused = 16_392 * 2048 + 2048 + 8 + 8 + 17  # stored, and used by nobody
    assert count + buffers + unused == 1_453_523_105


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_every_row_is_there(dtype: str) -> None:
    before = torch.get_num_threads()
    try:
        rows = list(bench_speech.bench_speech(
            "tiny", device="cpu", dtype=dtype, contexts=(3, 600), rounds=1
        ))  # fmt: skip
    finally:
        torch.set_num_threads(before)
    whats = [row["what"] for row in rows]
    assert whats.count("end of speech to first sample") == 1
    prompt = next(row for row in rows if row["what"] == "reading the prompt")
    assert prompt["size"] == 51 + bench_speech.AROUND  # 401 frames of mel, 8 in each position
    whole = [row for row in rows if row["what"] == "frame"]
    assert [row["size"] for row in whole] == [3, 600]
    for row in whole:
        stages = [r for r in rows if r["what"].startswith("frame: ") and r["size"] == row["size"]]
        assert len(stages) == 4
        assert row["ms"] == pytest.approx(sum(r["ms"] for r in stages))
        assert row["limit_ms"] == pytest.approx(sum(r["limit_ms"] for r in stages))
        assert row["real_time_factor"] == pytest.approx(row["ms"] / 80)
    assert all(0 < row["best_ms"] <= row["ms"] for row in rows)
    assert all(row["limit_ms"] > 0 for row in rows if not row["what"].startswith("mel"))


def test_the_verb_tells_them_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(shapes.SHAPES, bench_speech.DEFAULT, TINY)
    before = torch.get_num_threads()
    try:
        assert main(["bench", "speech", "--json", "--dtype", "int8"]) == 0
    finally:
        torch.set_num_threads(before)
    rows = json.loads(capsys.readouterr().out)
    frames = [row for row in rows if row["what"] == "frame"]
    assert [row["size"] for row in frames] == [128, 1024, 4096]
    assert {"model", "ms", "best_ms", "limit_ms", "real_time_factor"} <= frames[0].keys()


def test_bytes_are_those_of_the_matrices() -> None:
    found = {}
    for dtype in ("fp32", "bf16"):
        choice = choose("cpu", dtype)
        model = shapes.random_speech(TINY, choice)
        found[dtype] = bench_speech.limits_of(model, shapes.random_codec("detokenizer", choice))
    conv, attention = 64 * 64 * 4, 64 * (64 + 32 * 2) + 64 * 64
    feed = 3 * 64 * 80
    assert found["fp32"]["backbone"] == 4 * (conv + attention + 2 * feed)
    assert found["fp32"]["text head"] == 4 * 640 * 64
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48
    assert found["bf16"]["depth"] == 2 * (3 * layer + 3 * 21 * 32 + 64 * 96)
