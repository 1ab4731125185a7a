"""Who has the floor: what is heard and played in, what is to be done out. Pure; no sound, no clock.

Every reply has a number. What belongs to an older number is void, whenever it comes. A reply sounds
on after it was generated, so it can be interrupted until its last sample was played.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

State = Literal["idle", "hearing", "generating", "draining"]


@dataclass(frozen=True)
class SpeechStart:
    at: int  # sample of the microphone's stream where speech began


@dataclass(frozen=True)
class SpeechEnd:
    at: int


@dataclass(frozen=True)
class SpeechPause:
    """Speech may have ended at `at`; it is too early to tell."""

    at: int


@dataclass(frozen=True)
class SpeechResume:
    """It had not: speech goes on."""

    at: int


@dataclass(frozen=True)
class SpeechKept:
    """Speech ended, and waits to be answered until a reply is asked for."""


@dataclass(frozen=True)
class Asked:
    """A reply is wanted now."""


@dataclass(frozen=True)
class Stopped:
    """No more of the reply is wanted; what was sent may sound on."""


@dataclass(frozen=True)
class Generated:
    number: int  # of the reply that was made to its end


@dataclass(frozen=True)
class PlayedOut:
    number: int  # of the reply whose last sample was played


@dataclass(frozen=True)
class StartReply:
    number: int


@dataclass(frozen=True)
class PrepareReply:
    """Begin it, and let nobody know."""

    number: int


@dataclass(frozen=True)
class DiscardReply:
    """A prepared one was in vain."""

    number: int


@dataclass(frozen=True)
class CancelReply:
    number: int


@dataclass(frozen=True)
class FlushPlayback:
    number: int


Event = (
    SpeechStart
    | SpeechPause
    | SpeechResume
    | SpeechEnd
    | SpeechKept
    | Asked
    | Stopped
    | Generated
    | PlayedOut
)
Action = StartReply | PrepareReply | DiscardReply | CancelReply | FlushPlayback


@dataclass(frozen=True)
class Turn:
    number: int = 0  # of the latest reply
    state: State = "idle"
    prepared: bool = False  # whether the next reply is being made while the speaker has the floor

    @property
    def sounding(self) -> bool:
        """Whether a reply may be heard now."""
        return self.state in ("generating", "draining")


def step(turn: Turn, event: Event) -> tuple[Turn, list[Action]]:
    """The next state, and what has to be done about the event."""
    following = turn.number + 1
    match event:
        case SpeechStart() if turn.sounding:  # an interruption
            cut: list[Action] = [CancelReply(turn.number), FlushPlayback(turn.number)]
            return replace(turn, state="hearing"), cut
        case SpeechStart():
            return replace(turn, state="hearing"), []
        case SpeechPause() if turn.state == "hearing" and not turn.prepared:
            return replace(turn, prepared=True), [PrepareReply(following)]
        case SpeechResume() if turn.prepared:
            return replace(turn, prepared=False), [DiscardReply(following)]
        case SpeechEnd() if turn.state == "hearing":
            return Turn(following, "generating"), [StartReply(following)]
        case SpeechKept() if turn.state == "hearing":
            vain: list[Action] = [DiscardReply(following)] if turn.prepared else []
            return Turn(turn.number), vain
        case Asked() if turn.state in ("idle", "draining"):
            return Turn(following, "generating"), [StartReply(following)]
        case Stopped() if turn.state == "generating":
            return replace(turn, state="draining"), [CancelReply(turn.number)]
        case Generated(number) if number == turn.number and turn.state == "generating":
            return replace(turn, state="draining"), []
        case PlayedOut(number) if number == turn.number and turn.state == "draining":
            return replace(turn, state="idle"), []
    return turn, []
