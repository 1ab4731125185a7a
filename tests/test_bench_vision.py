"""The figures of `bench vision` are of what they say: every row there, sizes as planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from apps import bench_vision
from apps.cli import VISION_SHAPES
from lfm2_mm.config import BackboneConfig
from vision import shapes
from vision.config import TowerConfig, VisionConfig
from vision.tiling import plan_tiles

TINY = VisionConfig(
    TowerConfig(width=32, feed_forward=48, heads=4, layers=1),
    BackboneConfig(640, 64, ("conv", "full_attention"), 4, 2, 80, head_dim=16),
    projector_width=64,
)


def test_shapes_of_the_flag_are_those_there_are() -> None:
    assert set(VISION_SHAPES) == set(shapes.SHAPES)


@pytest.mark.parametrize("dtype", ["fp32", "auto"])
def test_every_row_is_there(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(bench_vision, "JPEGS", ((512, 512), (600, 800)))
    before = torch.get_num_threads()
    try:
        rows = list(bench_vision.bench_vision("tiny", device="cpu", dtype=dtype))
    finally:
        torch.set_num_threads(before)
    whats = [str(row["what"]) for row in rows]
    assert sum(what.startswith("prepare") for what in whats) == 4
    assert [row["size"] for row in rows if row["what"] == "tower"] == [64, 128, 256]
    firsts = [row for row in rows if row["what"] == "first token"]
    planned = [plan_tiles(768, 1024, budget).tokens for budget in (64, 128, 256, 2048)]
    assert [row["size"] for row in firsts] == planned
    assert planned[-1] == 6 * 256 + planned[2]
    assert whats.count("first token of a second question") == 4
    for row in rows:
        assert row["ms"] > 0 and row["per_s"] == pytest.approx(1e3 * row["size"] / row["ms"])


def test_a_second_question_reads_its_own_tokens_only() -> None:
    from lfm2_mm.device import Choice
    from lfm2_mm.shapes import random_backbone
    from vision.encoder import VisionEncoder

    choice = Choice("cpu", "fp32", torch.get_num_threads(), "a test")
    config = replace(TINY, downsample=2)
    encoder = VisionEncoder(shapes.random_vision(config, choice), cache_bytes=0)
    talk = bench_vision.Talk(encoder, random_backbone(config.backbone, choice))
    plan = plan_tiles(512, 512, 64)
    talk.ask(bench_vision.jpeg(512, 512), plan)
    read = plan.tokens + bench_vision.QUESTION
    assert talk.state.lengths == (read,) and encoder.computed == 1
    for _ in range(2):
        talk.ask_more()
        assert talk.state.lengths == (read,) and encoder.computed == 1
