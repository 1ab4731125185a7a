"""The page for speech: a live conversation, and answers to recordings. Knows gradio."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from apps.demos import markup, site, timeline
from apps.demos.answers import duration
from apps.demos.talker import RATE, Answer, Talker
from apps.realtime_wire import pcm16
from lfm2_mm import registry

NAME = "Talk"
PUBLISHED = "LFM2.5-Audio-1.5B"
QUIET: dict[str, Any] = {"show_progress": "hidden"}
AGAIN = 6  # chunks that are sent once more, where the page missed them
LIVE = Path(__file__).parent / "live"
KINDS = {".js": "text/javascript", ".css": "text/css"}
# A visitor may come by any name of this address, so the scripts lie beside the page's own.
LOAD = "import(new URL('../live/{}.js', location.href)).then(found => found.mount({}))"
NUMBERS = itertools.count(1)  # of answers, so that the page tells them apart


def routes() -> APIRouter:
    """The scripts of the page. They go before the pages."""
    router = APIRouter()

    @router.get("/live/{name}", include_in_schema=False)
    def script(name: str) -> FileResponse:
        path = LIVE / name
        if path.parent != LIVE or path.suffix not in KINDS or not path.is_file():
            raise HTTPException(404, f"there is no {name} here")
        return FileResponse(
            path, media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"}
        )

    return router


class Page:
    """What the controls of the page call. Each method gives the new values of some components."""

    def __init__(self, talker: Talker) -> None:
        self.talker = talker

    def answer(self, path: str | None, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Yields the sound for the page, the text, the timeline, what is told, the whole sound."""
        if path is None:
            told = markup.note("Record something, or choose a file, first.")
            yield gr.skip(), "", "", told, None
            return
        number = next(NUMBERS)
        yield gr.skip(), "", "", markup.note("Listening to it …"), None
        for answer in self.talker.answer(str(request.session_hash), path):
            over = answer.done is not None or answer.stopped
            whole = self._whole(answer) if over and answer.chunks else gr.skip()
            sound = gr.HTML(chunks=chunks(number, answer, over))
            yield sound, said(answer), self._timeline(answer), markup.note(outcome(answer)), whole

    def _whole(self, answer: Answer) -> tuple[int, Any]:
        return RATE, (answer.sound.samples * 32767).clip(-32768, 32767).astype("int16")

    def _timeline(self, answer: Answer) -> str:
        size = self.talker.speech.codec.codebook_size
        return timeline.draw(answer.items, lambda ids: self.talker.decode(list(ids)), size)

    def stop(self, request: gr.Request) -> None:
        self.talker.stop(str(request.session_hash))

    def leave(self, request: gr.Request) -> None:
        self.talker.leave(str(request.session_hash))

    def restart(self, request: gr.Request) -> tuple[Any, ...]:
        """A new conversation."""
        self.talker.leave(str(request.session_hash))
        return None, "", "", "", None


def chunks(number: int, answer: Answer, over: bool) -> str:
    """The latest chunks, all of them at the end; `done` tells how many there are."""
    first = 0 if over else max(0, len(answer.chunks) - AGAIN)
    latest = [{"n": n, "pcm": pcm16(c)} for n, c in enumerate(answer.chunks) if n >= first]
    done = len(answer.chunks) if over else None
    return json.dumps({"reply": f"answer {number}", "chunks": latest, "done": done})


def said(answer: Answer) -> str:
    text = answer.text.strip()
    return f'<p class="answer">{markup.escape(text)}</p>' if text else ""


def outcome(answer: Answer) -> str:
    """What an answer cost, in words."""
    if answer.error:
        return answer.error
    if answer.stopped:
        return "Stopped."
    if answer.done is None or answer.first_s is None:
        return "Answering …" if answer.done is None else "The answer has no sound."
    pace = answer.work_s / answer.seconds if answer.seconds else 0.0
    cut = "; it was cut, it was too long" if answer.done.reason == "length" else ""
    return (
        f"First sound after {duration(answer.first_s)}; {answer.seconds:.1f} s of sound in "
        f"{pace:.2f} of real time{cut}."
    )


def about(name: str) -> str:
    """Which checkpoint is at work, and how to use a published one."""
    row = registry.find(name) if registry.knows(name) else None
    if row is not None and row.bundled:
        return (
            f"<b>{markup.escape(name)}</b> is at work: a very small model of the package's own, "
            "behind the counter of a coffee shop. Order a drink, say a table number, greet it; "
            f"for anything else it is sorry. With <code>lfm2-mm fetch {PUBLISHED}</code> and "
            f"<code>lfm2-mm demo --models {PUBLISHED}</code> a published model takes its place."
        )
    licence = f" ({markup.escape(row.licence)})" if row else ""
    return f"<b>{markup.escape(name)}</b> is at work{licence}."


def build(talker: Talker) -> gr.Blocks:
    """The page over a speech checkpoint."""
    page = Page(talker)
    with gr.Blocks(title=NAME, analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.HTML(site.bar("talk"))
        gr.HTML(f"<h1>{NAME}</h1><p>{about(talker.served.name)}</p>", elem_id="title")
        with gr.Tab("Live"):
            gr.HTML(
                html_template='<div class="live-host"></div>',
                js_on_load=LOAD.format("live", "{element, trigger}"),
                elem_id="live",
            )
        with gr.Tab("A recording"):
            _recording(page)
        blocks.unload(page.leave)
    return blocks


def _recording(page: Page) -> None:
    with gr.Row(elem_id="page"):
        with gr.Column(scale=2, min_width=320):
            recording = gr.Audio(
                sources=["microphone", "upload"], type="filepath", label="Your turn",
                elem_id="recording", buttons=[],
            )  # fmt: skip
            with gr.Row():
                ask = gr.Button(
                    "Answer", variant="primary", elem_id="answer", interactive=False
                )  # fmt: skip
                halt = gr.Button("Stop", elem_id="hush")
            restart = gr.Button("New conversation", size="sm", elem_id="restart")
        with gr.Column(scale=3, min_width=360):
            gr.HTML("<h2>The answer</h2>")
            text = gr.HTML(elem_id="text")
            stream = gr.HTML(
                chunks="", html_template='<div class="stream-host"></div>', elem_id="stream",
                js_on_load=LOAD.format("stream", "{element, props, watch}"),
            )  # fmt: skip
            told = gr.HTML(elem_id="told")
            whole = gr.Audio(
                label="All of it", interactive=False, elem_id="whole", buttons=["download"]
            )
    gr.HTML("<h2>Text and codes as they were made</h2>")
    drawn = gr.HTML(elem_id="timeline")
    shown = [stream, text, drawn, told, whole]
    # A recording is there only once the browser has sent it, a moment after it is stopped.
    recording.change(_ready, recording, ask, queue=False, **QUIET)
    ask.click(page.answer, recording, shown, **QUIET, concurrency_id="answers")
    halt.click(page.stop, queue=False, **QUIET)
    restart.click(page.restart, None, [recording, text, drawn, told, whole], **QUIET)


def _ready(recording: str | None) -> gr.Button:
    return gr.Button(interactive=recording is not None)


def page(talker: Talker) -> site.Page:
    """The page for a site, whose app needs `routes` and those of `apps.realtime`."""
    about = "Speak and be answered: live, with interruptions, or with recordings."
    return site.Page("talk", NAME, about, talker.served.name, build(talker), "talk.css")


def missing(why: str) -> site.Page:
    """The page where no checkpoint can speak; `why` says what to do."""
    with gr.Blocks(title=NAME, analytics_enabled=False) as blocks:
        gr.HTML(site.bar("talk"))
        gr.HTML(f"<h1>{NAME}</h1>{markup.note(why)}", elem_id="title")
    return site.Page("talk", NAME, "No checkpoint for speech is here yet.", why, blocks, "talk.css")
