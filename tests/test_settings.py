"""Image settings of every published form of a checkpoint folder, and of broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2_mm.errors import CheckpointDamaged
from tests import tiny_vision
from vision.rule import ImageRule
from vision.settings import read_rule, rule_json

SETTINGS = {
    **tiny_vision.SMALL,
    **tiny_vision.PUBLISHED,
    "max_pixels_tolerance": 1.5,
    "use_thumbnail": False,
}


def write(path: Path, content: Any) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("generation", tiny_vision.GENERATIONS)
def test_every_generation_is_read_as_transformers_reads_it(
    tmp_path: Path, generation: tiny_vision.Generation
) -> None:
    folder = tiny_vision.vl_folder(tmp_path / "c", generation, image=SETTINGS)
    rule = read_rule(folder)
    assert rule == ImageRule(max_pixels_tolerance=1.5, thumbnail=False)
    theirs = tiny_vision.processor(folder).image_processor
    for key, value in rule_json(rule).items():
        if key != "image_processor_type":
            found = getattr(theirs, key)
            assert (tuple(found) if isinstance(found, list) else found) == value


def test_what_is_not_said_is_as_published(tmp_path: Path) -> None:
    assert read_rule(tmp_path) == ImageRule()
    write(tmp_path / "preprocessor_config.json", {"max_tiles": 4, "tile_size": None})
    assert read_rule(tmp_path) == ImageRule(max_tiles=4)


def test_the_preprocessor_s_copy_counts_not_the_model_s(tmp_path: Path) -> None:
    """The first LFM2-VL-450M says thumbnail false in config.json."""
    write(tmp_path / "config.json", {"use_thumbnail": False, "max_tiles": 6, "model_type": "x"})
    assert read_rule(tmp_path) == ImageRule(thumbnail=False, max_tiles=6)
    write(tmp_path / "preprocessor_config.json", {"max_tiles": 8})
    assert read_rule(tmp_path) == ImageRule(max_tiles=8)
    write(tmp_path / "processor_config.json", {"use_image_special_tokens": False})
    assert read_rule(tmp_path) == ImageRule(max_tiles=8, special_tokens=False)
    nested = {"image_processor": {"max_tiles": 9, "image_processor_type": "Lfm2VlImageProcessor"}}
    write(tmp_path / "processor_config.json", nested)
    assert read_rule(tmp_path) == ImageRule(max_tiles=9)


def test_what_is_written_is_read_by_us_and_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    rule = ImageRule(min_image_tokens=16, max_tiles=4, thumbnail=False, max_pixels_tolerance=1.5)
    write(tmp_path / "preprocessor_config.json", rule_json(rule))
    assert read_rule(tmp_path) == rule
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "Lfm2VlImageProcessorFast"
    assert (theirs.min_image_tokens, theirs.max_tiles, theirs.use_thumbnail) == (16, 4, False)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "preprocessor_config.json cannot be read"),
        ("[1]", "holds no JSON object"),
        ("\ufeff" * 3, "cannot be read"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor.*no LFM2-VL"),
        ({"resample": 3}, "resample = 3; LFM2-VL is defined for 2 only"),
        ({"do_normalize": False}, "do_normalize = False"),
        ({"min_tiles": 0}, "min_tiles is 0; it must be a whole number"),
        ({"min_tiles": 12}, "min_tiles 12 is above max_tiles 10"),
        ({"tile_size": "512"}, "tile is '512'"),
        ({"tile_size": 500}, "do not divide"),
        ({"image_std": [0.5]}, "three numbers"),
        ({"image_mean": 0.5}, "three numbers"),
        ({"use_thumbnail": "yes"}, "true or false"),
    ],
)
def test_broken_settings_are_a_damaged_checkpoint(tmp_path: Path, content: Any, why: str) -> None:
    write(tmp_path / "preprocessor_config.json", content)
    with pytest.raises(CheckpointDamaged, match=why):
        read_rule(tmp_path)


def test_a_nested_processor_that_is_no_table_is_damage(tmp_path: Path) -> None:
    write(tmp_path / "processor_config.json", {"image_processor": "Lfm2VlImageProcessor"})
    with pytest.raises(CheckpointDamaged, match="no table of settings"):
        read_rule(tmp_path)
