"""What a speech model answers: events as they come, and the whole of them once it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from audio.generation import Ended, Made, Spoken, TextToken
from audio.history import Frame
from lfm2_mm.prompt import ChatTokenizer, TextStream
from lfm2_mm.types import Audio, AudioChunk, Done, Event, TextDelta, Timings, Usage

if TYPE_CHECKING:
    from audio.codec import Codec

SILENT_RATE = 24_000  # Hz, of sound without samples


class Reply:
    """Iterate for events, Done last; `text` and `audio` run what is left and give all of it.

    Closing it, or leaving a `with` block, stops the work; what came before stays.
    """

    def __init__(self, events: Iterator[Event], rate: int = SILENT_RATE) -> None:
        """`rate` is that of the sound, where some is made."""
        self.rate = rate
        self.heard_s = 0.0  # of the recording that is transcribed, as far as it was read
        self.spelled: tuple[str, ...] = ()  # words of a text to read that had to be spelled
        self.done: Done | None = None  # once it ended by itself
        self.first_audio_s: float | None = None  # from the start of the work to the first samples
        self.seconds = 0.0  # from the start of the work to its latest event
        self._events = events
        self._texts: list[str] = []
        self._chunks: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        start = time.perf_counter()
        event = next(self._events)
        self.seconds += time.perf_counter() - start  # the consumer's own time is not counted
        if isinstance(event, TextDelta):
            self._texts.append(event.text)
        elif isinstance(event, AudioChunk):
            self._chunks.append(event.samples)
            if self.first_audio_s is None:
                self.first_audio_s = self.seconds
        elif isinstance(event, Done):
            self.done = event
        return event

    @property
    def text(self) -> str:
        """The whole text, without blanks around it."""
        self._run()
        return "".join(self._texts).strip()

    @property
    def audio(self) -> Audio:
        """The whole sound; no samples where nothing was said."""
        self._run()
        return Audio(np.concatenate([np.zeros(0, np.float32), *self._chunks]), self.rate)

    def close(self) -> None:
        """Stop. Nothing more comes."""
        close: Callable[[], None] | None = getattr(self._events, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        for _ in self:
            pass


class Voice:
    """Tokens and frames -> events: text without markers, samples as soon as they are certain."""

    def __init__(
        self, tokenizer: ChatTokenizer, silent: frozenset[int], codec: Codec | None
    ) -> None:
        """Ids in `silent` are not shown; without a codec, frames are not heard."""
        self.tokenizer, self.silent, self.codec = tokenizer, silent, codec

    def events(
        self, made: Iterator[Made], prompt: Usage, turn: int, pace: Pace | None = None
    ) -> Iterator[Event]:
        """`prompt` tells what went before; Done comes last, with what `pace` counted in all."""
        text, pace = TextStream(self.tokenizer), pace or Pace()
        sound = Sound(self.codec, turn) if self.codec else None
        ended = Ended("length")
        for item in pace.of(made):
            if isinstance(item, Ended):
                ended = item
            elif isinstance(item, TextToken):
                if item.id not in self.silent and (delta := text.push(item.id)):
                    yield TextDelta(delta)
            elif sound is not None and self.audible(item):
                yield from sound.push(item.codes)
        if delta := text.flush():
            yield TextDelta(delta)
        if sound is not None:
            yield from sound.finish()
        usage = Usage(prompt.prompt_tokens, pace.count, prompt.reused_tokens)
        yield Done(ended.reason, usage, pace.timings)

    def audible(self, frame: Spoken) -> bool:
        """Whether every code of it means a sound."""
        size = self.codec.codebook_size if self.codec else 0
        return not frame.ended and max(frame.codes) < size


class Sound:
    """Frames of one reply -> chunks of samples, as soon as they are certain."""

    def __init__(self, codec: Codec, turn: int) -> None:
        self.codec, self.turn = codec, turn
        self.state = codec.start()

    def push(self, frame: Frame) -> Iterator[AudioChunk]:
        samples, self.state = self.codec.decode(torch.tensor(frame)[:, None], self.state)
        yield from self._chunk(samples)

    def finish(self) -> Iterator[AudioChunk]:
        yield from self._chunk(self.codec.finish(self.state))

    def _chunk(self, samples: Tensor) -> Iterator[AudioChunk]:
        if len(samples):
            yield AudioChunk(self.turn, samples.numpy(), self.codec.rate)


class Pace:
    """How fast tokens and frames come, the consumer's own time left out."""

    def __init__(self) -> None:
        self.count = 0
        self.first_s = self.spent_s = 0.0

    def of(self, made: Iterator[Made]) -> Iterator[Made]:
        while True:
            start = time.perf_counter()
            item = next(made, None)
            self.spent_s += time.perf_counter() - start
            if item is None:
                return
            if not isinstance(item, Ended):
                self.count += 1
                self.first_s = self.first_s or self.spent_s
            yield item

    @property
    def timings(self) -> Timings:
        after = self.spent_s - self.first_s
        return Timings(self.first_s, (self.count - 1) / after if self.count > 1 else 0.0)
