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
class Generated:
    number: int  # of the reply that was made to its end


@dataclass(frozen=True)
class PlayedOut:
    number: int  # of the reply whose last sample was played


@dataclass(frozen=True)
class StartReply:
    number: int


@dataclass(frozen=True)
class CancelReply:
    number: int


@dataclass(frozen=True)
class FlushPlayback:
    number: int


Event = SpeechStart | SpeechEnd | Generated | PlayedOut
Action = StartReply | CancelReply | FlushPlayback


@dataclass(frozen=True)
class Turn:
    number: int = 0  # of the latest reply
    state: State = "idle"

    @property
    def sounding(self) -> bool:
        """Whether a reply may be heard now."""
        return self.state in ("generating", "draining")


def step(turn: Turn, event: Event) -> tuple[Turn, list[Action]]:
    """The next state, and what has to be done about the event."""
    match event:
        case SpeechStart() if turn.sounding:  # an interruption
            cut: list[Action] = [CancelReply(turn.number), FlushPlayback(turn.number)]
            return replace(turn, state="hearing"), cut
        case SpeechStart():
            return replace(turn, state="hearing"), []
        case SpeechEnd() if turn.state == "hearing":
            return Turn(turn.number + 1, "generating"), [StartReply(turn.number + 1)]
        case Generated(number) if number == turn.number and turn.state == "generating":
            return replace(turn, state="draining"), []
        case PlayedOut(number) if number == turn.number and turn.state == "draining":
            return replace(turn, state="idle"), []
    return turn, []
