"""A vision checkpoint as a source of exports: language model, tower and projector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from lfm2_mm.device import choose
from lfm2_mm.exports import source
from lfm2_mm.exports.mmproj_file import TowerSizes
from lfm2_mm.exports.sight import Sight
from lfm2_mm.exports.source import Source, float_dtype
from lfm2_mm.prompt import ChatTokenizer
from lfm2_mm.types import Image
from vision.chat import Pictures
from vision.config import VisionConfig
from vision.encoder import VisionEncoder
from vision.loading import build_vision, load_vision, part_tensors
from vision.rule import ImageRule, Size
from vision.settings import read_rule
from vision.tiling import PRESETS, plan_tiles
from vision.tower import VisionModel

# llama.cpp's own, whatever a checkpoint says (tools/mtmd: mtmd-image.h, clip.cpp).
LLAMA = ImageRule()
WORDS = 128  # positions for what stands around a picture
CUTTING = ("tile", "min_tiles", "max_tiles", "max_pixels_tolerance", "thumbnail", "splitting")


def open_source(folder: Path, name: str, dtype: str = "auto") -> Source:
    """The checkpoint in float. Raises BadInput, CheckpointDamaged."""
    text = source.open_source(folder, name, dtype)
    model, rule = load_vision(folder, choose("cpu", float_dtype(dtype))), read_rule(folder)
    shown = sizes_shown(rule, model.config)
    if against := reason_against(model.config, rule, shown):
        return replace(text, left_out=f"{text.left_out}: this checkpoint has {against}")
    tokenizer = ChatTokenizer(folder)

    def encoder_of(model: VisionModel) -> Pictures:
        return Pictures(VisionEncoder(model), tokenizer, rule, PRESETS["reference"])

    def rebuilt(weights: Iterable[tuple[str, Tensor]]) -> Pictures:
        return encoder_of(build_vision(model.config, weights, choose("cpu", "fp32")))

    sight = Sight(
        sizes_of(model.config, rule), dict(part_tensors(model)), encoder_of(model), tokenizer,
        rebuilt, tuple(drawn(size) for size in shown),
        (rule.min_image_tokens, rule.max_image_tokens), tuple(remarks(rule)),
    )  # fmt: skip
    return replace(text, sight=sight)


def reason_against(config: VisionConfig, rule: ImageRule, shown: Sequence[Size]) -> str:
    """What llama.cpp's projector for LFM2 cannot run; empty: nothing."""
    reasons = {
        "a projector without biases": not config.projector_bias,
        f"pictures of {config.tower.channels} channels": config.tower.channels != 3,
        "no special tokens around pictures": not rule.special_tokens,
        f"{config.backbone.max_positions} positions, too few for a picture": not shown,
    }
    return ", ".join(reason for reason, here in reasons.items() if here)


def sizes_of(config: VisionConfig, rule: ImageRule) -> TowerSizes:
    tower = config.tower
    scale = 1 / (255 * rule.rescale)  # llama.cpp divides pixels by 255
    return TowerSizes(
        tower.width, tower.feed_forward, tower.heads, tower.layers, tower.grid, tower.patch,
        config.downsample, tower.norm_eps,
        tuple(scale * x for x in rule.mean), tuple(scale * x for x in rule.std),
    )  # fmt: skip


def remarks(rule: ImageRule) -> Iterator[str]:
    """What to tell llama.cpp besides the files, and what it does otherwise than the checkpoint."""
    least, most = rule.min_image_tokens, rule.max_image_tokens
    flags = ["--flash-attn off"]
    if (least, most) != (LLAMA.min_image_tokens, LLAMA.max_image_tokens):
        flags.append(f"--image-min-tokens {least} --image-max-tokens {most}")
    yield f"so that pictures are seen as here, start llama.cpp with {' '.join(flags)}"
    other = [name for name in CUTTING if getattr(rule, name) != getattr(LLAMA, name)]
    if other:
        told = ", ".join(f"{name} {getattr(LLAMA, name)}" for name in other)
        yield f"llama.cpp cuts large pictures by its own rule ({told}), not by this checkpoint's"


def sizes_shown(rule: ImageRule, config: VisionConfig) -> list[Size]:
    """Pictures that are shown in one crop, unresized, and one that is cut where both cut alike."""
    cell, least, most = rule.cell, rule.min_image_tokens, rule.max_image_tokens
    low, high = math.isqrt(least - 1) + 1, math.isqrt(most)
    learned = config.tower.grid * config.tower.patch  # here positions are not resized
    cells = [(low, low), (low, min(2 * low, most // low)), (high, high)]
    sizes = [*(Size(rows * cell, cols * cell) for rows, cols in cells), Size(learned, learned)]
    shown = [size for size in sizes if not rule.splits(*size) and rule.whole(*size) == size]
    if all(getattr(rule, name) == getattr(LLAMA, name) for name in CUTTING):
        shown.append(Size(2 * rule.tile, 2 * rule.tile))
    room = config.backbone.max_positions - WORDS
    return [s for s in dict.fromkeys(shown) if plan_tiles(*s, rule=rule).tokens <= room]


def drawn(size: Size) -> Image:
    """A soft picture: waves of their own in each colour, so that no two patches are alike."""
    y, x = np.mgrid[: size.height, : size.width] / 32
    waves = [np.sin(x * a + y * b + a * b) for a, b in ((0.9, 0.4), (-0.5, 1.1), (0.3, 0.7))]
    return Image.open(np.round(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8))
