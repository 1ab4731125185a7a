"""The pixels of a plan: the reference's own, and how far the faster ways are from them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from PIL import ImageDraw

from lfm2_mm import Image
from lfm2_mm.errors import BadPicture
from tests.test_pictures import swapped_profile
from vision.crops import cut, normalised
from vision.rule import ImageRule
from vision.settings import rule_json
from vision.tiling import TilePlan, TokenBudget, plan_tiles

# Settings of the published generations.
RULES = {
    "LFM2-VL-450M, first snapshot": ImageRule(thumbnail=False),
    "LFM2-VL-1.6B": ImageRule(max_pixels_tolerance=1.5),
    "LFM2.5-VL": ImageRule(),
}


@cache
def picture(height: int, width: int, seed: int) -> Pil.Image:
    """Coarse colours under fine grain, so that every resize has something to change."""
    random = np.random.default_rng(seed)
    side = max(40, max(height, width) // 12)
    coarse = random.integers(0, 256, (height // side + 2, width // side + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Pil.fromarray(coarse).resize((width, height), Pil.Resampling.BICUBIC))
    grain = random.integers(-20, 20, (height, width, 1), dtype=np.int16)
    return Pil.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def jpeg(given: Pil.Image, **how: Any) -> bytes:
    out = io.BytesIO()
    given.save(out, "JPEG", quality=90, **how)
    return out.getvalue()


def sizes(count: int) -> list[tuple[int, int]]:
    """Sizes around the places where the rule changes its mind, and thin ones."""
    random = np.random.default_rng(7)
    drawn = [tuple(map(int, random.integers(20, 1000, 2))) for _ in range(count - 10)]
    return [
        *drawn,
        *[(512, 512), (1, 1), (33, 700), (724, 724), (768, 1024)],
        *[(1080, 1920), (16, 16), (48, 80), (1600, 400), (3, 900)],
    ]


@cache
def processor(name: str) -> Any:
    from transformers import Lfm2VlImageProcessorFast

    return Lfm2VlImageProcessorFast(**rule_json(RULES[name]))


def reference(pictures: Sequence[Pil.Image], name: str) -> list[torch.Tensor]:
    """transformers' pixel_values of every crop, without its padding."""
    made = processor(name)([list(pictures)], return_tensors="pt")
    counts = made["spatial_shapes"].prod(dim=1).tolist()
    return [v[:count] for v, count in zip(made["pixel_values"], counts, strict=True)]


@pytest.mark.parametrize("name", RULES)
def test_pixels_are_bit_for_bit_the_reference_s(name: str) -> None:
    rule = RULES[name]
    for seed, (height, width) in enumerate(sizes(50)):
        given = picture(height, width, seed)
        plan = plan_tiles(height, width, rule=rule)
        ours = [normalised(patches, rule) for patches in cut(Image.open(given), plan)]
        theirs = reference([given], name)
        assert [p.shape for p in ours] == [p.shape for p in theirs], (height, width)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), (height, width)


def test_several_pictures_at_once_are_each_alone() -> None:
    """The reference stacks pictures and crops of one shape; ours are cut one by one."""
    given = [picture(*size, seed) for seed, size in enumerate([(300, 400), (800, 900), (300, 400)])]
    rule, ours = ImageRule(), []
    for each in given:
        ours += cut(Image.open(each), plan_tiles(each.height, each.width))
    theirs = reference(given, "LFM2.5-VL")
    assert all(torch.equal(normalised(a, rule), b) for a, b in zip(ours, theirs, strict=True))


def test_a_file_s_pixels_are_the_reference_s(tmp_path: Any) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(picture(900, 1300, 0)))
    image = Image.open(path)
    ours = cut(image, plan_tiles(image.height, image.width))
    with Pil.open(path) as opened:
        theirs = reference([opened], "LFM2.5-VL")
    assert all(
        torch.equal(normalised(a, ImageRule()), b) for a, b in zip(ours, theirs, strict=True)
    )


def test_crops_come_in_the_plan_s_order_and_shape() -> None:
    """Each quarter of one colour: tiles row by row, then the whole; a patch is (y, x, channel)."""
    array = np.zeros((1024, 1024, 3), np.uint8)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    for number, colour in enumerate(colours):
        row, col = divmod(number, 2)
        array[row * 512 : (row + 1) * 512, col * 512 : (col + 1) * 512] = colour
    plan = plan_tiles(1024, 1024)
    patches = cut(Image.open(array), plan)
    assert [len(p) for p in patches] == [h * w // 256 for h, w in plan.crops]
    for number, colour in enumerate(colours):
        assert patches[number].view(-1, 256, 3).eq(torch.tensor(colour, dtype=torch.uint8)).all()
    grid = patches[4].view(32, 32, 16, 16, 3)
    assert [tuple(grid[r, c, 8, 8].tolist()) for r in (5, 25) for c in (5, 25)] == colours
    ramp = np.zeros((512, 512, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(512) % 256, np.arange(512)[:, None] % 256
    (only,) = cut(Image.open(ramp), plan_tiles(512, 512))
    assert only.view(32, 32, 16, 16, 3)[3, 2, 5, 7].tolist() == [2 * 16 + 7, 3 * 16 + 5, 0]


@pytest.mark.parametrize("budget", [16, 64, 256, 700, 1300, 2800])
def test_every_budget_cuts_what_its_plan_says(budget: int) -> None:
    image = Image.open(picture(1100, 1900, 3))
    plan = plan_tiles(1100, 1900, budget)
    patches = cut(image, plan)
    assert [p.shape for p in patches] == [(h * w // 256, 768) for h, w in plan.crops]
    assert all(p.dtype == torch.uint8 and p.is_contiguous() for p in patches)
    assert sum(len(p) for p in patches) == plan.tokens * 4


def page(height: int, width: int) -> Pil.Image:
    """Black text on white: where fewer pixels differ most."""
    made = Pil.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(made)
    for line, y in enumerate(range(20, height - 20, 44)):
        draw.text((20, y), f"{line:03d} the quick brown fox jumps " * 6, "black", font_size=34)
    return made


@pytest.mark.parametrize("budget", [16, 64, 128, 256, 800, 1300, 3000])
@pytest.mark.parametrize(("kind", "most"), [("photograph", 1.0), ("page", 8.0)])
def test_a_large_jpeg_decoded_smaller_stays_near(budget: int, kind: str, most: float) -> None:
    """Root mean square of the difference, in 255ths: the stated tolerance."""
    made = picture(2250, 3000, 1) if kind == "photograph" else page(2250, 3000)
    image = Image.open(jpeg(made))
    plan = plan_tiles(image.height, image.width, budget)
    fast, exact = (torch.cat(cut(image, p)).float() for p in (plan, replace(plan, exact=True)))
    assert (fast - exact).square().mean().sqrt() < most


def test_only_large_jpegs_are_decoded_smaller() -> None:
    def differs(data: bytes | Pil.Image, plan: TilePlan) -> bool:
        image = Image.open(data)
        pair = zip(cut(image, plan), cut(image, replace(plan, exact=True)), strict=True)
        return not all(torch.equal(fast, exact) for fast, exact in pair)

    large, small = picture(2000, 2600, 2), picture(800, 1000, 2)
    assert differs(jpeg(large), plan_tiles(2000, 2600, 64))
    assert not differs(large, plan_tiles(2000, 2600, 64))  # not a JPEG
    assert not differs(jpeg(large), plan_tiles(2000, 2600, TokenBudget(64, exact=True)))
    assert not differs(jpeg(large), plan_tiles(2000, 2600))
    assert not differs(jpeg(small), plan_tiles(800, 1000, 64))


def test_a_turned_jpeg_is_cut_upright() -> None:
    given = picture(3000, 2250, 4)
    exif = Pil.Exif()
    exif[0x0112] = 6
    stored = given.transpose(Pil.Transpose.ROTATE_90)
    image, straight = Image.open(jpeg(stored, exif=exif)), Image.open(jpeg(given))
    plan = plan_tiles(3000, 2250, 256)
    assert (image.height, image.width) == (3000, 2250)
    for turned, upright in zip(cut(image, plan), cut(straight, plan), strict=True):
        assert (turned.float() - upright.float()).square().mean().sqrt() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_small_turned_picture_differs_by_rounding_only(orientation: int) -> None:
    exif = Pil.Exif()
    exif[0x0112] = orientation
    image = Image.open(jpeg(picture(700, 1000, 6), exif=exif))
    for tokens in (64, 3000):
        plan = plan_tiles(image.height, image.width, tokens)
        exact = cut(image, replace(plan, exact=True))
        for quick, slow in zip(cut(image, plan), exact, strict=True):
            assert (quick.int() - slow.int()).abs().max() <= 1


def test_colours_are_brought_to_srgb_in_every_way() -> None:
    """A profile with red and green swapped: what is stored as red is seen as green."""
    red = Pil.new("RGB", (2000, 1500), (255, 0, 0))
    image = Image.open(jpeg(red, icc_profile=swapped_profile()))
    for budget in (TokenBudget(64), TokenBudget(64, exact=True), TokenBudget(), None):
        for patches in cut(image, plan_tiles(1500, 2000, budget)):
            assert (patches.view(-1, 3)[:, 1] > 200).all() and (
                patches.view(-1, 3)[:, 0] < 80
            ).all()


def test_damage_is_told_when_the_pixels_are_wanted() -> None:
    data = jpeg(picture(1000, 1000, 5))
    image = Image.open(data[: len(data) // 2])
    with pytest.raises(BadPicture, match="damaged or cut off"):
        cut(image, plan_tiles(1000, 1000, 256))
