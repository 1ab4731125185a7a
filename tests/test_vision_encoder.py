"""Pictures become rows, once: equal to transformers, counted, remembered, stopped in between."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lfm2_mm import Image
from lfm2_mm.errors import BadPicture, CheckpointDamaged
from tests import tiny_vision
from tests.conftest import SCRATCH
from tests.shapes import assert_close
from tests.tiny_vision import GENERATIONS, Generation
from vision.cache import TensorCache
from vision.encoder import VisionEncoder, batches
from vision.rule import ImageRule, Size
from vision.settings import read_rule
from vision.tiling import TilePlan, TokenBudget, plan_tiles

# Sizes (height, width) of the tiny settings: one crop of few tokens, thin ones, grown ones, tiles
# with a thumbnail in both directions.
PICTURES = [(64, 64), (64, 96), (40, 200), (9, 7), (150, 150), (100, 300), (301, 99)]
# As in test_tower.py: the same sums in another order, and other batches.
CLOSE = {"atol": 3e-5, "rtol": 1e-5}


@functools.cache
def folder(generation: Generation) -> Path:
    return tiny_vision.vl_folder(SCRATCH / f"encoder-{generation}", generation)


@functools.cache
def reference(generation: Generation) -> Any:
    from transformers import Lfm2VlForConditionalGeneration

    native = folder("lfm2" if generation == "early" else generation)
    return Lfm2VlForConditionalGeneration.from_pretrained(native, dtype=torch.float32).eval()


def encoder(generation: Generation = "lfm2", **settings: Any) -> VisionEncoder:
    return VisionEncoder.open(folder(generation), device="cpu", dtype="fp32", **settings)


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def planned(image: Image, budget: TokenBudget | None = None) -> TilePlan:
    return plan_tiles(image.height, image.width, budget, read_rule(folder("lfm2")))


def encoded_by_transformers(generation: Generation, given: list[np.ndarray]) -> Tensor:
    from PIL import Image as Pil

    processor = tiny_vision.processor(folder(generation))
    images = [Pil.fromarray(picture) for picture in given]
    inputs = processor(text=["<image>" * len(images)], images=[images], return_tensors="pt")
    keys = ("pixel_values", "spatial_shapes", "pixel_attention_mask")
    with torch.inference_mode():
        features = reference(generation).get_image_features(**{key: inputs[key] for key in keys})
    return torch.cat(list(features.pooler_output))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("size", PICTURES, ids=str)
def test_rows_equal_transformers_from_the_pixels_on(
    generation: Generation, size: tuple[int, int]
) -> None:
    image = Image.open(pixels(*size))
    rows = encoder(generation).encode(image, planned(image))
    expected = encoded_by_transformers(generation, [pixels(*size)])
    assert_close(rows, expected, **CLOSE)


def test_several_pictures_are_each_as_alone() -> None:
    given = [pixels(*size, seed=seed) for seed, size in enumerate(PICTURES)]
    expected = encoded_by_transformers("lfm2.5", given)
    ours = encoder("lfm2.5")
    images = [Image.open(picture) for picture in given]
    rows = torch.cat([ours.encode(image, planned(image)) for image in images])
    assert_close(rows, expected, **CLOSE)


class TestRemembering:
    def test_a_second_question_computes_nothing(self) -> None:
        ours, image = encoder(), Image.open(pixels(301, 99))
        plan = planned(image)
        first = ours.encode(image, plan)
        assert ours.computed == len(plan.crops) == 4
        again = list(ours.pieces(Image.open(pixels(301, 99)), plan))
        assert ours.computed == 4
        assert len(again) == 1 and torch.equal(again[0], first)

    def test_another_picture_or_plan_is_computed(self) -> None:
        ours, image = encoder(), Image.open(pixels(150, 150))
        one = ours.encode(image, planned(image))
        other = ours.encode(Image.open(pixels(150, 150, seed=1)), planned(image))
        assert one.shape == other.shape and not torch.equal(one, other)
        coarse = ours.encode(image, planned(image, TokenBudget(6)))
        assert len(coarse) <= 6 < len(one)
        assert torch.equal(ours.encode(image, planned(image)), one)

    def test_what_was_stopped_is_not_remembered(self) -> None:
        ours, image = encoder(), Image.open(pixels(100, 300))
        ours.together = 1  # a crop at a time
        plan = planned(image)
        pieces = ours.pieces(image, plan)
        next(pieces)
        pieces.close()
        assert ours.computed == 1 < len(plan.crops)
        whole = ours.encode(image, plan)
        assert ours.computed == 1 + len(plan.crops)
        assert len(whole) == plan.tokens

    def test_who_takes_the_last_piece_and_leaves_loses_nothing(self) -> None:
        ours, image = encoder(), Image.open(pixels(64, 96))
        plan = planned(image)
        pieces = ours.pieces(image, plan)
        assert len(next(pieces)) == plan.tokens
        pieces.close()
        ours.encode(image, plan)
        assert ours.computed == 1

    def test_memory_is_bounded_and_the_least_used_goes(self) -> None:
        images = [Image.open(pixels(64, 64, seed=seed)) for seed in range(3)]
        plan = planned(images[0])
        size = 4 * plan.tokens * 64
        ours = encoder(cache_bytes=2 * size)
        for image in (images[0], images[1], images[0], images[2]):
            ours.encode(image, plan)
        assert ours.computed == 3 and ours.cache.bytes == 2 * size
        ours.encode(images[0], plan)
        assert ours.computed == 3
        ours.encode(images[1], plan)
        assert ours.computed == 4

    def test_nothing_too_large_is_kept(self) -> None:
        cache = TensorCache(100)
        cache.put("small", torch.zeros(20))
        cache.put("large", torch.zeros(26))
        assert cache.get("large") is None and cache.get("small") is not None
        cache.put("small", torch.zeros(25))
        assert cache.bytes == 100 and len(cache) == 1


class TestPieces:
    def test_come_in_order_and_make_the_whole(self) -> None:
        image = Image.open(pixels(100, 300))
        plan = planned(image)
        ours = encoder()
        ours.together = 1
        pieces = list(ours.pieces(image, plan))
        assert [len(piece) for piece in pieces] == [
            size.height * size.width // 1024 for size in plan.crops
        ]
        assert_close(torch.cat(pieces), encoder().encode(image, plan), **CLOSE)

    def test_neighbours_of_one_size_go_together(self) -> None:
        square, thin = Size(64, 64), Size(32, 96)  # 16 and 12 patches
        sizes = (square, square, square, thin, square)
        told = [(part.start, part.stop, size) for part, size in batches(sizes, 32, ImageRule())]
        assert told == [(0, 2, square), (2, 3, square), (3, 4, thin), (4, 5, square)]
        assert len(list(batches(sizes, 1, ImageRule()))) == 5
        assert list(batches((), 32, ImageRule())) == []

    def test_nothing_is_decoded_before_it_is_asked_for(self) -> None:
        cut_off = jpeg(64, 64)[:700]
        image = Image.open(cut_off)
        pieces = encoder().pieces(image, planned(image))
        with pytest.raises(BadPicture):
            next(pieces)


def jpeg(height: int, width: int) -> bytes:
    import io

    from PIL import Image as Pil

    file = io.BytesIO()
    Pil.fromarray(pixels(height, width)).save(file, "JPEG")
    return file.getvalue()


def test_a_text_checkpoint_is_refused(tmp_path: Path) -> None:
    from tests import tiny

    text = tiny.lfm2_folder(tmp_path / "text")
    with pytest.raises(CheckpointDamaged, match="model_type is 'lfm2'; a vision checkpoint is"):
        VisionEncoder.open(text)


def test_settings_of_another_patch_are_refused(tmp_path: Path) -> None:
    """The tower and the processor's files must tell the same."""
    path = tiny_vision.vl_folder(tmp_path / "odd", "lfm2")
    file = path / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | {"encoder_patch_size": 8, "downsample_factor": 4}
    file.write_text(json.dumps(settings))
    image = Image.open(pixels(64, 64))
    plan = plan_tiles(64, 64, None, read_rule(path))
    with pytest.raises(CheckpointDamaged, match="patches of 8 pixels, 4 x 4 a token"):
        VisionEncoder.open(path).encode(image, plan)
