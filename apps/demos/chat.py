"""The page for conversations in writing: whoever is served as a chat model answers, here or far."""

from __future__ import annotations

import gradio as gr

from apps.demos import markup, site
from apps.demos.answers import cost
from apps.demos.conversation import QUIET, Asked, Shows, Talk, answer, idle, question, refused
from apps.service import Served
from lfm2_mm.types import Image

NAME = "Chat"
ECHO = (
    "No checkpoint that chats is here, so <b>echo</b> says back what you write. "
    "<code>lfm2-mm fetch LFM2-350M</code> and <code>lfm2-mm demo --models LFM2-350M</code> bring "
    "one; <code>--models http://127.0.0.1:8080/v1</code> lets any OpenAI-compatible server answer."
)


class Page:
    """What the controls of the page call. Each method gives the new values of some components."""

    def __init__(self, model: Served) -> None:
        self.model = model

    def send(self, asked: Asked, talk: Talk) -> Shows:
        """Ask, and show the answer as it comes. What cannot be asked stays in the box."""
        ready = question(asked, {}, "", "Write something first.")
        if ready.wrong:
            yield refused(ready.wrong)
            return
        events = self.model.lane.steps(self.model.engine.stream(ready.after(talk)))
        yield from answer(asked, talk, ready, events, lambda reply: cost(reply.done))


def build(model: Served) -> gr.Blocks:
    """The page over a chat model."""
    page = Page(model)
    sees = Image in model.engine.accepts
    about = ECHO if model.name == "echo" else f"<b>{markup.escape(model.name)}</b> answers."
    with gr.Blocks(title=NAME, analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.HTML(site.bar("chat"))
        gr.HTML(f"<h1>{NAME}</h1><p>{about}</p>", elem_id="title")
        talk = gr.State(Talk())
        chat = gr.Chatbot(
            show_label=False, height=460, buttons=["copy"], feedback_options=None, elem_id="talk",
            placeholder="Write, and go on with what is answered.", allow_tags=False,
        )  # fmt: skip
        told = gr.HTML(elem_id="told")
        box = gr.MultimodalTextbox(
            label="Message", placeholder="Write; add pictures where the model sees",
            file_count="multiple", file_types=["image"], max_plain_text_length=1 << 20,
            sources=["upload"] if sees else [], autofocus=True, elem_id="box",
        )  # fmt: skip
        restart = gr.Button("New conversation", size="sm", elem_id="restart")
        sent = box.submit(page.send, [box, talk], [box, chat, talk, told], **QUIET)
        sent.then(idle, None, box, **QUIET)
        box.stop(idle, None, box, cancels=[sent], queue=False, **QUIET)
        for anew in (restart.click, chat.clear):
            anew(lambda: ([], Talk(), ""), None, [chat, talk, told], **QUIET)
    return blocks


def page(model: Served) -> site.Page:
    """The page for a site."""
    about = "Talk in writing with a checkpoint here, or with any OpenAI-compatible server."
    return site.Page("chat", NAME, about, model.name, build(model), "see.css")
