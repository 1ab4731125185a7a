"""The verb `chat`: one prompt, or a session at the terminal."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from apps import wiring
from apps.screen import Screen, piped
from lfm2_mm.errors import LfmError
from lfm2_mm.types import Done, Event, Image, Message, Progress, Sampling, TextDelta

if TYPE_CHECKING:
    from lfm2_mm.engine import Engine

FIELDS = ("max_tokens", "temperature", "seed", "top_k", "top_p", "min_p", "repetition_penalty")
BEFORE = {"vision": "looking", "prompt": "reading"}  # what a bar says before the first word
INTRODUCTION = "/new starts over, /exit or Ctrl-D ends, Ctrl-C stops a reply"


def chat(args: Namespace, screen: Screen) -> None:
    """Answer one prompt, or hold a session where there is none and a terminal is."""
    sort_words(args)
    prompt = prompt_of(args)
    engine = wiring.open_chat(args)
    try:
        sampling = sampling_of(args, engine.advice)
        if prompt is None:
            session(engine, opening(args.system), sampling, screen)
        else:
            record = answer(engine, [*opening(args.system), Message.user(prompt)], sampling, screen)
            screen.result(record, [""])
    finally:
        engine.close()


def sort_words(args: Namespace) -> None:
    """`chat --engine gguf model.gguf Hello`: a file is the model; then one prompt, or none."""
    words: list[str] = args.prompt
    if args.engine == "gguf" and args.model is None and words and Path(words[0]).is_file():
        args.model = words.pop(0)
    if args.engine == "gguf" and args.model is None:
        args.wrong_usage("--engine gguf needs a file: --model model.gguf, or its path first")
    if len(words) > 1:
        args.wrong_usage(f"one prompt is taken, {len(words)} were given; put it into quotes")
    args.prompt = words[0] if words else None


def prompt_of(args: Namespace) -> str | None:
    """What is asked: the argument, else what is piped in; None: a session at the terminal."""
    prompt: str | None = args.prompt
    if prompt is None and (text := piped()) is not None:
        prompt = text.strip()
    if prompt == "":
        args.wrong_usage("the prompt is empty: give a text, or nothing for a session at a terminal")
    if prompt is None and args.json:
        args.wrong_usage("--json needs a prompt: a session has no single result")
    return prompt


def answer(
    engine: Engine, messages: Sequence[Message], sampling: Sampling, screen: Screen
) -> dict[str, Any]:
    """One reply, shown as it comes where no JSON is asked; the JSON document of it."""
    parts: list[str] = []
    hear = parts.append if screen.as_json else screen.write
    done = reply(engine, messages, sampling, hear, screen)
    return {
        "text": "".join(parts),
        "finish_reason": done.reason,
        "usage": asdict(done.usage),
        "timings": asdict(done.timings),
    }


def sampling_of(args: Namespace, advice: Sampling) -> Sampling:
    """The checkpoint's advice, with the given flags in place; temperature 0 drops the advice."""
    given = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    if given.get("temperature") == 0:
        advice = Sampling(temperature=0.0, max_tokens=advice.max_tokens)
    return replace(advice, **given)


def reply(
    engine: Engine,
    messages: Sequence[Message],
    sampling: Sampling,
    hear: Callable[[str], object],
    screen: Screen,
) -> Done:
    """Stream one reply, every piece of text to `hear`; returns how it ended."""
    done = Done("cancelled")
    replying = cast("Generator[Event, None, None]", engine.stream(messages, sampling))
    # Ctrl-C stops the engine's work at once
    with closing(replying) as stream, ExitStack() as bar:
        tell = None
        for event in stream:
            if isinstance(event, Progress):
                tell = tell or bar.enter_context(screen.progress("tokens"))
                tell(event.done, event.total, BEFORE[event.what])
            elif isinstance(event, TextDelta):
                bar.close()
                hear(event.text)
            elif isinstance(event, Done):
                done = event
    return done


def session(
    engine: Engine,
    opening: Sequence[Message],
    sampling: Sampling,
    screen: Screen,
    shown: Sequence[Image] = (),
) -> None:
    """Take turns until /exit, Ctrl-D, or Ctrl-C at the prompt; the first shows the pictures."""
    with suppress(ImportError):  # Windows has none: input() is then without line editing
        import readline  # noqa: F401
    screen.say(INTRODUCTION)
    messages = list(opening)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            screen.say("")
            return
        except UnicodeDecodeError:
            screen.say("this is no UTF-8 text: type it again")
            continue
        if line == "/exit":
            return
        if line == "/new":
            messages = list(opening)
        elif line:
            first = all(message.role == "system" for message in messages)
            asked = Message.user(*(shown if first else ()), line)
            messages = _turn(engine, [*messages, asked], sampling, screen)


def _turn(
    engine: Engine, messages: list[Message], sampling: Sampling, screen: Screen
) -> list[Message]:
    """One reply; returns the conversation to go on with. A turn that failed is forgotten."""
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        screen.write(text)

    try:
        reply(engine, messages, sampling, hear, screen)
    except KeyboardInterrupt:
        screen.say(" [stopped]")
    except LfmError as error:
        screen.say(f"{error}; /new starts over")
        return messages[:-1]
    screen.write("\n")
    return [*messages, Message.assistant("".join(heard))]


def opening(system: str | None) -> list[Message]:
    """How a conversation begins."""
    return [Message.system(system)] if system else []
