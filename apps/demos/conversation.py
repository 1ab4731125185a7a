"""What pages with a conversation share: what is in the box becomes a question, and its answer is
shown as it comes. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from apps.demos import figures, markup
from apps.demos.answers import Reply, followed
from apps.demos.figures import Shown
from lfm2_mm.types import Event, Image, Message

QUIET: dict[str, Any] = {"show_progress": "hidden"}

Tray = dict[str, Shown]  # the pictures of the next question, by file
Asked = dict[str, Any]  # what is in the box: text, files
Shows = Iterator[tuple[Any, ...]]  # the box, the talk as shown, the talk, what is told under it


@dataclass
class Talk:
    """A conversation: as the model reads it, and as the page shows it."""

    messages: list[Message] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """What is in the box; `wrong` tells why it cannot be asked."""

    text: str
    images: list[Image]
    shown: list[dict[str, Any]]
    wrong: str

    def after(self, talk: Talk) -> list[Message]:
        return [*talk.messages, Message.user(*self.images, self.text)]


def question(asked: Asked, tray: Tray, usual: str, nothing: str) -> Question:
    """`tray` saves opening pictures again; `usual` is asked of pictures without a word; where that
    is "", words are needed. `nothing` is told where nothing is asked."""
    text, files = asked.get("text", "").strip(), asked.get("files", [])
    tray = {path: tray.get(path) or figures.open_shown(path) for path in files}
    text = text or (usual if files else "")
    wrong = [one.trouble for one in tray.values() if one.image is None]
    images = [one.image for one in tray.values() if one.image is not None]
    shown = [picture_shown(path, one) for path, one in tray.items()]
    told = "; ".join(wrong) or ("" if text else nothing)
    return Question(text, images, [*shown, {"role": "user", "content": text}], told)


def refused(why: str) -> tuple[Any, ...]:
    """Nothing was asked: all stays as it is."""
    return gr.skip(), gr.skip(), gr.skip(), markup.note(why)


def answer(
    asked: Asked,
    talk: Talk,
    question: Question,
    events: Generator[Event, None, None],
    outcome: Callable[[Reply], str],
    waiting: str = "",
) -> Shows:
    """Show the answer as it comes; `outcome` puts into words what it took. What could not be
    answered goes back into the box. Closed, it closes the events."""
    shown = [*talk.shown, *question.shown]
    yield answering(), [*shown, said("…")], gr.skip(), waiting
    reply = Reply()
    with closing(events):
        for reply in followed(events):
            told = markup.note(reply.progress)
            yield gr.skip(), [*shown, said(reply.text or "…")], gr.skip(), told
    if reply.error:
        yield asked, talk.shown, gr.skip(), markup.note(reply.error)
        return
    shown.append(said(reply.text or "(no words)"))
    after = Talk([*question.after(talk), Message.assistant(reply.text)], shown)
    yield gr.skip(), shown, after, markup.note(outcome(reply))


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def picture_shown(path: str, shown: Shown) -> dict[str, Any]:
    """A picture of the visitor's in the conversation, with its name for who cannot see it."""
    picture = gr.Image(
        path, alt_text=shown.name, buttons=[], show_label=False, container=False, render=False
    )
    return {"role": "user", "content": picture}


def answering() -> gr.MultimodalTextbox:
    """The box while an answer comes."""
    return gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)


def idle() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
