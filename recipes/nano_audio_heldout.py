"""What nano-audio is measured on, and how an answer is judged. Nothing here was trained on.

Real orders of speakers who were held out, digits of one speaker held out, voices of espeak-ng held
out, readers and noises held out, recordings of questions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nano_audio_clips import (
    RATE,
    Clip,
    Synthetic,
    barista,
    commands,
    digits,
    read,
    strange_held,
    strung,
)
from nano_audio_judge import Judge
from nano_audio_language import (
    DIGITS,
    KINDS,
    SLOTS,
    SORRY,
    TALK,
    VALUES,
    draw_reply,
    order_reply,
    words_of,
)
from nano_audio_units import PAUSES, Units


@dataclass(frozen=True)
class Share:
    """So many right of so many."""

    right: int
    count: int

    @classmethod
    def of(cls, marks: Sequence[bool]) -> Share:
        return cls(sum(marks), len(marks))

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's score interval."""
        n, p = self.count, self.right / self.count
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval()
        part = 100 * self.right / self.count
        return f"{self.right} of {self.count} | {part:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def held_sets(data: Path, run: Path | None, single: Path | None = None) -> dict[str, list[Clip]]:
    """Clips by what they show. `run` holds the synthetic ones (`spoken-held-out`), `single` is the
    folder of Speech Commands."""
    made: dict[str, list[Clip]] = {"orders": barista(data)[1]}
    alone = digits(data)[1]
    draw = random.Random(4)
    made["digits"] = draw.sample(alone, 200)
    made["digits in a row"] = [strung(alone, draw) for _ in range(100)]
    if single is not None:
        made["commands"] = draw.sample(found := commands(single)[1], len(found))
    reading, noise = strange_held(data)
    folder = data / "speech" / "fixtures"
    real = {row["file"]: row["text"] for row in json.loads((folder / "index.json").read_text())}
    own = {way for ways, _ in TALK.values() for way in ways}
    made["questions"] = [
        Clip(read(folder / name)[: 6 * RATE], None, name=text)
        for name, text in real.items()
        if text.lower().strip("?. ") not in own
    ]
    made["reading"] = reading
    made["noise"] = noise
    if run is not None:
        spoken = Synthetic(run / "spoken-held-out")
        for place, row in enumerate(spoken.rows):
            name = f"synthetic {row['intent'] if row['intent'] in KNOWN else 'talk'}"
            made.setdefault(name, []).append(spoken[place])
        made["questions"] += made.pop("synthetic other")
    return made


KNOWN = ("order", "digits", "other")


def either(values: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, values), key=len, reverse=True))


ORDER = re.compile(
    "one "
    + "".join(f"(?:(?P<{n}>{either(VALUES[n])}) )?" for n in SLOTS if n != "coffeeDrink")
    + f"(?P<coffeeDrink>{either(VALUES['coffeeDrink'])})(?: with (?P<extras>.*))?"
    + ", coming right up[.]"
)


def slots_told(reply: str) -> dict[str, str]:
    """The slots that a reply repeats; none where it is no answer to an order."""
    found = ORDER.fullmatch(reply)
    if found is None:
        return {}
    told = {k: v for k, v in found.groupdict().items() if v and k != "extras"}
    for extra in (found["extras"] or "").split(" and "):
        told |= {kind: extra for kind in KINDS if extra in VALUES[kind]}
    return told


def slots_right(reply: str, slots: Mapping[str, str]) -> list[bool]:
    told = slots_told(reply)
    return [told.get(name) == value for name, value in slots.items()]


def most_frequent(clips: Sequence[Clip]) -> dict[str, str]:
    """What one who hears nothing would answer: each slot's most frequent value, where most orders
    have that slot."""
    told: dict[str, list[str | None]] = {
        name: [(c.slots or {}).get(name) for c in clips] for name in VALUES
    }
    best = {name: max(set(v), key=lambda x: (v.count(x), str(x))) for name, v in told.items()}
    return {name: value for name, value in best.items() if value is not None}


# ---- its own speech ------------------------------------------------------------------------


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(f"sentences {seed}")
    return [draw_reply(draw) for _ in range(count)]


def plain(text: str) -> list[str]:
    """The words alone, in the recogniser's letters."""
    return [w.lower() for w in words_of(text) if w not in PAUSES]


def listener() -> Judge:
    """pocketsphinx with a grammar of the replies."""
    rules = [f"<{n}> = {' | '.join(v)};" for n, v in VALUES.items()]
    optional = " ".join(f"[<{n}>]" for n in SLOTS if n != "coffeeDrink")
    fixed = [SORRY, *(reply for _, reply in TALK.values())]
    extras = "[with (<milkAmount> [and <sugarAmount>] | <sugarAmount>)]"
    rules += [
        f"<digit> = {' | '.join(DIGITS)};",
        f"<order> = one {optional} <coffeeDrink> {extras} coming right up;",
        "<digits> = number <digit>+ thank you;",
        f"<talk> = {' | '.join(' '.join(plain(t)) for t in fixed)};",
        "public <reply> = <order> | <digits> | <talk>;",
    ]
    words = {w for text in (*fixed, "one with and coming right up number thank you", *DIGITS)
             for w in plain(text)}  # fmt: skip
    words |= {w for values in VALUES.values() for v in values for w in v.split()}
    return Judge(sorted(words), grammar="#JSGF V1.0;\ngrammar replies;\n" + "\n".join(rules))


def read_codes(units: Units, codes: np.ndarray) -> list[str]:
    """Codes (n, 4) -> the words whose units side by side are nearest to them."""
    names = list(units.codes)
    best = np.full(len(codes) + 1, np.inf)
    best[0], back = 0.0, [("", 0)] * (len(codes) + 1)
    for start in range(len(codes)):
        if not np.isfinite(best[start]):
            continue
        for name in names:
            unit = units.codes[name]
            end = start + len(unit)
            if end > len(codes):
                continue
            cost = best[start] + (unit != codes[start:end]).sum() + 0.01
            if cost < best[end]:
                best[end], back[end] = cost, (name, start)
    words, place = [], len(codes)
    while place and back[place][0]:
        word, place = back[place]
        words.append(word)
    return [w for w in reversed(words) if w not in PAUSES]


def whole_order(reply: str, slots: Mapping[str, str]) -> bool:
    return reply == order_reply(slots)
