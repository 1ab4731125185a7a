"""Answers on their way, and what they cost, for the page about pictures. Knows events and words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.demos import markup
from lfm2_mm.errors import LfmError
from lfm2_mm.types import Done, Event, Progress, TextDelta

BETWEEN_S = 0.04  # updates of the page
REMEMBERED_S = 0.001  # to find encoded pictures again takes less, to encode one more
BEFORE = {"vision": "Looking", "prompt": "Reading"}


@dataclass
class Reply:
    """An answer on its way: what came so far."""

    text: str = ""
    progress: str = ""
    done: Done | None = None
    error: str = ""


def followed(events: Iterator[Event]) -> Iterator[Reply]:
    """The reply as it grows, a few times a second; what went wrong is its `error`."""
    reply, told = Reply(), 0.0
    try:
        for event in events:
            if isinstance(event, Progress):
                reply.progress = f"{BEFORE[event.what]}: {event.done:,} of {event.total:,} tokens"
            elif isinstance(event, TextDelta):
                reply.text, reply.progress = reply.text + event.text, ""
            elif isinstance(event, Done):
                reply.done = event
            if time.monotonic() - told >= BETWEEN_S:
                told = time.monotonic()
                yield reply
    except LfmError as error:
        reply.error = str(error)
    yield reply


def outcome(reply: Reply, foretold: float | None = None) -> str:
    """What an answer cost, in words."""
    done = reply.done
    if done is None or done.reason == "cancelled":
        return "Stopped."
    looked = done.timings.vision_s if done.timings.vision_s > REMEMBERED_S else 0.0
    before = f" (foretold {duration(foretold)})" if foretold is not None and looked else ""
    told = [
        f"{done.usage.image_tokens:,} image tokens of {done.usage.prompt_tokens:,}",
        f"looked for {duration(looked)}" if looked else "nothing had to be looked at again",
        f"first word after {duration(done.timings.first_token_s)}{before}",
        f"{done.timings.tokens_per_s:.0f} tokens a second",
    ]
    cut = "; the answer was cut, it was too long" if done.reason == "length" else ""
    return f"{', '.join(told)}{cut}."


def cost(done: Done | None) -> str:
    """What an answer took, in words, where nothing is known of pictures."""
    if done is None:
        return "Stopped."
    usage, timings = done.usage, done.timings
    cut = "; the answer was cut, it was too long" if done.reason == "length" else ""
    return (
        f"{usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} written; first word "
        f"after {duration(timings.first_token_s)}, {timings.tokens_per_s:.0f} tokens a second{cut}."
    )


def duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def column(tokens: int, head: str, reply: Reply) -> str:
    """One of two answers: the pictures as they were seen, the answer, what it cost."""
    if reply.error:
        return markup.note(reply.error)
    told = markup.note(outcome(reply) if reply.done else reply.progress)
    text = markup.escape(reply.text or ("" if reply.done else "…"))
    return f'<h3>{tokens:,} tokens</h3>{head}<p class="answer">{text}</p>{told}'


def side_by_side(question: str, columns: Sequence[str]) -> str:
    cells = "".join(f"<section>{one}</section>" for one in columns)
    return f'<p class="asked">{markup.escape(question)}</p><div class="columns">{cells}</div>'
