"""A speech checkpoint in a chat of messages: its turns, its manner, its sound at the API's rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from audio.conversation import Conversation, Manner
from audio.resample import Resampler
from audio.speech import Speech
from lfm2_mm.errors import BadInput
from lfm2_mm.types import Audio, AudioChunk, Done, Event, Image, Message, Sampling, Text


def replied(
    speech: Speech, messages: Sequence[Message], manner: Manner, rate: int
) -> Iterator[Event]:
    """The events of the reply to a conversation whose last message is the user's, sound at `rate`.

    Raises BadInput for pictures and for a last message of another role, ContextExceeded.
    """
    if not messages or messages[-1].role != "user":
        raise BadInput("a spoken conversation ends with a message of the user")
    system = "\n".join(m.text for m in messages if m.role == "system") or None
    conversation = speech.converse(system, manner=manner)
    turns = [m for m in messages if m.role != "system"]
    history = conversation.history
    for message in turns[:-1]:
        heard = [speech.hear(p) if isinstance(p, Audio) else p for p in parts_of(message)]
        if message.role == "user":
            speech.script.turn(history, "user", *heard)
        else:
            speech.script.turn(history, "assistant", *heard)
    going_on = Conversation(speech, history, manner)
    return at_rate(going_on.reply(*parts_of(turns[-1])), rate)


def parts_of(message: Message) -> list[str | Audio]:
    """Texts and recordings, as a conversation takes them. Raises BadInput for pictures."""
    found: list[str | Audio] = []
    for part in message.parts:
        if isinstance(part, Image):
            raise BadInput("a speech model cannot see; ask a vision model about pictures")
        found.append(part.text if isinstance(part, Text) else part)
    return found


def manner_of(manner: Manner, sampling: Sampling) -> Manner:
    """A task's manner with the text sampled as a request says; sound stays as published."""
    return replace(manner, text=sampling, steps=sampling.max_tokens, seed=sampling.seed)


def at_rate(events: Iterator[Event], rate: int) -> Iterator[Event]:
    """The same events with their sound at `rate`, resampled as one stream."""
    resampler, state = None, None
    for event in events:
        if isinstance(event, AudioChunk) and event.rate != rate:
            if resampler is None or state is None:
                resampler = Resampler(event.rate, rate)
                state = resampler.start()
            samples, state = resampler.push(event.samples, state)
            yield AudioChunk(event.turn, samples, rate)
        else:
            if isinstance(event, Done) and resampler is not None and state is not None:
                yield AudioChunk(0, resampler.finish(state), rate)
            yield event
