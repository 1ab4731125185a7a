"""How much silence ends a turn, by what was said in it: a finished sentence needs less.

Pure rules over the words that a checkpoint's own ears wrote down: English, and the orders of a
coffee counter. What the rules do not know keeps the usual silence.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Literal

import numpy as np

from lfm2_mm.types import Audio

Verdict = Literal["finished", "open", "unfinished"]
Eagerness = Literal["low", "medium", "high", "auto"]

# Seconds of silence that end a turn.
SILENCE: dict[Eagerness, dict[Verdict, float]] = {
    "low": {"finished": 0.4, "open": 0.8, "unfinished": 1.5},
    "medium": {"finished": 0.2, "open": 0.5, "unfinished": 1.0},
    "high": {"finished": 0.16, "open": 0.35, "unfinished": 0.7},
}
SILENCE["auto"] = SILENCE["medium"]

# Nobody ends a sentence with one of these.
LEADS_ON = re.compile(
    r"(?:a|an|the|my|your|his|her|our|their|this|that|these|those|and|or|but|so|because|if|when"
    r"|while|with|without|of|to|for|from|in|on|at|by|about|into|as|than|like|is|are|was|were|am"
    r"|be|been|i'd|i'll|i'm|we're|it's|can|could|would|will|shall|should|may|might|must|do|does"
    r"|did|have|has|had|get|give|make|want|um|uh|er|hmm|some|any|lots|bit|little|lot|very"
    r"|really|just|brew|single|double|triple|light|dark|medium|roast|small|large|shot|ounce|iced"
    r"|drip|house|skim|whole|soy|almond|brown)"
)
COURTESY = re.compile(r"(?:hello|hi|thanks|thank you|bye|goodbye|cheers)$")
DRINK = r"(?:coffee|latte|mocha|espresso|americano|cappuccino)"
WHITE, SWEET = r"(?:milk|cream)", r"(?:sugar|sweetener)"
ORDERED = re.compile(rf"\b{DRINK} with (?:[a-z]+ )*(?:{WHITE}|{SWEET})(?: please)?$")


def verdict(text: str) -> Verdict:
    """Whether a turn with these words so far is over."""
    said = " ".join(re.findall(r"[a-z']+", text.lower()))
    if not said or LEADS_ON.fullmatch(said.rpartition(" ")[2]):
        return "unfinished"
    if text.rstrip().endswith("?") or ORDERED.search(said) or COURTESY.search(said):
        return "finished"
    return "open"


class Endings:
    """Remembers what was written down last, so that nothing is heard twice."""

    def __init__(self, transcribe: Callable[[Audio, threading.Event], str]) -> None:
        self.transcribe = transcribe
        self._last: tuple[np.ndarray, str] = (np.zeros(0, np.float32), "")

    def text(self, said: Audio, stop: threading.Event) -> str:
        """The words; some of them, perhaps, when `stop` is set."""
        samples, text = self._last
        if len(samples) and np.array_equal(samples, said.samples):
            return text
        text = self.transcribe(said, stop)
        if not stop.is_set():
            self._last = (said.samples, text)
        return text

    def silence(self, said: Audio, eagerness: Eagerness, stop: threading.Event) -> float:
        """Seconds of silence that shall end this turn."""
        return SILENCE[eagerness][verdict(self.text(said, stop))]
