"""A checkpoint folder's processor files -> its ImageRule, in every spelling that was published.

Standard library only, so that planning stays light. Knows file names and keys; plans nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.weights import read_json
from vision.rule import ImageRule

NESTED, FLAT, MODEL = "processor_config.json", "preprocessor_config.json", "config.json"
CLASSES = ("Lfm2VlImageProcessor", "Lfm2VlImageProcessorFast")
KEYS = {
    "encoder_patch_size": "patch",
    "downsample_factor": "downsample",
    "tile_size": "tile",
    "min_tiles": "min_tiles",
    "max_tiles": "max_tiles",
    "min_image_tokens": "min_image_tokens",
    "max_image_tokens": "max_image_tokens",
    "max_pixels_tolerance": "max_pixels_tolerance",
    "use_thumbnail": "thumbnail",
    "do_image_splitting": "splitting",
    "use_image_special_tokens": "special_tokens",
    "image_mean": "mean",
    "image_std": "std",
    "rescale_factor": "rescale",
}
ONLY = {"resample": 2, "do_rescale": True, "do_normalize": True}  # bilinear; nothing else was ever


def read_rule(folder: Path) -> ImageRule:
    """The image settings of the checkpoint in `folder`.

    From processor_config.json's "image_processor" (LFM2.5-VL), else preprocessor_config.json
    (LFM2-VL), else the copy in config.json; what none of them says has the published value. Raises
    CheckpointDamaged for a file that does not parse, another model's processor, or values that
    cannot be.
    """
    processor = _json(folder / NESTED)
    raw = processor.get("image_processor") or _json(folder / FLAT) or _json(folder / MODEL)
    if not isinstance(raw, dict):
        raise CheckpointDamaged(f"{folder / NESTED}: image_processor is no table of settings")
    raw = {key: value for key, value in raw.items() if value is not None}
    if "use_image_special_tokens" in processor:
        raw["use_image_special_tokens"] = processor["use_image_special_tokens"]
    _check(folder, raw)
    try:
        return ImageRule(**{ours: _value(raw[key]) for key, ours in KEYS.items() if key in raw})
    except (BadInput, TypeError) as error:
        raise CheckpointDamaged(f"the image settings in {folder} cannot be: {error}") from error


def rule_json(rule: ImageRule) -> dict[str, Any]:
    """The content of preprocessor_config.json for `rule`; transformers reads it as we do."""
    told = {key: getattr(rule, ours) for key, ours in KEYS.items() if ours != "special_tokens"}
    return {"image_processor_type": CLASSES[1], **told, **ONLY, "do_resize": True}


def _check(folder: Path, raw: dict[str, Any]) -> None:
    kind = raw.get("image_processor_type", CLASSES[0])
    if kind not in CLASSES:
        raise CheckpointDamaged(
            f"{folder} prepares pictures with {kind}, not with {' or '.join(CLASSES)}: "
            "this is no LFM2-VL checkpoint"
        )
    for key, needed in ONLY.items():
        if raw.get(key, needed) != needed:
            raise CheckpointDamaged(
                f"{folder} asks for {key} = {raw[key]!r}; LFM2-VL is defined for {needed!r} only"
            )


def _json(path: Path) -> dict[str, Any]:
    """The table in a JSON file; empty where there is no such file."""
    return read_json(path) if path.exists() else {}


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
