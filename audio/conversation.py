"""Turns of one conversation over one memory. Knows the model and the words around a turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from audio.generation import Made, Spoken
from audio.history import History
from audio.memory import Memory
from audio.modes import Interleaved
from audio.reply import Reply
from lfm2_mm.types import Audio, Sampling, Usage

if TYPE_CHECKING:
    from audio.speech import Speech


@dataclass(frozen=True)
class Manner:
    """How to answer; text and sound are sampled apart. The defaults are those of conversing."""

    text: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    sound: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, top_k=4))
    steps: int = 1024  # tokens and frames, at most
    seed: int | None = None


# The published settings of each task.
TRANSCRIBING = Manner(steps=512)
SPEAKING = Manner(sound=Sampling(temperature=0.8, top_k=64))
CONVERSING = Manner()


@dataclass(frozen=True)
class Turns:
    """Where what begins in a history. `answer` is None where no turn of the assistant is open."""

    opening: int  # positions before the first turn of the user
    starts: tuple[int, ...] = ()  # of the turns of the user
    answer: int | None = None  # where the open turn of the assistant begins


@dataclass(frozen=True)
class _Before:
    """A conversation before its latest turn."""

    length: int  # of the history
    turns: Turns
    number: int
    ends: list[int]
    reply: Reply | None


class Conversation:
    """Every reply goes on from the state of the last; `played` cuts back what was not heard."""

    def __init__(
        self, speech: Speech, history: History, manner: Manner, turns: Turns | None = None
    ) -> None:
        """`history` holds what goes before the first turn of the user, or all that `turns` say."""
        self.speech, self.manner = speech, manner
        self.memory = Memory(speech.model, history)
        self.turns = turns or Turns(len(history))
        self.number = len(self.turns.starts)  # of the latest reply
        self.forgotten = 0  # turns that were dropped to make room
        self._ends: list[int] = []  # position after each audible frame of the latest reply
        self._reply: Reply | None = None
        self._before: _Before | None = None  # the latest reply, while it can be withdrawn

    @property
    def history(self) -> History:
        return self.memory.history

    def reply(self, *parts: str | Audio | Tensor, manner: Manner | None = None) -> Reply:
        """Answer a turn of texts and recordings (or their mel), in text and sound.

        Nothing is computed before the first event is asked for. A reply that still runs is
        stopped. Raises ContextExceeded and BadInput, with the conversation unchanged.
        """
        self.stop()
        self._before = None
        speech, manner = self.speech, manner or self.manner
        turn = [speech.hear(part) if isinstance(part, Audio) else part for part in parts]
        history = self.history.copy()
        if self.turns.answer is not None:
            speech.script.close_turn(history)
        start = len(history)
        speech.script.turn(history, "user", *turn)
        answer = len(history)
        speech.script.open_turn(history, "assistant")
        speech.check_room(len(history))
        prompt = Usage(len(history), 0, self.memory.fed)
        self._before = _Before(len(self.history), self.turns, self.number, self._ends, self._reply)
        self.memory.history = history
        self.turns = replace(self.turns, starts=(*self.turns.starts, start), answer=answer)
        self.number += 1
        self._ends = []
        config = speech.model.config
        mode = Interleaved(config.n_text, config.n_audio, speech.script.marks.text_end)
        made = self._noted(speech.generate(self.memory, mode, manner))
        self._reply = Reply(speech.voice.events(made, prompt, self.number), speech.rate)
        return self._reply

    def stop(self) -> None:
        """Stop the reply that runs, if one does; what it has made so far stays said."""
        if self._reply is not None:
            self._reply.close()

    def withdraw(self) -> None:
        """Stop the latest reply and forget it with the turn it answers, as if never asked."""
        self.stop()
        if self._before is None:
            return
        self.memory.cut(self._before.length)
        self.turns, self.number = self._before.turns, self._before.number
        self._ends, self._reply = self._before.ends, self._before.reply
        self._before = None

    def played(self, samples: int) -> None:
        """Of the latest reply the listener heard so many samples: stop it, forget the rest.

        Text goes with the frames it stands before. Where nothing was heard the whole answer goes,
        where a reply that ended was heard to its end, nothing.
        """
        self.stop()
        self._before = None
        ended = self._reply is not None and self._reply.done is not None
        heard = min(-(-samples // self.speech.codec.samples_per_frame), len(self._ends))
        if self.turns.answer is None or (ended and heard == len(self._ends)):
            return
        self.memory.cut(self._ends[heard - 1] if heard else self.turns.answer)
        self._ends = self._ends[:heard]
        if not heard:
            self.turns = replace(self.turns, answer=None)

    def forget(self, count: int = 1) -> None:
        """Drop the oldest `count` turns of the user, and what was answered.

        The state cannot lose its beginning, so the rest is computed again with the next reply.
        """
        self.stop()
        self._before = None
        opening, starts = self.turns.opening, self.turns.starts
        count = min(count, len(starts))
        end = len(self.history) if count == len(starts) else starts[count]
        items = self.history.items
        shift = end - opening
        self.memory.drop(History(self.history.factor, items[:opening] + items[end:]))
        answer = self.turns.answer
        kept = answer is not None and answer >= end
        self.turns = Turns(
            opening,
            tuple(s - shift for s in starts[count:]),
            answer - shift if kept and answer is not None else None,
        )
        self._ends = [e - shift for e in self._ends] if kept else []
        self.forgotten += count

    def make_room(self, *parts: str | Tensor, reserve: int = 256) -> None:
        """Forget oldest turns until a turn of these parts and `reserve` positions of reply fit."""
        trial = History(self.history.factor)
        self.speech.script.turn(trial, "user", *parts)
        needed = len(trial) + reserve
        while self.turns.starts and len(self.history) + needed >= self.speech.context:
            self.forget()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all that was said and heard, for `Speech.resume`."""
        from audio.records import save_conversation

        return save_conversation(self, path)

    def _noted(self, made: Iterator[Made]) -> Iterator[Made]:
        """Remembers where each frame that sounds ends in the history."""
        for item in made:
            if isinstance(item, Spoken) and self.speech.voice.audible(item):
                self._ends.append(len(self.history))
            yield item
