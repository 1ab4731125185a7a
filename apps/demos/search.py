"""The search page: collections, upload, search with matched words, the source at the place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from apps import grounded
from apps.demos import markup, site
from apps.demos.answers import followed
from apps.demos.shelf import LIBRARY, UPLOADS, Shelf
from apps.service import Served
from lfm2_mm.errors import LfmError
from lfm2_mm.types import Done

# At run time too: gradio reads the annotations.
from retrieval.types import Hit, Mode, Progress, Report

MODES = [("Meaning and words", "hybrid"), ("Meaning", "colbert"), ("Words", "lexical")]
EXAMPLES = [
    "resize a picture without distorting it",
    "check the types of data that come from a user",
    "send an HTTP request again when it fails",
    "split text into subword units",
]
NAME = "Search your documents"
TITLE = f"""<h1>{NAME}</h1>
<p>By meaning and by word, on this machine alone. Marked words show why a passage was found:
the stronger the mark, the closer the match.</p>"""
HOW_TO_ANSWER = """<details class="note"><summary>Answers from what is found</summary>
need a checkpoint that chats: <code>lfm2-mm fetch LFM2-350M</code>, then <code>lfm2-mm demo --models
LFM2-350M</code>; or any OpenAI-compatible server: <code>--models http://127.0.0.1:8080/v1</code>.
</details>"""
ON_RESULT = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-hit]');
  if (button) trigger('click', {hit: Number(button.dataset.hit)});
});"""
ON_DOCUMENT = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-source]');
  if (button && confirm(button.getAttribute('aria-label') + '?'))
    trigger('click', {source: button.dataset.source});
});"""
ON_SOURCE = """const show = () => {
  const passage = element.querySelector('.passage'), box = element.querySelector('pre');
  if (passage) box.scrollTop = passage.offsetTop - box.offsetTop - box.clientHeight / 3;
};
setTimeout(show, 50);  // the first time, the panel has just been put in
watch('value', () => setTimeout(show, 50));"""


class Page:
    """What the controls of the page call. Each method gives the new values of some components."""

    def __init__(self, shelf: Shelf, chat: Served | None = None) -> None:
        """chat: who answers from what was found."""
        self.shelf, self.chat = shelf, chat

    def search(
        self, name: str, query: str, mode: Mode, k: float, narrow: str
    ) -> tuple[str, list[Hit]]:
        if not query.strip():
            return "", []
        start = time.perf_counter()
        try:
            hits = self.shelf.search(name, query, int(k), mode, narrow)
        except LfmError as error:
            return markup.note(str(error)), []
        took = f"{len(hits)} passages in {1000 * (time.perf_counter() - start):,.0f} ms"
        names = [self.shelf.shown(hit.source) for hit in hits]
        return markup.cards(hits, names) + markup.note(took if hits else ""), hits

    def answer(self, query: str, hits: list[Hit]) -> Iterator[str]:
        """The question answered from the best hits, as it grows; citations are numbers of hits."""
        passages = grounded.chosen(hits)
        if self.chat is None or not passages:
            yield ""
            return
        chat, names = self.chat, [self.shelf.shown(hit.source) for hit in passages]
        # Several hits may have one text; a citation opens the hit its passage came from.
        places = {number: hits.index(hit) + 1 for number, hit in enumerate(passages, 1)}
        events = chat.lane.steps(grounded.answered(chat.engine.stream, query, passages, names))
        with closing(events):
            for reply in followed(events):
                pieces = [
                    replace(piece, numbers=tuple(places[n] for n in piece.numbers))
                    for piece in grounded.cited(reply.text, len(passages))
                ]
                told = reply.error or (told_by(chat.name, reply.done) if reply.done else "…")
                yield markup.answer(pieces, told)

    def open(self, name: str, hits: list[Hit], event: gr.EventData) -> tuple[Any, str]:
        number = int(event.hit)
        if not 0 <= number < len(hits):
            return gr.skip(), gr.skip()
        hit = hits[number]
        try:
            text = self.shelf.index(name).text(hit.document)
        except LfmError as error:
            return gr.Column(visible=True), markup.note(str(error))
        return gr.Column(visible=True), markup.source(self.shelf.shown(hit.source), text, hit)

    def choose(self, name: str) -> tuple[str, str, list[Hit], Any, Any]:
        """Another collection: its documents; results and source of the last one go."""
        examples = gr.Column(visible=name == LIBRARY)
        return self.documents(name), "", [], gr.Column(visible=False), examples

    def documents(self, name: str) -> str:
        """What a collection holds and the list of its documents."""
        try:
            sources, info = self.shelf.contents(name)
        except LfmError as error:
            return markup.note(str(error))
        rows = [(s.source, self.shelf.shown(s.source), s.chunks) for s in sources]
        held = f"{info.documents:,} documents, {info.chunks:,} passages, {info.tokens:,} tokens"
        made = f", encoded by {Path(info.model).name}" if info.model else ""
        growing = self.shelf.preparing if name == LIBRARY else ""
        return markup.note(growing) + markup.note(held + made) + markup.documents(rows)

    def upload(
        self,
        paths: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (how gradio finds it)
    ) -> tuple[Any, Any, str]:
        def tell(step: Progress) -> None:
            progress((step.files, step.of_files), desc="Indexing", unit="files")

        try:
            told = outcome(self.shelf.upload(paths or [], tell))
        except LfmError as error:
            told = markup.note(str(error))
        return gr.Files(value=None), gr.Dropdown(value=UPLOADS), told

    def delete(self, name: str, event: gr.EventData) -> str:
        try:
            self.shelf.delete(name, str(event.source))
        except LfmError as error:
            gr.Warning(markup.escape(str(error)))
        return self.documents(name)

    def recall(self, name: str) -> str:
        """The recall meter of a collection."""
        try:
            return markup.meter(self.shelf.recall(name))
        except LfmError as error:
            return markup.note(str(error))

    def wait(self, name: str) -> tuple[Any, str]:
        """The documents while the library grows; the timer stops when it is ready."""
        return gr.Timer(active=bool(self.shelf.preparing)), self.documents(name)


def told_by(name: str, done: Done) -> str:
    """Who answered, and that it may be wrong."""
    cut = " The answer was cut, it was too long." if done.reason == "length" else ""
    return f"Answered by {name} from the passages; check it there.{cut}"


def outcome(report: Report) -> str:
    """What became of an upload."""
    done = f"{report.added} added, {report.updated} updated in {report.seconds:.1f} s"
    left = "".join(
        markup.note(f"Skipped {Path(one.path).name}: {one.why}") for one in report.skipped
    )
    return markup.note(done) + left


def build(shelf: Shelf, chat: Served | None = None) -> gr.Blocks:
    """The page over a shelf of collections; `chat` answers from what is found."""
    page = Page(shelf, chat)
    with gr.Blocks(title=NAME, analytics_enabled=False) as blocks:
        gr.HTML(site.bar("search"))
        gr.HTML(TITLE, elem_id="title")
        with gr.Row(elem_id="page"):
            with gr.Column(scale=0, min_width=310, elem_id="shelf"):
                name = gr.Dropdown(list(shelf.indexes), value=LIBRARY, label="Collection")
                files = gr.Files(label="Add files", height=130)
                told = gr.HTML(elem_id="told")
                documents = gr.HTML(js_on_load=ON_DOCUMENT, elem_id="documents")
                measure = gr.Button("Measure recall", size="sm", elem_id="measure")
                recall = gr.HTML(elem_id="recall")
            with gr.Column(scale=1, min_width=420):
                asked, examples, events = _ask()
                with gr.Column(elem_id="answering"):
                    if chat is None:
                        gr.HTML(HOW_TO_ANSWER)
                    ask = gr.Button(
                        "Answer from these passages", size="sm", elem_id="ask-chat", visible=False
                    )
                    answer = gr.HTML(js_on_load=ON_RESULT, elem_id="answer")
                with gr.Row():
                    with gr.Column(scale=3, min_width=380):
                        results = gr.HTML(js_on_load=ON_RESULT, elem_id="results")
                    with gr.Column(
                        visible=False, scale=2, min_width=380, elem_id="source"
                    ) as panel:
                        source = gr.HTML(js_on_load=ON_SOURCE)
                        close = gr.Button("Close", size="sm")
        hits = gr.State([])
        timer = gr.Timer(1.0)
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        for event in events:
            found = event(page.search, [name, *asked], [results, hits], show_progress="minimal")
            offered: Any = (lambda h: (gr.Button(visible=bool(h) and chat is not None), ""), hits)
            found.then(*offered, [ask, answer], **quiet)
        ask.click(page.answer, [asked[0], hits], answer, show_progress="minimal")
        for shown in (results, answer):
            shown.click(page.open, [name, hits], [panel, source], **quiet)
        close.click(lambda: gr.Column(visible=False), None, panel, **quiet)
        name.change(page.choose, name, [documents, results, hits, panel, examples], **quiet)
        name.change(
            lambda: ("", "", gr.Button(visible=False)), None, [recall, answer, ask], **quiet
        )
        measure.click(page.recall, name, recall, show_progress="minimal")
        taken = files.upload(page.upload, files, [files, name, told])
        taken.then(page.documents, name, documents, **quiet)
        documents.click(page.delete, name, documents, **quiet)
        timer.tick(page.wait, name, [timer, documents], **quiet)
        blocks.load(page.documents, name, documents, **quiet)
    return blocks


def _ask() -> tuple[list[Any], gr.Column, list[Callable[..., Any]]]:
    """The controls of a search: (what is asked, the examples, the events that ask)."""
    with gr.Row(elem_id="ask"):
        query = gr.Textbox(
            placeholder="What are you looking for?", show_label=False, container=False,
            scale=6, max_lines=1, autofocus=True, elem_id="query",
        )  # fmt: skip
        go = gr.Button("Search", variant="primary", scale=0, min_width=110)
    with gr.Row(elem_id="how"):
        mode = gr.Radio(MODES, value="hybrid", label="Compare by", scale=3, min_width=330)
        k = gr.Slider(1, 50, value=10, step=1, label="Results", scale=1, min_width=200)
        narrow = gr.Textbox(
            label="Filter", placeholder="*.pdf  date>=2024", max_lines=1, scale=1, min_width=150
        )
    with gr.Column() as examples:
        tried = gr.Examples(EXAMPLES, inputs=query, label="Try")
    events = [
        tried.load_input_event.then,
        query.submit,
        go.click,
        mode.change,
        k.release,
        narrow.submit,
    ]
    return [query, mode, k, narrow], examples, events


def page(shelf: Shelf, chat: Served | None = None) -> site.Page:
    """The page for a site. The shelf must stay open; `chat` answers from what is found."""
    about = "Find a passage by meaning and by word, and see which words matched."
    model = shelf.model if chat is None else f"{shelf.model}, answers by {chat.name}"
    return site.Page("search", NAME, about, model, build(shelf, chat), "search.css")
