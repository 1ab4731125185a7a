"""The turn machine: who has the floor, told as pairs of events and what they ask for."""

from __future__ import annotations

import pytest

from audio.turns import (
    Action,
    Asked,
    CancelReply,
    DiscardReply,
    Event,
    FlushPlayback,
    Generated,
    PlayedOut,
    PrepareReply,
    SpeechEnd,
    SpeechKept,
    SpeechPause,
    SpeechResume,
    SpeechStart,
    StartReply,
    Stopped,
    Turn,
    step,
)

START, END = SpeechStart(0), SpeechEnd(0)
PAUSE, RESUME, KEPT = SpeechPause(0), SpeechResume(0), SpeechKept()
PREPARED, VAIN = PrepareReply(1), DiscardReply(1)
CUT = [CancelReply(1), FlushPlayback(1)]
AGAIN = [StartReply(1), *CUT, StartReply(2)]


def after(*events: Event) -> tuple[Turn, list[Action]]:
    """The last state, and everything that was asked for."""
    turn, actions = Turn(), []
    for event in events:
        turn, more = step(turn, event)
        actions += more
    return turn, actions


@pytest.mark.parametrize(
    ("events", "state", "actions"),
    [
        ([], "idle", []),
        ([END], "idle", []),
        ([START], "hearing", []),
        ([START, START], "hearing", []),
        ([START, END], "generating", [StartReply(1)]),
        ([START, END, END], "generating", [StartReply(1)]),
        ([START, END, PlayedOut(1)], "generating", [StartReply(1)]),  # it only ran dry
        ([START, END, Generated(1)], "draining", [StartReply(1)]),
        ([START, END, Generated(1), PlayedOut(1)], "idle", [StartReply(1)]),
        ([START, END, START], "hearing", [StartReply(1), *CUT]),
        ([START, END, Generated(1), START], "hearing", [StartReply(1), *CUT]),
        ([START, END, Generated(1), PlayedOut(1), START], "hearing", [StartReply(1)]),
        ([START, END, START, END], "generating", AGAIN),
        # Late goods of an old number are void.
        ([START, END, START, Generated(1)], "hearing", [StartReply(1), *CUT]),
        ([START, END, START, END, Generated(1)], "generating", AGAIN),
        ([START, END, START, END, PlayedOut(1)], "generating", AGAIN),
        # A reply is prepared in a pause, and discarded or taken.
        ([PAUSE], "idle", []),
        ([START, PAUSE, PAUSE], "hearing", [PREPARED]),
        ([START, PAUSE, RESUME, RESUME], "hearing", [PREPARED, VAIN]),
        ([START, PAUSE, END], "generating", [PREPARED, StartReply(1)]),
        ([START, PAUSE, RESUME, PAUSE, END], "generating",
         [PREPARED, VAIN, PREPARED, StartReply(1)]),
        # What was said waits until an answer is asked for.
        ([START, KEPT], "idle", []),
        ([START, PAUSE, KEPT, Asked()], "generating", [PREPARED, VAIN, StartReply(1)]),
        ([START, Asked()], "hearing", []),
        ([Asked(), Asked()], "generating", [StartReply(1)]),
        ([Asked(), Generated(1), Asked()], "generating", [StartReply(1), StartReply(2)]),
        # A reply that was stopped may sound on, and be interrupted.
        ([Stopped()], "idle", []),
        ([Asked(), Stopped()], "draining", [StartReply(1), CancelReply(1)]),
        ([Asked(), Stopped(), PlayedOut(1)], "idle", [StartReply(1), CancelReply(1)]),
        ([Asked(), Stopped(), START], "hearing", [StartReply(1), CancelReply(1), *CUT]),
    ],
)  # fmt: skip
def test_courses(events: list[Event], state: str, actions: list[Action]) -> None:
    turn, asked = after(*events)
    assert (turn.state, asked) == (state, actions)


def test_only_a_reply_that_may_be_heard_sounds() -> None:
    states = ("idle", "hearing", "generating", "draining")
    assert [Turn(1, s).sounding for s in states] == [False, False, True, True]  # type: ignore[arg-type]
