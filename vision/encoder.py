"""A picture and its plan -> rows for the backbone, computed once and remembered.

Knows crops and the tower; knows no prompt and no conversation.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.types import Image
from vision.cache import TensorCache
from vision.crops import cut, normalised
from vision.loading import load_vision
from vision.rule import ImageRule, Size
from vision.tiling import TilePlan
from vision.tower import VisionModel

CACHE = 256 << 20  # bytes: at the 350M shape 65,000 tokens, some 250 crops
TOGETHER = {"cpu": 1024, "cuda": 16_384}  # patches in one run of the tower, at least one crop


class VisionEncoder:
    """Encodes pictures with one checkpoint's tower and projector. `computed` counts its crops."""

    def __init__(self, model: VisionModel, *, cache_bytes: int = CACHE) -> None:
        self.model = model
        self.computed = 0  # crops that went through the tower, since the start
        self.together = TOGETHER[model.device.type]
        self._running = threading.Lock()  # two pictures at once would only share the cores
        self.cache = TensorCache(cache_bytes)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        cache_bytes: int = CACHE,
    ) -> VisionEncoder:
        """The encoder of the checkpoint in `folder`. Raises CheckpointDamaged, BadInput."""
        from lfm2_mm.device import choose

        return cls(load_vision(Path(folder), choose(device, dtype)), cache_bytes=cache_bytes)

    @property
    def hidden_size(self) -> int:
        """Numbers of a row."""
        return self.model.config.backbone.hidden_size

    def knows(self, image: Image, plan: TilePlan) -> bool:
        """Whether the picture was encoded by this plan and is remembered."""
        return self.cache.get((image.key, plan)) is not None

    def encode(self, image: Image, plan: TilePlan) -> Tensor:
        """(plan.tokens, hidden_size) in the order of plan.crops. Raises BadPicture."""
        return torch.cat(list(self.pieces(image, plan)))

    def pieces(self, image: Image, plan: TilePlan) -> Generator[Tensor, None, None]:
        """`encode` in parts of some crops each: closing the iterator between them stops the work.

        A picture that was encoded by this plan before comes at once, in one piece.
        """
        self._check(plan.rule)
        key = (image.key, plan)
        known = self.cache.get(key)
        if known is not None:
            yield known
            return
        done = []
        crops = cut(image, plan)
        for some, size in batches(plan.crops, self.together, plan.rule):
            done.append(self._run(crops[some], size, plan.rule))
            if some.stop == len(crops):  # before the last piece: who has it may not come back
                self.cache.put(key, torch.cat(done))
            yield done[-1]

    def _check(self, rule: ImageRule) -> None:
        config = self.model.config
        if (rule.patch, rule.downsample) != (config.tower.patch, config.downsample):
            raise CheckpointDamaged(
                f"the image settings ask for patches of {rule.patch} pixels, {rule.downsample} x "
                f"{rule.downsample} a token; the tower has {config.tower.patch} and "
                f"{config.downsample} x {config.downsample}"
            )

    @torch.inference_mode()
    def _run(self, crops: Sequence[Tensor], size: Size, rule: ImageRule) -> Tensor:
        patches = normalised(torch.stack(list(crops)), rule).to(self.model.device)
        with self._running:
            rows = self.model(patches, size.height // rule.patch, size.width // rule.patch)
            self.computed += len(crops)
        return rows.flatten(0, 1)


def batches(sizes: Sequence[Size], patches: int, rule: ImageRule) -> Iterator[tuple[slice, Size]]:
    """Neighbours of one size, as many as keep within so many patches, but at least one."""
    start = 0
    while start < len(sizes):
        size = sizes[start]
        most = max(1, patches * rule.patch**2 // (size.height * size.width))
        end = start + 1
        while end < len(sizes) and end - start < most and sizes[end] == size:
            end += 1
        yield slice(start, end), size
        start = end
