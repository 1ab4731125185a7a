"""What the page for recordings asks of a speech checkpoint: answers, stops. Knows no browser."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from apps.service import Served
from audio.conversation import Conversation
from audio.history import Item
from audio.resample import Resampler
from audio.speech import Speech
from lfm2_mm.errors import LfmError
from lfm2_mm.types import Audio, AudioChunk, Done, TextDelta

RATE = 24_000  # Hz of what the page plays
TOGETHER_S = 0.24  # of sound that is told at once
KEPT = 8  # conversations; the ones not used for longest go


@dataclass
class Answer:
    """An answer on its way: what came so far."""

    text: str = ""
    chunks: list[np.ndarray] = field(default_factory=list)  # float32 at RATE
    items: list[Item] = field(default_factory=list)  # text ids and frames, in order
    first_s: float | None = None  # from the start of the work to the first sound
    work_s: float = 0.0
    done: Done | None = None
    error: str = ""
    stopped: bool = False

    @property
    def seconds(self) -> float:
        return sum(len(chunk) for chunk in self.chunks) / RATE

    @property
    def sound(self) -> Audio:
        return Audio(np.concatenate([np.zeros(0, np.float32), *self.chunks]), RATE)


class Talker:
    """One checkpoint, and a conversation for every visitor. Safe to use from several threads."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.speech: Speech = served.engine
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def answer(self, session: str, path: str) -> Iterator[Answer]:
        """The answer to a recording as it grows; what went wrong is its `error`."""
        answer, stop = Answer(), threading.Event()
        with self._lock:
            if (before := self._stops.get(session)) is not None:
                before.set()
            self._stops[session] = stop
        try:
            yield from self._answered(self._conversation(session), path, answer, stop)
        except LfmError as error:
            answer.error = str(error)
        yield answer

    def _answered(
        self, conversation: Conversation, path: str, answer: Answer, stop: threading.Event
    ) -> Iterator[Answer]:
        question = Audio.open(path)
        lane = self.served.lane
        mel = self.speech.hear(question)
        lane.call(lambda: conversation.make_room(mel))
        reply = lane.call(lambda: conversation.reply(mel))
        start = len(conversation.history)
        resampler = Resampler(self.speech.rate, RATE)
        state, told, pending = resampler.start(), 0.0, []
        for event in lane.steps(reply):
            if isinstance(event, TextDelta):
                answer.text += event.text
            elif isinstance(event, AudioChunk):
                samples, state = resampler.push(event.samples, state)
                pending.append(samples)
            elif isinstance(event, Done):
                answer.done = event
                pending.append(resampler.finish(state))
            answer.first_s, answer.work_s = reply.first_audio_s, reply.seconds
            samples_held = sum(map(len, pending))
            if samples_held >= TOGETHER_S * RATE or (answer.done is not None and samples_held):
                answer.chunks.append(np.concatenate(pending))
                pending = []
            if answer.done is None and answer.seconds == told:
                continue
            told = answer.seconds
            answer.items = conversation.history.items[start:]
            yield answer
            if stop.is_set():
                answer.stopped = True
                return

    def decode(self, ids: list[int]) -> str:
        """Text ids as they are shown."""
        silent = self.speech.script.marks.silent
        return self.speech.tokenizer.decode([i for i in ids if i not in silent])

    def stop(self, session: str) -> None:
        """End this visitor's answer with the step that is being computed."""
        with self._lock:
            if (stopping := self._stops.get(session)) is not None:
                stopping.set()

    def leave(self, session: str) -> None:
        """This visitor is gone, or begins anew."""
        self.stop(session)
        with self._lock:
            self._stops.pop(session, None)
            self._conversations.pop(session, None)

    def _conversation(self, session: str) -> Conversation:
        with self._lock:
            found = self._conversations.pop(session, None) or self.speech.converse()
            self._conversations[session] = found
            while len(self._conversations) > KEPT:
                self._conversations.popitem(last=False)
            return found
