"""The page about pictures: upload, paste, webcam; what they will cost; answers as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from apps.demos import figures, markup, samples, site
from apps.demos.answers import column, cost, duration, followed, outcome, side_by_side
from apps.demos.conversation import (
    QUIET,
    Asked,
    Shows,
    Talk,
    Tray,
    answer,
    idle,
    question,
    refused,
)
from apps.demos.figures import Shown
from apps.demos.viewer import Viewer
from apps.service import Served
from lfm2_mm import registry
from lfm2_mm.errors import LfmError
from lfm2_mm.types import Image, Message
from vision.tiling import TokenBudget

NAME = "Ask about pictures"
LEAST, USUAL, OTHER = 16, 256, 64  # image tokens: of the dials
QUESTION = "What is this?"  # of pictures that are sent without one
PUBLISHED = "LFM2-VL-450M"
HERE, THERE = "here", "there"  # who answers


class Page:
    """What the controls of the page call. Each method gives the new values of some components."""

    def __init__(self, viewer: Viewer, other: Served | None = None) -> None:
        """other: who may answer in the viewer's place, cutting pictures as nobody here knows."""
        self.viewer, self.other = viewer, other

    def gather(self, asked: Asked | None, tray: Tray, tokens: float, shared: bool) -> Any:
        """The pictures in the box; every key that is typed comes here, most change nothing."""
        files = (asked or {}).get("files", [])
        if list(tray) == files:
            return gr.skip(), gr.skip(), gr.skip()
        tray = {path: tray.get(path) or figures.open_shown(path) for path in files}
        return self.look(tray, tokens, shared), tray, self.dial(tray, shared)

    def dial(self, tray: Tray, shared: bool) -> Any:
        """The dial goes as far as the pictures are worth."""
        plans = self.viewer.plans([s.image for s in tray.values() if s.image], TokenBudget())
        worths = [plan.worth for plan in plans]
        return gr.Slider(maximum=max(USUAL, sum(worths) if shared else max(worths, default=0)))

    def look(self, tray: Tray, tokens: float, shared: bool) -> str:
        """The pictures as they will be seen, and what they will cost."""
        wrong = [figures.trouble(one) for one in tray.values() if one.image is None]
        good = [one for one in tray.values() if one.image is not None]
        return self._seen(good, budget_of(tokens, shared)) + figures.together(wrong)

    def _seen(self, shown: Sequence[Shown], budget: TokenBudget, anew: bool = False) -> str:
        images = [one.image for one in shown if one.image is not None]
        if not images:
            return ""
        try:
            plans = self.viewer.plans(images, budget)
        except LfmError as error:
            return markup.note(str(error))
        cost = self.viewer.cost(images, plans, anew=anew)
        told = f"{cost.image_tokens:,} image tokens and {cost.structural_tokens} structural"
        if cost.seconds is not None:
            told += f"; first word after about {duration(cost.seconds)}"
        grids = [figures.figure(one, plan) for one, plan in zip(shown, plans, strict=True)]
        return figures.together(grids) + f'<p class="cost">{told}</p>'

    def photograph(self, path: str | None, asked: Asked | None) -> tuple[Any, Any]:
        """A picture of the webcam goes to the others in the box."""
        if path is None:
            return gr.skip(), gr.skip()
        before = asked or {}
        files = [*before.get("files", []), path]
        return {"text": before.get("text", ""), "files": files}, None

    def send(
        self,
        asked: Asked,
        talk: Talk,
        tray: Tray,
        tokens: float,
        shared: bool,
        who: str,
        request: gr.Request,
    ) -> Shows:
        """Ask, and show the answer as it comes. What cannot be asked stays in the box."""
        ready = question(asked, tray, QUESTION, "Write a question, or add a picture.")
        if ready.wrong:
            yield refused(ready.wrong)
            return
        if self.other is not None and who == THERE:
            theirs = self.other.lane.steps(self.other.engine.stream(ready.after(talk)))
            yield from answer(asked, talk, ready, theirs, lambda reply: cost(reply.done))
            return
        budget = budget_of(tokens, shared)
        events = self.viewer.reply(str(request.session_hash), ready.after(talk), budget)
        foretold = self._foretold(ready.images, budget)
        waiting = markup.note("Looking …")
        yield from answer(
            asked, talk, ready, events, lambda reply: outcome(reply, foretold), waiting
        )

    def _foretold(self, images: Sequence[Image], budget: TokenBudget) -> float | None:
        """Seconds to the first word about new pictures, where they can be planned."""
        try:
            return self.viewer.cost(images, self.viewer.plans(images, budget)).seconds
        except LfmError:
            return None

    def compare(
        self,
        asked: Asked | None,
        talk: Talk,
        tray: Tray,
        tokens: float,
        other: float,
        request: gr.Request,
    ) -> Iterator[str]:
        """One question under two budgets, one after the other, side by side."""
        text, shown = (asked or {}).get("text", "").strip(), list(tray.values())
        if not shown:
            shown, text = last_asked(talk, text)
        if not shown or any(one.image is None for one in shown):
            yield markup.note("Add a picture, or ask about one first: then it can be compared.")
            return
        message = Message.user(*(s.image for s in shown if s.image), text or QUESTION)
        columns = ["", ""]
        for place, budget in enumerate(budget_of(n, False) for n in (tokens, other)):
            head = self._seen(shown, budget, anew=True)
            events = self.viewer.look_anew(str(request.session_hash), [message], budget)
            for reply in followed(events):
                columns[place] = column(budget.tokens or 0, head, reply)
                yield side_by_side(text or QUESTION, columns)
            if reply.done is not None and reply.done.reason == "cancelled":
                return

    def stop(self, request: gr.Request) -> None:
        self.viewer.stop(str(request.session_hash))

    def leave(self, request: gr.Request) -> None:
        self.viewer.leave(str(request.session_hash))

    def restart(self, request: gr.Request) -> tuple[Any, ...]:
        """A new conversation."""
        self.viewer.leave(str(request.session_hash))
        return [], Talk(), "", ""


def budget_of(tokens: float, shared: bool) -> TokenBudget:
    return TokenBudget(max(1, int(tokens)), shared=shared)


def last_asked(talk: Talk, text: str) -> tuple[list[Shown], str]:
    """The pictures that were asked about last, and `text` or else what was asked."""
    for message in reversed(talk.messages):
        images = [part for part in message.parts if isinstance(part, Image)]
        if images:
            names = [f"picture {n}" for n in range(1, len(images) + 1)]
            shown = [Shown(name, image) for name, image in zip(names, images, strict=True)]
            return shown, text or message.text
    return [], text


def about(viewer: Viewer) -> str:
    """Which checkpoint is at work, and how to use a published one."""
    name = viewer.engine.name
    row = registry.find(name) if registry.knows(name) else None
    if row is not None and row.bundled:
        return (
            f"<b>{markup.escape(name)}</b> is at work: a very small model of the package's own. "
            "It tells shapes, colours, places and numbers in drawings and reads most words in "
            "large type; photographs are beyond it. With "
            f"<code>lfm2-mm fetch {PUBLISHED}</code> and <code>lfm2-mm demo --models {PUBLISHED}"
            "</code> a published model takes its place."
        )
    licence = f" ({markup.escape(row.licence)})" if row else ""
    return f"<b>{markup.escape(Path(name).name)}</b> is at work{licence}."


def build(viewer: Viewer, folder: Path, other: Served | None = None) -> gr.Blocks:
    """The page over an engine; sample pictures are drawn into `folder`. Visitors may choose that
    `other` answers."""
    page = Page(viewer, other)
    with gr.Blocks(title=NAME, analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.HTML(site.bar("see"))
        gr.HTML(f"<h1>{NAME}</h1><p>{about(viewer)}</p>", elem_id="title")
        talk, tray = gr.State(Talk()), gr.State({})
        with gr.Row(elem_id="page"):
            with gr.Column(scale=3, min_width=380):
                who = _who(viewer, other)
                chat, told, box, restart = _conversation(folder)
            with gr.Column(scale=2, min_width=340, elem_id="view"):
                seen, tokens, shared, camera, other, both, halt = _view()
        compared = gr.HTML(elem_id="compared")
        dials = [tokens, shared]
        gather: Any = (page.gather, [box, tray, *dials], [seen, tray, tokens])
        box.change(*gather, **QUIET)
        sent = box.submit(
            page.send, [box, talk, tray, *dials, who], [box, chat, talk, told], **QUIET,
            concurrency_id="answers",
        )  # fmt: skip
        # `change` tells of new text only, so what sets files alone asks for the pictures itself.
        sent.then(idle, None, box, **QUIET).then(*gather, **QUIET)
        box.stop(page.stop, queue=False, **QUIET)
        tokens.change(page.look, [tray, *dials], seen, trigger_mode="always_last", **QUIET)
        shared.change(page.look, [tray, *dials], seen, **QUIET)
        shared.change(page.dial, [tray, shared], tokens, **QUIET)
        photographed = camera.input(page.photograph, [camera, box], [box, camera], **QUIET)
        photographed.then(*gather, **QUIET)
        both.click(
            page.compare, [box, talk, tray, tokens, other], compared, **QUIET,
            concurrency_id="answers",
        )  # fmt: skip
        halt.click(page.stop, queue=False, **QUIET)
        for anew in (restart.click, chat.clear):
            anew(page.restart, None, [chat, talk, told, compared], **QUIET)
        blocks.unload(page.leave)
    return blocks


def _conversation(folder: Path) -> tuple[gr.Chatbot, gr.HTML, gr.MultimodalTextbox, gr.Button]:
    chat = gr.Chatbot(
        show_label=False, height=440, buttons=["copy"], feedback_options=None, elem_id="talk",
        placeholder="Add a picture and ask about it.", allow_tags=False,
    )  # fmt: skip
    told = gr.HTML(elem_id="told")
    box = gr.MultimodalTextbox(
        label="Question", placeholder="Ask; add, drop or paste pictures", file_count="multiple",
        file_types=["image"], max_plain_text_length=1 << 20, autofocus=True, elem_id="box",
    )  # fmt: skip
    gr.Examples(samples.draw(folder), inputs=box, label="Try")
    return chat, told, box, gr.Button("New conversation", size="sm", elem_id="restart")


def _who(viewer: Viewer, other: Served | None) -> gr.Radio:
    choices = [(Path(viewer.engine.name).name, HERE)]
    if other is not None:
        choices.append((f"{other.name}, by a server", THERE))
    return gr.Radio(
        choices, value=HERE, label="Answered by", visible=other is not None, elem_id="who",
        info="tiles, budget and cost are of the first; a server cuts pictures as it does",
    )  # fmt: skip


def _view() -> tuple[Any, ...]:
    gr.HTML("<h2>What the model will see</h2>")
    tokens = gr.Slider(
        LEAST, USUAL, value=USUAL, step=1, label="Budget: image tokens for each picture",
        elem_id="dial",
    )  # fmt: skip
    shared = gr.Checkbox(label="for all pictures together", elem_id="shared")
    seen = gr.HTML(elem_id="seen")
    with gr.Accordion("Webcam", open=False, elem_id="webcam"):
        camera = gr.Image(
            sources=["webcam"], type="filepath", show_label=False, elem_id="camera", height=260
        )
    with gr.Accordion("Compare two budgets", open=False, elem_id="compare"):
        other = gr.Slider(
            LEAST, USUAL, value=OTHER, step=1, label="The other budget", elem_id="other"
        )
        with gr.Row():
            both = gr.Button("Ask under both", size="sm", elem_id="both")
            halt = gr.Button("Stop", size="sm", elem_id="halt")
    return seen, tokens, shared, camera, other, both, halt


def page(viewer: Viewer, folder: Path, other: Served | None = None) -> site.Page:
    """The page for a site; `folder` must last as long. other: as in `build`."""
    about = "Show pictures, see what they cost before you ask, and ask on."
    name = Path(viewer.engine.name).name
    return site.Page("see", NAME, about, name, build(viewer, folder, other), "see.css")


def missing(why: str) -> site.Page:
    """The page where no checkpoint can look at pictures; `why` says what to do."""
    with gr.Blocks(title=NAME, analytics_enabled=False) as blocks:
        gr.HTML(site.bar("see"))
        gr.HTML(f"<h1>{NAME}</h1>{markup.note(why)}", elem_id="title")
    return site.Page("see", NAME, "No checkpoint for pictures is here yet.", why, blocks, "see.css")
