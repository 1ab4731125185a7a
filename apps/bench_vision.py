"""How fast pictures are here: one record a row, random weights of a published shape.

Knows what is measured, not how it is shown.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench import Row, median_seconds

if TYPE_CHECKING:
    from lfm2_mm.backbone import Backbone
    from vision.encoder import VisionEncoder
    from vision.tiling import TilePlan

DEFAULT = "LFM2-VL-450M"
JPEGS = ((512, 512), (768, 1024), (1080, 1920), (3072, 4096))  # height, width
BUDGETS = (64, 128, 256)
TILED = 2048  # image tokens: 6 tiles and a thumbnail of a picture of 4 to 3
QUESTION, NEXT = 32, 24  # tokens of text around a picture, and of a second question
PATCHES = {64: (16, 16), 128: (16, 32), 256: (32, 32)}  # rows and columns of a crop, by tokens


def bench_vision(
    shape: str = DEFAULT, *, device: str = "auto", dtype: str = "auto"
) -> Iterator[Row]:
    """Preparing JPEGs, the tower, the first token by budget, and a second question.

    One record a row: what, model, size (image tokens), ms, per_s (image tokens a second).
    """
    yield from _preparing()
    from lfm2_mm.device import choose
    from lfm2_mm.shapes import random_backbone
    from vision.encoder import VisionEncoder
    from vision.shapes import find_shape, random_vision

    config, choice = find_shape(shape), choose(device, dtype)
    encoder = VisionEncoder(random_vision(config, choice))
    name = f"{shape} {choice.weights}"
    yield from _tower(encoder, name)
    yield from _first_tokens(encoder, random_backbone(config.backbone, choice), name)


def _preparing() -> Iterator[Row]:
    from lfm2_mm.types import Image
    from vision.crops import cut

    for height, width in JPEGS:
        data = jpeg(height, width)
        for preset in ("reference", "quality"):
            plan = _plan(height, width, preset)
            seconds = median_seconds(partial(lambda d, p: cut(Image.open(d), p), data, plan), 5)
            yield _told(f"prepare {width} x {height}, {preset}", None, plan.tokens, seconds)


def _tower(encoder: VisionEncoder, name: str) -> Iterator[Row]:
    import torch

    for tokens, (rows, cols) in PATCHES.items():
        patches = torch.rand(1, rows * cols, encoder.model.config.tower.patch_values) * 2 - 1
        run = torch.inference_mode()(partial(encoder.model, patches, rows, cols))
        yield _told("tower", name, tokens, median_seconds(run, 3))


def _first_tokens(encoder: VisionEncoder, backbone: Backbone, name: str) -> Iterator[Row]:
    from vision.encoder import VisionEncoder
    from vision.tiling import plan_tiles

    data = jpeg(768, 1024)
    for budget in (*BUDGETS, TILED):
        plan = plan_tiles(768, 1024, budget)
        repeats = 1 if budget == TILED else 3
        forgetful = VisionEncoder(encoder.model, cache_bytes=0)
        talk = Talk(forgetful, backbone)
        seconds = median_seconds(partial(talk.ask, data, plan), repeats)
        yield _told("first token", name, plan.tokens, seconds)
        seconds = median_seconds(talk.ask_more, 3)
        yield _told("first token of a second question", name, plan.tokens, seconds)


class Talk:
    """Asks about a picture as the engine does, with random ids around it."""

    def __init__(self, encoder: VisionEncoder, backbone: Backbone) -> None:
        import torch

        self.encoder, self.backbone = encoder, backbone
        self.ids = torch.randint(0, backbone.config.vocab_size, (1, QUESTION))
        self.state = backbone.start()

    def ask(self, data: bytes, plan: TilePlan) -> Any:
        """Encode, read the picture with a question, and choose the first token."""
        import torch

        from lfm2_mm.types import Image

        rows = self.encoder.encode(Image.open(data), plan)
        text = self.backbone.embed(self.ids)
        embeds = torch.cat([text[:, :8], rows[None].to(text), text[:, 8:]], 1)
        return self._read(embeds, self.backbone.start())

    def ask_more(self) -> Any:
        """Another question after that: its tokens alone are read."""
        return self._read(self.backbone.embed(self.ids[:, :NEXT]), self.state, keep=False)

    def _read(self, embeds: Any, state: Any, keep: bool = True) -> Any:
        from lfm2_mm.engines.native import PREFILL

        for begin in range(0, embeds.shape[1], PREFILL):
            hidden, state = self.backbone.step(embeds[:, begin : begin + PREFILL], state)
        if keep:
            self.state = state
        return self.backbone.logits(hidden[:, -1]).argmax()


def jpeg(height: int, width: int, seed: int = 0) -> bytes:
    """A picture with edges, shades and grain, some 0.2 bytes a pixel as photographs have."""
    from PIL import Image as Pil

    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8)
    large = Pil.fromarray(coarse).resize((width, height), Pil.Resampling.BICUBIC)
    grain = random.normal(0, 6, (height, width, 1))
    pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Pil.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def _plan(height: int, width: int, preset: str) -> TilePlan:
    from vision.tiling import PRESETS, plan_tiles

    return plan_tiles(height, width, PRESETS[preset])


def _told(what: str, model: str | None, tokens: int, seconds: float) -> Row:
    return {"what": what, "model": model, "size": tokens, "ms": 1e3 * seconds,
            "per_s": tokens / seconds}  # fmt: skip
