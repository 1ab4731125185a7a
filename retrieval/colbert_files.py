"""The files of a late-interaction checkpoint as PyLate saves it. Knows JSON; no tensors, no text.

Layout: the trunk in the folder itself, modules.json, one folder for each projection (1_Dense, ...),
config_sentence_transformers.json with the markers and lengths, sentence_bert_config.json.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.weights import read_json, read_value

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
MAX_WIDTH = 1 << 16  # of a vector; the widest of any checkpoint are a quarter of it
MAX_LENGTH = 1 << 17  # tokens; longer than any checkpoint's positions


@dataclass(frozen=True)
class Settings:
    """How texts are marked and cut. A prefix of "" stands for none; lengths are in tokens."""

    query_prefix: str = "[Q] "
    document_prefix: str = "[D] "
    query_length: int = 32
    document_length: int = 180
    do_query_expansion: bool = True
    attend_to_expansion_tokens: bool = False
    skiplist_words: tuple[str, ...] = tuple(string.punctuation)
    lower_case: bool = False


@dataclass(frozen=True)
class Projection:
    """One dense module: where its weights lie, and what its config.json says."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str  # name of a class of torch.nn, "Identity" for none
    use_residual: bool


def read_settings(folder: Path) -> Settings:
    """Markers, lengths and skip list; what a file does not say has PyLate's default.

    Raises BadInput for what we cannot honour, CheckpointDamaged for values that make no sense.
    """
    config = read_json(folder / SETTINGS)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise CheckpointDamaged(f"{folder / SETTINGS}: prompts is {prompts!r}, which is no table")
    if prompt := prompts.get(str(config.get("default_prompt_name"))):
        raise BadInput(
            f"{folder / SETTINGS} puts the prompt {prompt!r} before each text; "
            "prompts are not supported, markers (query_prefix) are"
        )
    told = {k: v for k, v in config.items() if k in _CHECKS and v is not None}
    for key, value in told.items():
        if not _CHECKS[key](value):
            raise CheckpointDamaged(
                f"{folder / SETTINGS}: {key} is {value!r}, which cannot be right"
            )
    if "skiplist_words" in told:
        told["skiplist_words"] = tuple(told["skiplist_words"])
    return Settings(**told, lower_case=_lower_case(folder))


def read_projections(folder: Path) -> list[Projection]:
    """The dense modules in their order. Raises BadInput naming what makes the folder no ColBERT."""
    projections = []
    for kind, path in _modules(folder):
        if kind == "Dense":
            projections.append(_projection(folder / path))
        elif kind == "Pooling":
            raise BadInput(
                f"{folder} gives one vector a text (its {MODULES} has a Pooling module); "
                "late interaction needs one vector a token: choose a ColBERT checkpoint"
            )
        elif kind not in ("Transformer", "Normalize"):
            raise BadInput(
                f"{folder / MODULES} names a module {kind!r}; known here: "
                "Transformer, Dense, Normalize"
            )
    if not projections:
        raise BadInput(
            f"{folder / MODULES} names no Dense module, so this is no ColBERT checkpoint"
        )
    return projections


def is_colbert(folder: Path) -> bool:
    """Whether the folder has the two files without which nothing marks it as late interaction."""
    return (folder / MODULES).is_file() and (folder / SETTINGS).is_file()


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(class name, path) of each row of modules.json."""
    rows = read_value(folder / MODULES)
    try:
        found = [(str(row["type"]).rsplit(".", 1)[-1], str(row["path"])) for row in rows]
    except (KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{folder / MODULES} cannot be read: {error!r}") from error
    for _, path in found:
        if ".." in path or set(path) & set("/\\:\0"):
            raise CheckpointDamaged(f"{folder / MODULES} names {path!r}, outside of the checkpoint")
    return found


def _projection(folder: Path) -> Projection:
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.linear.Identity"))
    package, _, name = activation.rpartition(".")
    # An import path comes from the file: only torch's own activations are looked up, never others.
    if package not in ("torch.nn.modules.linear", "torch.nn.modules.activation"):
        raise BadInput(f"{folder}: activation_function {activation!r} is not one of torch.nn's own")
    try:
        return Projection(
            folder,
            _width(config["in_features"]),
            _width(config["out_features"]),
            bool(config.get("bias", True)),
            name,
            bool(config.get("use_residual", False)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointDamaged(f"{folder / 'config.json'} does not say {error}") from error


def _width(value: Any) -> int:
    if not 1 <= int(value) <= MAX_WIDTH:
        raise ValueError(f"a width from 1 to {MAX_WIDTH:,} but {value}")
    return int(value)


def _lower_case(folder: Path) -> bool:
    path = folder / "sentence_bert_config.json"
    return path.is_file() and bool(read_json(path).get("do_lower_case", False))


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 4 <= value <= MAX_LENGTH


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


_CHECKS = {
    "query_prefix": lambda value: isinstance(value, str),
    "document_prefix": lambda value: isinstance(value, str),
    "query_length": _is_length,
    "document_length": _is_length,
    "do_query_expansion": lambda value: isinstance(value, bool),
    "attend_to_expansion_tokens": lambda value: isinstance(value, bool),
    "skiplist_words": _is_words,
}
