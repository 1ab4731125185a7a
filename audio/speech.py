"""A speech checkpoint, opened: transcribe, speak, converse. Knows prompts and limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio.chat import CONVERSE, SPEAK, TRANSCRIBE, Script
from audio.codec import Codec, open_codec
from audio.config import AudioConfig
from audio.conversation import CONVERSING, SPEAKING, TRANSCRIBING, Conversation, Manner
from audio.depth import Choose
from audio.encoder import MAX_SECONDS
from audio.generation import Chooser, Made, Recital, generate, text_logits
from audio.history import History
from audio.lexicon import Lexicon, Wording, refusal
from audio.loading import load_speech
from audio.mel import log_mel
from audio.memory import Memory
from audio.model import SpeechModel
from audio.modes import Interleaved, Mode, Sequential
from audio.passages import passages
from audio.reply import Pace, Reply, Voice
from audio.resample import resample
from lfm2_mm import registry
from lfm2_mm.checkpoint import locate
from lfm2_mm.device import Choice, choose
from lfm2_mm.errors import BadInput, ContextExceeded
from lfm2_mm.prompt import ChatTokenizer
from lfm2_mm.sounds import pieces
from lfm2_mm.types import Audio, Done, Event, TextDelta, Usage
from lfm2_mm.weights import read_json

Part = tuple[int, Iterator[Made]]  # positions of a prompt, and what is made after it
LONGEST_WORD = 16  # tokens and frames: a mouth that lost its place is stopped
PASSAGE_S = 30.0  # of a long recording that is transcribed at once
SMALL = (
    512  # hidden size; below it a second thread gains nothing, and is waited for where it is late
)


class Speech:
    """Made by `audio.open`. Replies of one checkpoint run one after the other."""

    def __init__(
        self, name: str, folder: Path, model: SpeechModel, choice: Choice, context: int
    ) -> None:
        self.name, self.model, self.context = name, model, context
        self.tokenizer = ChatTokenizer(folder)
        self.script = Script(self.tokenizer, model.config)
        self._folder, self._choice = folder, choice

    @cached_property
    def codec(self) -> Codec:
        """Loaded when first used: transcribing needs none."""
        return open_codec(self._folder, self._choice)

    @cached_property
    def lexicon(self) -> Lexicon | None:
        """The words that can be said, where they are few."""
        return Lexicon.open(self._folder)

    @cached_property
    def voice(self) -> Voice:
        return Voice(self.tokenizer, self.script.marks.silent, self.codec)

    @property
    def rate(self) -> int:
        """Hz of the sound that is made."""
        return self.codec.rate

    def transcribe(
        self, recording: object, *, system: str | None = None, manner: Manner = TRANSCRIBING
    ) -> Reply:
        """The words of a recording: an Audio, or what Audio.open takes.

        A file may be of any length: it is read piece by piece, and cut at quiet places into
        passages of at most 30 s. Raises Unreadable, BadInput when the reply is run.
        """
        given = [recording] if isinstance(recording, Audio) else pieces(recording)

        def counted() -> Iterator[Audio]:
            for piece in given:
                reply.heard_s += piece.seconds
                yield piece

        longest = min(PASSAGE_S, self.model.ears.seconds_of_table)
        found = passages(counted(), self.model.config.mel.sample_rate, longest)
        reply = Reply(self._transcripts(found, system or TRANSCRIBE, manner))
        return reply

    def speak(
        self,
        text: str,
        *,
        voice: str | None = None,
        system: str | None = None,
        strict: bool = False,
        manner: Manner = SPEAKING,
    ) -> Reply:
        """Read `text` aloud. `voice` is one the checkpoint knows, such as "US female"; `system`
        replaces the instruction altogether. Words that a checkpoint of few words lacks are spelled
        and named in the reply's `spelled`; `strict` refuses them. Raises BadInput,
        ContextExceeded."""
        if not text.strip():
            raise BadInput("there is nothing to speak: the text is empty")
        if system is None:
            system = SPEAK if voice is None else f"{SPEAK} Use the {voice} voice."
        elif voice is not None:
            raise BadInput("a voice and an instruction were given; the instruction names the voice")
        wording = self.lexicon.wording(text) if self.lexicon else Wording((text,), ())
        if strict and wording.spelled:
            raise BadInput(refusal(wording.spelled))
        if self.script.marks.pad is not None:
            parts = self._recited(wording.phrases, manner)
        else:
            parts = self._read(wording.phrases, system, manner)
        reply = Reply(self._aloud(parts), self.rate)
        reply.spelled = wording.spelled
        return reply

    def converse(self, system: str | None = None, *, manner: Manner = CONVERSING) -> Conversation:
        """A conversation in speech and text; each turn answers the ones before."""
        history = self.script.begin()
        self.script.turn(history, "system", system or CONVERSE)
        return Conversation(self, history, manner)

    def resume(self, path: str | Path, *, manner: Manner = CONVERSING) -> Conversation:
        """Go on with a conversation that was saved. Raises BadInput for any other file."""
        from audio.records import load_conversation

        return load_conversation(self, path, manner)

    def hear(self, recording: object) -> Tensor:
        """The mel of a recording, as turns of a conversation take it. Raises as Audio.open does,
        and BadInput for what is too short or too long to be heard."""
        audio = recording if isinstance(recording, Audio) else Audio.open(recording)
        config = self.model.config
        samples = resample(audio.samples, audio.rate, config.mel.sample_rate)
        most = min(MAX_SECONDS, self.model.ears.seconds_of_table)
        if len(samples) > most * config.mel.sample_rate:
            raise BadInput(
                f"the recording lasts {audio.seconds:.0f} s; a turn takes at most {most} s: "
                "cut it, or transcribe it"
            )
        return log_mel(samples, config.mel)

    def prompt(self, system: str, *parts: str | Tensor) -> History:
        """One system and one user turn, and the opening of the answer. Raises ContextExceeded."""
        history = self.script.begin()
        self.script.turn(history, "system", system)
        self.script.turn(history, "user", *parts)
        self.script.open_turn(history, "assistant")
        self.check_room(len(history))
        return history

    def check_room(self, length: int) -> None:
        """Raises ContextExceeded where `length` positions leave no room for an answer."""
        if length >= self.context:
            raise ContextExceeded(
                f"the conversation is {length} positions long (a token, or 80 ms of sound, each); "
                f"{self.name} takes at most {self.context - 1} and a reply: shorten it"
            )

    def generate(
        self, memory: Memory, mode: Mode, manner: Manner, words: Choose | None = None
    ) -> Iterator[Made]:
        """Answer what `memory` holds, as `manner` says, within the context. `words` chooses the
        text instead of sampling."""
        generator = None
        if manner.seed is not None:
            generator = torch.Generator(self.model.device).manual_seed(manner.seed)
        history = memory.history
        seen = history.text if manner.text.repetition_penalty != 1.0 else ()
        text = words or Chooser(manner.text, generator, size=self.tokenizer.size, seen=seen)
        code = Chooser(manner.sound, generator, size=self.model.config.codebook_size + 1)
        limit = min(manner.steps, self.context - len(history))
        return generate(memory, mode, self.script.marks, text, code, limit)

    def _read(self, phrases: Iterable[str], system: str, manner: Manner) -> list[Part]:
        """Text first, then all frames: the published way to read aloud."""
        audio_start = self.script.marks.audio_start
        prompts = [self.prompt(system, phrase) for phrase in phrases]
        return [
            (len(p), self.generate(Memory(self.model, p), Sequential(audio_start), manner))
            for p in prompts
        ]

    def _recited(self, phrases: Iterable[str], manner: Manner) -> list[Part]:
        """Words and frames in turn, the words given: for checkpoints whose text keeps time."""
        config, marks = self.model.config, self.script.marks
        parts: list[Part] = []
        for phrase in phrases:
            prompt = self.prompt(CONVERSE, "")
            words = self.tokenizer.encode(phrase, special=False)
            mode = Interleaved(config.n_text, config.n_audio, marks.text_end)
            bounded = replace(manner, steps=min(manner.steps, 30 + LONGEST_WORD * len(words)))
            made = self.generate(Memory(self.model, prompt), mode, bounded, Recital(words, marks))
            parts.append((len(prompt), made))
        return parts

    def _aloud(self, parts: Sequence[Part]) -> Iterator[Event]:
        """Phrases one after the other, and one Done for all."""
        pace, prompt, reason = Pace(), 0, "stop"
        for number, (length, made) in enumerate(parts):
            prompt += length
            if number:
                yield TextDelta(" ")
            for event in self.voice.events(made, Usage(prompt, 0), 1, pace):
                if not isinstance(event, Done):
                    yield event
                    continue
                reason = "length" if reason == "length" else event.reason  # once cut off, not whole
                if number + 1 == len(parts):
                    yield replace(event, reason=reason)

    def _transcripts(
        self, found: Iterable[np.ndarray], system: str, manner: Manner
    ) -> Iterator[Event]:
        """The texts of passages with blanks between, and one Done for all."""
        config = self.model.config
        reader, pace = Voice(self.tokenizer, self.script.marks.silent, None), Pace()
        prompt, done = 0, Done("stop")
        for number, samples in enumerate(found):
            if number and len(samples) < 2 * config.mel.hop:
                continue  # a last splinter; a whole recording this short is an error
            history = self.prompt(system, log_mel(samples, config.mel))
            prompt += len(history)
            mode = Sequential(self.script.marks.audio_start)
            made = self.generate(Memory(self.model, history), mode, manner)
            if number:
                yield TextDelta(" ")
            for event in reader.events(made, Usage(prompt, 0), 1, pace):
                if not isinstance(event, Done):
                    yield event
                elif done.reason == "length":  # once cut off, not whole
                    done = replace(event, reason="length")
                else:
                    done = event
        yield done

    @torch.inference_mode()
    def prepare(self) -> None:
        """Hear, think and speak once, so that the first reply begins as soon as later ones: what
        is loaded or compiled at its first use is there then. Nothing is remembered."""
        model, config = self.model, self.model.config
        silence = log_mel(np.zeros(config.mel.sample_rate, np.float32), config.mel)
        memory = Memory(model, self.prompt(CONVERSE, silence))
        memory.hidden()
        memory.history.add_text([self.script.marks.start])
        hidden = memory.hidden()
        text_logits(model, hidden)
        model.depth.frame(hidden, lambda logits: 0)
        self.codec.decode(torch.zeros(self.codec.codebooks, 1, dtype=torch.long),
                          self.codec.start())  # fmt: skip

    def close(self) -> None:
        """Nothing is held beyond the object itself."""


def open(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> Speech:
    """Open a speech checkpoint by name, hub id or folder.

    Raises BadInput for a checkpoint of another kind, and what locating and loading raise.
    """
    known = registry.find(str(name_or_path)) if registry.knows(str(name_or_path)) else None
    if known is not None and known.kind != "speech":
        raise BadInput(f"{known.name} is a {known.kind} checkpoint; audio.open takes a speech one")
    folder = locate(name_or_path, offline=offline)
    choice = choose(device, dtype)
    if AudioConfig.from_json(read_json(folder / "config.json")).backbone.hidden_size < SMALL:
        choice = replace(choice, threads=1, reason=f"{choice.reason}; one thread, it is so small")
    model = load_speech(folder, choice)
    context = min(
        (known and known.context) or registry.CONTEXT, model.config.backbone.max_positions
    )
    return Speech(known.name if known else str(name_or_path), folder, model, choice, context)
