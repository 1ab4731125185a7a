"""Which crops of a picture are shown, and that a token budget is a promise."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from operator import ge
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2_mm.errors import BadInput, OverBudget
from tests import tiny_vision
from vision import ladder
from vision.rule import Grid, ImageRule, Size
from vision.tiling import PRESETS, TilePlan, TokenBudget, plan_all, plan_tiles

ROOT = Path(__file__).parent.parent
# Those of the published checkpoints, then what users set: fewer tokens, no tiles, few tiles.
RULES = {
    "LFM2-VL-450M, first snapshot": ImageRule(thumbnail=False),
    "LFM2-VL-1.6B": ImageRule(max_pixels_tolerance=1.5),
    "LFM2.5-VL": ImageRule(),
    "card's balanced": ImageRule(min_image_tokens=64, max_image_tokens=128),
    "card's fast": ImageRule(min_image_tokens=32, max_image_tokens=64),
    "no splitting": ImageRule(splitting=False),
    "2 tiles": ImageRule().capped(2),
    "3 tiles": ImageRule().capped(3),
    "4 tiles": ImageRule().capped(4),
    "1 tile": ImageRule().capped(1),
    "just 3 tiles": ImageRule(min_tiles=3, max_tiles=3),
    "just 4 tiles": ImageRule(min_tiles=4, max_tiles=4),
    "no special tokens": ImageRule(special_tokens=False),
}
SIDES = st.one_of(
    st.integers(1, 6000), st.integers(1, 64), st.integers(1, 200).map(lambda n: 16 * n)
)
SIZES = st.builds(Size, SIDES, SIDES)
BUDGETS = st.one_of(st.integers(16, 3000), st.integers(16, 300))
ANY_RULE = st.sampled_from(
    [
        *RULES.values(),
        ImageRule(tile=64, min_image_tokens=2, max_image_tokens=6, max_tiles=6),
        ImageRule(max_image_tokens=1024, max_tiles=6),
    ]
)


# ---- the published rule -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "grid", "whole", "tokens"),
    [
        (256, 384, (1, 1), (384, 256), 96),
        (512, 512, (1, 1), (512, 512), 256),
        (100, 100, (1, 1), (256, 256), 64),
        (224, 224, (1, 1), (256, 256), 64),
        (680, 384, (1, 1), (384, 672), 252),
        (640, 480, (1, 1), (416, 576), 234),
        (720, 720, (1, 1), (512, 512), 256),
        (724, 724, (2, 2), (512, 512), 1280),
        (736, 736, (2, 2), (512, 512), 1280),
        (1280, 720, (1, 2), (384, 672), 764),
        (1024, 768, (2, 3), (416, 576), 1770),
        (1024, 1024, (2, 2), (512, 512), 1280),
        (1000, 3000, (3, 1), (864, 288), 1011),
        (3000, 1000, (1, 3), (288, 864), 1011),
        (1920, 1080, (2, 4), (384, 672), 2300),
        (4000, 3000, (2, 3), (416, 576), 1770),
        (64, 2000, (1, 1), (1984, 64), 124),
    ],
)
def test_token_table(
    width: int, height: int, grid: tuple[int, int], whole: tuple[int, int], tokens: int
) -> None:
    plan = plan_tiles(height=height, width=width)
    assert (plan.grid, plan.whole, plan.tokens) == (Grid(*grid), Size(*whole), tokens)
    assert plan.rows == grid[0] and plan.cols == grid[1]


def test_settings_change_the_published_plan() -> None:
    hd = (1080, 1920)
    assert plan_tiles(*hd, rule=ImageRule(splitting=False)).tokens == 252
    assert plan_tiles(*hd, rule=ImageRule().capped(4)).tokens == 764
    assert plan_tiles(*hd, rule=ImageRule(thumbnail=False)).tokens == 2048
    # The trap that a budget has to avoid: a lower setting, a dearer plan.
    assert plan_tiles(512, 512, rule=ImageRule(max_image_tokens=64)).tokens == 1088


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer, Lfm2VlImageProcessorFast, Lfm2VlProcessor

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_vision.vl_tokenizer_files(folder)
    return Lfm2VlProcessor(Lfm2VlImageProcessorFast(), AutoTokenizer.from_pretrained(folder))


def reference(processor: Any, height: int, width: int, rule: ImageRule) -> tuple[list[Any], str]:
    """Crop sizes and text of the reference's own code; its pixels are on the meta device."""
    from torchvision.transforms.v2.functional import InterpolationMode

    blank = torch.empty(1, 3, height, width, device="meta")
    images, rows, cols, sizes = processor.image_processor.resize_and_split(
        blank,
        downsample_factor=rule.downsample,
        min_tiles=rule.min_tiles if rule.splitting else 1,
        max_tiles=rule.max_tiles if rule.splitting else 1,
        use_thumbnail=rule.thumbnail,
        min_image_tokens=rule.min_image_tokens,
        max_image_tokens=rule.max_image_tokens,
        encoder_patch_size=rule.patch,
        tile_size=rule.tile,
        max_pixels_tolerance=rule.max_pixels_tolerance,
        interpolation=InterpolationMode.BILINEAR,
    )
    text = processor._build_image_tokens(
        rows[0],
        cols[0],
        *processor._get_image_num_tokens(sizes[0]),
        rule.thumbnail,
        rule.special_tokens,
    )
    return [tuple(image.shape[-2:]) for image in images[0]], text


def awkward_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """Half cells (banker's rounding), equal shapes (ties), thin strips, and any others."""
    draw = random.Random(seed)
    halves = [16 * n for n in range(1, 100)]
    ratios = [
        (5, 4),
        (4, 5),
        (5, 2),
        (5, 3),
        (7, 4),
        (1, 1),
        (9, 2),
        (3, 4),
        (8, 1),
        (10, 1),
        (1, 11),
    ]
    sizes = [(8, 20_000), (20_000, 5), (1, 1), (12, 40_000)]
    for _ in range(count // 4):
        wide, high = draw.choice(ratios)
        scale = draw.randint(60, 400)
        sizes += [
            (draw.choice(halves), draw.choice(halves)),
            (high * scale, wide * scale),
            (draw.randint(1, 40), draw.randint(1, 3000)),
            (draw.randint(1, 4000), draw.randint(1, 4000)),
        ]
    return sizes


@pytest.mark.parametrize("name", RULES)
def test_grids_crops_and_placeholders_equal_the_reference(processor: Any, name: str) -> None:
    rule = RULES[name]
    for height, width in awkward_sizes(400, seed=len(name)):
        plan = plan_tiles(height, width, rule=rule)
        crops, text = reference(processor, height, width, rule)
        assert [tuple(size) for size in plan.crops] == crops, (height, width)
        assert plan.placeholder() == text, (height, width)


def test_token_ids_equal_the_reference(processor: Any) -> None:
    """`layout` spells the ids that the tokenizer makes of the reference's text."""
    vocabulary = processor.tokenizer.get_vocab()
    for height, width in [(512, 512), (1080, 1920), (1000, 3000), (3000, 1000), (40, 41)]:
        ids: list[int] = []
        for part in plan_tiles(height, width).layout():
            ids += [vocabulary["<image>"]] * part if isinstance(part, int) else [vocabulary[part]]
        _, text = reference(processor, height, width, ImageRule())
        assert processor.tokenizer(text, add_special_tokens=False).input_ids == ids


# ---- budgets ----------------------------------------------------------------------------------


def least_budget(height: int, width: int, rule: ImageRule) -> int:
    with pytest.raises(OverBudget) as refused:
        plan_tiles(height, width, 1, rule)
    return refused.value.least


@settings(max_examples=400, deadline=None)
@given(SIZES, BUDGETS, ANY_RULE)
def test_never_more_than_asked(size: Size, budget: int, rule: ImageRule) -> None:
    plan = plan_tiles(*size, budget, rule)
    assert plan.tokens <= budget
    assert plan.tokens <= plan.worth
    assert plan.tokens == sum(h * w for h, w in plan.crops) // rule.cell**2
    assert all(side % rule.cell == 0 and side > 0 for crop in plan.crops for side in crop)
    if rule.special_tokens:
        marks = 2 + (len(plan.crops) if plan.tiled else 0)
        assert plan.structural_tokens == marks


@settings(max_examples=400, deadline=None)
@given(SIZES, BUDGETS, BUDGETS, st.one_of(st.none(), st.integers(1, 10)), ANY_RULE)
def test_a_larger_budget_is_never_worse(
    size: Size, one: int, other: int, tiles: int | None, rule: ImageRule
) -> None:
    small, large = (
        plan_tiles(*size, TokenBudget(tokens, tiles), rule) for tokens in sorted((one, other))
    )
    assert small.tokens <= large.tokens
    assert small.shown.height <= large.shown.height
    assert small.shown.width <= large.shown.width
    assert small.scale <= large.scale
    if small.tokens < large.tokens and small.crops[:-1] == large.crops[:-1]:
        assert small.whole is not None and large.whole is not None
        assert small.whole <= large.whole


@pytest.mark.parametrize("rule", [ImageRule(), ImageRule(thumbnail=False)])
@pytest.mark.parametrize(
    ("height", "width"),
    [(3000, 4000), (1080, 1920), (1500, 1500), (90, 5000), (100, 15_000), (300, 301)],
)
def test_every_single_step_of_the_dial(height: int, width: int, rule: ImageRule) -> None:
    least = least_budget(height, width, rule)
    plans = [plan_tiles(height, width, tokens, rule) for tokens in range(least, 2900)]
    assert plans[0].tokens == least
    for before, after in pairwise(plans):
        assert before.tokens <= after.tokens and before.scale <= after.scale
        assert before.shown.height <= after.shown.height
        assert before.shown.width <= after.shown.width
        if before.grid != after.grid:  # hundreds of tokens more, so something must be gained
            assert before.scale < after.scale
    for tokens, plan in enumerate(plans, start=least):
        assert plan.tokens <= tokens


@settings(max_examples=200, deadline=None)
@given(SIZES, ANY_RULE)
def test_a_budget_that_covers_the_published_plan_gives_it(size: Size, rule: ImageRule) -> None:
    """Except on strips, whose tiles show fewer pixels along one side than the lone crop does."""
    published = plan_tiles(*size, None, rule)
    plan = plan_tiles(*size, max(16, published.tokens), rule)
    lone = plan_tiles(*size, TokenBudget(tiles=1), rule)
    whole = rule.whole(*size)
    bounded = whole.height * whole.width <= rule.max_image_tokens * rule.cell**2
    finer = published.scale > lone.scale and all(map(ge, published.shown, lone.shown))
    if bounded and rule.min_tiles > 1 and (not published.tiled or finer):
        assert plan.crops == published.crops
    else:
        assert plan.tokens <= max(16, published.tokens)


@pytest.mark.parametrize("name", ["LFM2-VL-450M, first snapshot", "LFM2-VL-1.6B", "LFM2.5-VL"])
def test_no_exception_among_shapes_up_to_ten_to_one(name: str) -> None:
    draw = random.Random(3)
    for _ in range(500):
        short = draw.randint(30, 2000)
        sides = [short, round(short * draw.uniform(1, 10))]
        draw.shuffle(sides)
        published = plan_tiles(*sides, rule=RULES[name])
        assert plan_tiles(*sides, published.tokens, RULES[name]).crops == published.crops


@settings(max_examples=200, deadline=None)
@given(SIZES, ANY_RULE)
def test_sixteen_tokens_are_enough_for_any_picture(size: Size, rule: ImageRule) -> None:
    least = least_budget(*size, rule) if plan_tiles(*size, 16, rule).tokens > 1 else 1
    assert 1 <= least <= 16
    assert plan_tiles(*size, least, rule).tokens == least


def test_the_refusal_names_the_smallest_budget() -> None:
    with pytest.raises(OverBudget, match="8 image tokens .* 512 x 512 pixels; .* for it is 16"):
        plan_tiles(512, 512, 8)
    assert plan_tiles(512, 512, 16).tokens == 16


def test_capped_at_what_the_picture_is_worth() -> None:
    plan = plan_tiles(512, 512, 1_000_000)
    assert plan.tokens == plan.worth == 256
    assert plan_tiles(1080, 1920, 1_000_000).tokens == plan_tiles(1080, 1920).tokens == 2300
    assert plan_tiles(1080, 1920, 300).worth == 2300


def test_a_tile_cap_holds_beside_the_budget() -> None:
    for tiles in range(1, 11):
        plan = plan_tiles(3000, 4000, TokenBudget(tiles=tiles))
        assert plan.rows * plan.cols <= tiles
    assert not plan_tiles(3000, 4000, TokenBudget(tiles=1)).tiled
    reference = plan_tiles(1080, 1920, TokenBudget(tiles=4, exact=True))
    assert reference.crops == plan_tiles(1080, 1920, rule=ImageRule().capped(4)).crops
    assert plan_tiles(1080, 1920, TokenBudget(tiles=99, exact=True)).tokens == 2300


@settings(max_examples=300, deadline=None)
@given(SIZES, BUDGETS)
def test_a_single_crop_keeps_the_shape(size: Size, budget: int) -> None:
    """Each side is the exact one at some scale, rounded to whole cells, and at least one cell."""
    plan = plan_tiles(*size, TokenBudget(budget, tiles=1))
    rows, cols = plan.shown.height // 32, plan.shown.width // 32
    top = ImageRule().whole(*size)
    if (rows, cols) == (top.height // 32, top.width // 32):
        return  # as published
    low = max((rows - 0.5) / size.height if rows > 1 else 0, (cols - 0.5) / size.width)
    high = min((rows + 0.5) / size.height, (cols + 0.5) / size.width)
    short_of_top = rows < top.height // 32 and cols < top.width // 32
    assert not short_of_top or low <= high or 1 in (rows, cols)


def test_cheaper_grids_stretch_no_side_by_more_than_half() -> None:
    for height, width in [(3000, 4000), (1080, 1920), (2000, 2000), (4000, 900), (777, 2999)]:
        published = plan_tiles(height, width)
        for tokens in range(600, published.tokens, 37):
            plan = plan_tiles(height, width, tokens)
            if plan.tiled and plan.grid != published.grid:
                down, across = plan.shown.height / height, plan.shown.width / width
                assert max(down, across) / min(down, across) <= 1.5


# ---- a budget for all pictures of a prompt ----------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=6), st.integers(16, 6000), st.integers(0, 500))
def test_a_shared_budget_holds_and_is_monotone(sizes: list[Size], tokens: int, more: int) -> None:
    tokens = max(tokens, sum(ladder.least(*size, ImageRule()) for size in sizes))
    plans = plan_all(sizes, TokenBudget(tokens, shared=True))
    assert sum(plan.tokens for plan in plans) <= tokens
    for before, after in zip(
        plans, plan_all(sizes, TokenBudget(tokens + more, shared=True)), strict=True
    ):
        assert before.tokens <= after.tokens and before.scale <= after.scale


def test_what_a_small_picture_does_not_need_goes_to_the_others() -> None:
    icon, photo = Size(64, 64), Size(512, 512)
    plans = plan_all([icon, photo], TokenBudget(320, shared=True))
    assert [plan.tokens for plan in plans] == [64, 256]
    assert [p.tokens for p in plan_all([photo, photo], TokenBudget(320, shared=True))] == [144, 144]
    alone = plan_all([photo, photo], TokenBudget(160))
    assert [plan.tokens for plan in alone] == [144, 144]


def test_a_shared_budget_that_is_too_small_names_the_least() -> None:
    sizes = [Size(512, 512), Size(3000, 4000), Size(512, 512)]
    with pytest.raises(OverBudget, match="20 image tokens .* 3 pictures; .* for them is 44") as no:
        plan_all(sizes, TokenBudget(20, shared=True))
    plans = plan_all(sizes, TokenBudget(no.value.least, shared=True))
    assert [plan.tokens for plan in plans] == [16, 12, 16]
    assert plan_all([], TokenBudget(5, shared=True)) == []


# ---- presets, limits, lightness ---------------------------------------------------------------


def test_presets() -> None:
    hd = {name: plan_tiles(1080, 1920, budget) for name, budget in PRESETS.items()}
    assert {name: plan.tokens for name, plan in hd.items()} == {
        "reference": 2300,
        "fast": 60,
        "balanced": 252,
        "quality": 2300,
    }
    assert hd["reference"].exact and not hd["quality"].exact
    assert replace(hd["quality"], exact=True) == hd["reference"] == plan_tiles(1080, 1920)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-1, 5)])
def test_an_empty_picture_is_refused(height: int, width: int) -> None:
    with pytest.raises(BadInput, match="is empty"):
        plan_tiles(height, width, 256)


def test_pixels_are_whole_numbers_of_any_kind() -> None:
    assert plan_tiles(np.int64(300), np.int32(200), 64) == plan_tiles(300, 200, 64)
    for odd in (10.5, "10", None):
        with pytest.raises(BadInput, match="whole numbers"):
            plan_tiles(odd, 10, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "64"])
def test_a_budget_is_a_whole_number_from_1(value: Any) -> None:
    with pytest.raises(BadInput, match="whole number from 1 up"):
        TokenBudget(value)
    with pytest.raises(BadInput, match="whole number from 1 up"):
        TokenBudget(64, tiles=value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tile": 500}, "500 pixels do not divide into cells of 32"),
        ({"min_tiles": 11}, "min_tiles 11 is above max_tiles 10"),
        ({"min_image_tokens": 300}, "300 is above max_image_tokens 256"),
        ({"max_tiles": 0}, "max_tiles is 0"),
        ({"patch": 16.0}, "patch is 16.0"),
        ({"thumbnail": 1}, "true or false"),
        ({"max_pixels_tolerance": math.nan}, "a number above 0"),
        ({"std": (0.5, 0.0, 0.5)}, "three numbers"),
    ],
)
def test_settings_that_contradict_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        ImageRule(**change)


def test_where_min_tiles_is_1_a_lone_tile_costs_what_it_shows() -> None:
    """The reference writes placeholders for the untiled size there, and then fails."""
    plan = plan_tiles(1000, 1100, rule=ImageRule(min_tiles=1, max_tiles=2))
    assert (plan.grid, plan.crops, plan.tokens) == (Grid(1, 1), (Size(512, 512),), 256)


@pytest.mark.parametrize(("height", "width"), [(1, 1500), (1500, 1), (3, 20_000), (30, 20_000)])
def test_one_crop_never_exceeds_its_tokens_under_a_budget(height: int, width: int) -> None:
    """The published rule lets thin strips exceed max_image_tokens, up to 5,059 in all."""
    plan = plan_tiles(height, width, 1_000_000)
    assert plan.whole is not None
    assert plan.whole.height * plan.whole.width <= 256 * 32**2
    assert plan_tiles(height, width, TokenBudget(tiles=1)).tokens <= 256


def test_huge_and_thin_pictures_are_planned_at_once() -> None:
    for height, width in [(1, 10**8), (10**8, 1), (10**5, 10**5), (1, 1)]:
        plan: TilePlan = plan_tiles(height, width, 256)
        assert 1 <= plan.tokens <= 256


def test_planning_imports_the_standard_library_only() -> None:
    code = (
        "import sys; from vision.tiling import plan_tiles; plan_tiles(1080, 1920, 700)\n"
        "ours = {'vision', 'lfm2_mm'}\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "foreign = names - sys.stdlib_module_names - ours - {'sitecustomize', '__main__'}\n"
        "print([n for n in sorted(foreign) if not n.startswith(('_', 'tests'))])"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert child.stdout.strip() == "[]"
