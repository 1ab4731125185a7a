"""The table of checkpoints: what each is, where it lives, its licence. No files, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from lfm2_mm.errors import UnknownCheckpoint
from lfm2_mm.types import Sampling

Kind = Literal["chat", "vision", "speech", "colbert"]

LFM = "LFM Open License v1.0"
NANO = "CC BY-SA 4.0 (weights, as the data they learned from); Apache-2.0 (code)"
NANO_VL = "Apache-2.0"
CONTEXT = 32_768  # tokens trained and supported; config.json names 128,000 positions


@dataclass(frozen=True)
class Checkpoint:
    """One row. None stands for what its publisher has not told, never for a guess."""

    name: str
    kind: Kind | None  # None: not of this table, a foreign hub id
    parameters: int | None
    licence: str
    repo: str | None = None  # on the hub
    bundled: str | None = None  # folder in lfm2_mm/assets
    sampling: Sampling | None = None  # the card's advice
    context: int | None = None  # tokens; None: what config.json says


# The card of LFM2-VL; that of LFM2.5-VL is taken to say the same.
VISION = Sampling(temperature=0.1, min_p=0.15, repetition_penalty=1.05)
GREEDY = Sampling(temperature=0.0)  # what is read is right or wrong
# From memory of the cards (only temperature 0.3 was seen in a published file).
TEXT = Sampling(temperature=0.3, min_p=0.15, repetition_penalty=1.05)
TEXT_25 = Sampling(temperature=0.1, top_k=50, repetition_penalty=1.05)


def _hub(
    name: str,
    kind: Kind,
    parameters: int | None = None,
    sampling: Sampling | None = None,
    context: int | None = CONTEXT,
) -> Checkpoint:
    """A published checkpoint; its hub id is LiquidAI/ and its name."""
    return Checkpoint(
        name, kind, parameters, LFM, repo=f"LiquidAI/{name}", sampling=sampling, context=context
    )


# Parameters: tied weights count once. The bundled file is small enough to be counted when asked.
TABLE: tuple[Checkpoint, ...] = (
    Checkpoint("nano-colbert", "colbert", None, NANO, bundled="nano_colbert"),
    Checkpoint(
        "nano-vl", "vision", None, NANO_VL, bundled="nano_vl", sampling=GREEDY, context=4096
    ),
    Checkpoint("nano-audio", "speech", None, NANO, bundled="nano_audio", context=1024),
    _hub("LFM2-350M", "chat", 354_483_968, TEXT),
    _hub("LFM2-700M", "chat", 742_489_344, TEXT),
    _hub("LFM2-1.2B", "chat", 1_170_340_608, TEXT),
    _hub("LFM2-2.6B", "chat", 2_569_272_320, TEXT),
    _hub("LFM2-8B-A1B", "chat", 8_339_929_856, TEXT),
    _hub("LFM2-24B-A2B", "chat", None, TEXT, context=None),
    _hub("LFM2.5-230M", "chat", 229_693_184, context=None),
    _hub("LFM2.5-350M", "chat", 354_483_968, context=None),
    _hub("LFM2.5-1.2B-Base", "chat", 1_170_340_608),
    _hub("LFM2.5-1.2B-Instruct", "chat", 1_170_340_608, TEXT_25),
    _hub("LFM2.5-1.2B-Thinking", "chat", 1_170_340_608),
    _hub("LFM2.5-1.2B-JP", "chat", 1_170_340_608),
    _hub("LFM2.5-2.6B", "chat", context=None),
    _hub("LFM2.5-8B-A1B", "chat", context=None),
    _hub("LFM2.5-24B-A2B", "chat", context=None),
    _hub("LFM2-VL-450M", "vision", 450_822_656, VISION),
    _hub("LFM2-VL-1.6B", "vision", 1_584_804_000, VISION),
    _hub("LFM2-VL-3B", "vision", None, VISION),
    _hub("LFM2.5-VL-450M", "vision", None, VISION),
    _hub("LFM2.5-VL-1.6B", "vision", 1_596_625_904, VISION),
    # Speech samples text and sound apart, and each task has its own values.
    _hub("LFM2-Audio-1.5B", "speech", 1_453_523_105),
    _hub("LFM2.5-Audio-1.5B", "speech"),
    _hub("LFM2.5-Audio-1.5B-JP", "speech"),
    # The trunk, as on the card; the 1024 x 128 projection is not in the figure.
    _hub("LFM2-ColBERT-350M", "colbert", 353_322_752, context=None),
    _hub("LFM2.5-ColBERT-350M", "colbert", context=None),
)

_BY_KEY = {key.lower(): c for c in TABLE for key in (c.name, c.repo) if key}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def find(name: str) -> Checkpoint:
    """The row of our name ("LFM2-350M") or hub id ("LiquidAI/LFM2-350M"), in any case of letters.

    Raises UnknownCheckpoint, with the nearest names.
    """
    row = _BY_KEY.get(name.strip().lower())
    if row is None:
        raise UnknownCheckpoint(f"no checkpoint {shown(name)}; {suggestions(name)}")
    return row


def knows(name: str) -> bool:
    """Whether `find` would succeed."""
    return name.strip().lower() in _BY_KEY


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name and can be asked of a hub."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name


def bundled(kind: Kind) -> Checkpoint | None:
    """The checkpoint of this kind that comes with the package."""
    return next((c for c in TABLE if c.bundled and c.kind == kind), None)


def suggestions(name: str) -> str:
    """What the caller may have meant, as the end of a message."""
    tail = name.strip().lower().rsplit("/", 1)[-1]
    names = {c.name.lower(): c.name for c in TABLE}
    near = [names[n] for n in get_close_matches(tail, names, n=3, cutoff=0.5)]
    meant = f"did you mean {', '.join(near)}? " if near else ""
    return f"{meant}`lfm2-mm models` lists the names; a hub id (owner/name) or a folder will do too"


def shown(name: str) -> str:
    """A name as it may stand in a one-line message: quoted, escaped, not endless."""
    return repr(name if len(name) <= 80 else name[:77] + "...")
