"""The pages on one address: a start page, one bar to go from page to page, one server.

Knows pages as gradio blocks; knows nothing of what they do.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from apps.demos import markup
from lfm2_mm.errors import BadInput

TEMPORARY = "GRADIO_TEMP_DIR"  # where gradio keeps uploads
MOST_BYTES = 50_000_000  # of one uploaded file
FONT = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
STYLE = Path(__file__).parent
HEAD = """<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">"""
# Paths and names, on every page.
BAR = (("", "Start"), ("search", "Search"), ("see", "See"), ("chat", "Chat"), ("talk", "Talk"))


@dataclass(frozen=True)
class Page:
    """One page: `path` is its name in the address, `about` a sentence for the start page."""

    path: str
    title: str
    about: str
    model: str  # the checkpoint at work, or why there is none
    blocks: gr.Blocks
    style: str  # a CSS file beside this one


def bar(here: str) -> str:
    """The links between the pages, for the top of the page `here`."""
    links = []
    for path, name in BAR:
        current = ' aria-current="page"' if path == here else ""
        links.append(f'<a href="/{path}{"/" if path else ""}"{current}>{name}</a>')
    return f'<nav id="bar" aria-label="Pages">{"".join(links)}</nav>'


def start_page(pages: Sequence[Page]) -> str:
    """What is on this address."""
    cards = "".join(
        f'<a class="card" href="/{page.path}/"><h2>{markup.escape(page.title)}</h2>'
        f"<p>{markup.escape(page.about)}</p><small>{markup.escape(page.model)}</small></a>"
        for page in pages
    )
    style = (STYLE / "start.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>lfm2-mm</title>'
        f'<meta name="viewport" content="width=device-width">{HEAD}<style>{style}</style></head>'
        f"<body>{bar('')}<main><h1>LFM2 on this machine</h1><p>Nothing you type, upload or record "
        f"leaves it.</p><div>{cards}</div></main></body></html>"
    )


class Site:
    """The pages being served in the background; `address` is where."""

    def __init__(
        self, pages: Sequence[Page], *, host: str, port: int, app: FastAPI | None = None
    ) -> None:
        """`app` has the routes that go before the pages. Raises BadInput for a port in use."""
        app = app or FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        start = start_page(pages)
        app.get("/", response_class=HTMLResponse, include_in_schema=False)(lambda: start)
        port = free_port(host, port)
        for page in pages:
            _mount(app, page, host, port)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{port}/"
        self._pages = pages
        # Pages that are open hold a connection each; leaving them is no error worth a line.
        config = uvicorn.Config(
            app, host=host, port=port, log_level="critical", timeout_graceful_shutdown=1,
            ws_per_message_deflate=False,  # speech hardly shrinks
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        if not self._server.started:
            raise BadInput(f"cannot serve on {host}, port {port}: the server did not start")

    def close(self) -> None:
        """Stop serving; what is being computed for a page ends with its next step."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        for page in self._pages:
            page.blocks.close(verbose=False)


def _mount(app: FastAPI, page: Page, host: str, port: int) -> None:
    gr.mount_gradio_app(
        app,
        page.blocks.queue(default_concurrency_limit=4),
        f"/{page.path}",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=MOST_BYTES,
        theme=theme(),
        css_paths=[STYLE / "bar.css", STYLE / page.style],
        head=HEAD,
    )


def theme() -> gr.themes.Base:
    """Gradio's own, with greys that can be read: 4.5 to 1 against the ground at least."""
    made = gr.themes.Default(font=FONT, font_mono=MONO, primary_hue="teal", neutral_hue="slate")
    return made.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def free_port(host: str, port: int) -> int:
    """`port` if it can be bound, any free one for 0. Raises BadInput with the reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # as the system will, but with one kind of error
        with socket.create_server((host, port), family=family) as server:
            return int(server.getsockname()[1])
    except (OSError, UnicodeError) as error:  # a name that can be none is not even looked up
        why = getattr(error, "strerror", None) or "no such name"
        raise BadInput(
            f"cannot serve on {host}, port {port}: {why}; --host 127.0.0.1 is this "
            "machine, --port takes another port, 0 any free one"
        ) from error


@contextmanager
def uploads() -> Iterator[Path]:
    """A folder for what visitors send, gone afterwards. Build the pages within: they ask once."""
    before = os.environ.get(TEMPORARY)
    with tempfile.TemporaryDirectory(prefix="lfm2-mm-", ignore_cleanup_errors=True) as folder:
        os.environ[TEMPORARY] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop(TEMPORARY)
            if before is not None:
                os.environ[TEMPORARY] = before


def local(host: str) -> bool:
    """Whether only this machine reaches what is served there."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def serve(
    app: FastAPI,
    pages: Sequence[Page],
    *,
    host: str,
    port: int,
    browser: bool,
    tell: Callable[[str], None],
    ready: Callable[[], None],
    stop: Callable[[], None],
) -> None:
    """Serve until Ctrl-C. `ready` is called when all can be visited, `stop` before it is not."""
    site = Site(pages, host=host, port=port, app=app)
    try:
        tell(f"{' and '.join(page.title for page in pages)} on {site.address} (Ctrl-C stops it)")
        ready()
        if browser:
            show(site.address)
        while True:
            time.sleep(3600)
    finally:
        stop()
        site.close()


def show(address: str) -> None:
    """Open the page, unless the only browser there is would take over this terminal."""
    with suppress(webbrowser.Error):
        found = webbrowser.get()
        if type(found) is not webbrowser.GenericBrowser:
            found.open(address)
