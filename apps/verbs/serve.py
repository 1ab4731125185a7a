"""The verbs `serve` and `demo`: one address for the HTTP interface and the pages."""

from __future__ import annotations

import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from apps import wiring
from apps.screen import Screen
from lfm2_mm import checkpoint
from lfm2_mm.address import checked_key
from lfm2_mm.errors import MissingExtra
from lfm2_mm.types import Image

if TYPE_CHECKING:
    from apps.demos.shelf import Shelf
    from apps.demos.site import Page
    from apps.demos.viewer import Viewer
    from apps.service import Served, Service


NEEDED = ("fastapi", "gradio", "prometheus_client", "python_multipart", "uvicorn")


def serve(args: Namespace, screen: Screen) -> None:
    """Serve the HTTP interface, and the pages beside it, until Ctrl-C."""
    _run(args, screen, browser=False, library=False)


def demo(args: Namespace, screen: Screen) -> None:
    """The same, with the pages in front: their library is prepared and a browser opened."""
    _run(args, screen, browser=not args.no_browser, library=True)


def _run(args: Namespace, screen: Screen, *, browser: bool, library: bool) -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingExtra(f"serving needs {', '.join(missing)}: pip install 'lfm2-mm[demo]'")
    key = checked_key(checkpoint.settings().key if args.api_key is None else args.api_key)
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from apps import realtime, server, watch
    from apps.demos import site, talk

    site.free_port(args.host, args.port)  # one that is taken is told before anything is loaded

    with (
        watch.logging_to_stderr(),
        closing(wiring.open_service(args)) as service,
        site.uploads() as folder,
        _shelf(service) as shelf,
    ):
        pages, viewer = _pages(service, shelf, folder)

        def begin() -> None:
            if library:
                shelf.start()
            if viewer is not None:
                Thread(target=viewer.warm_up, daemon=True).start()
            if (speech := service.first("speech")) is not None:
                prepare = speech.engine.prepare
                Thread(target=speech.lane.call, args=(prepare,), daemon=True).start()

        site.serve(
            server.build(
                service,
                [realtime.router(), talk.routes()],
                key=key,
                origins=args.cors,
                loopback=site.local(args.host),
            ),
            pages,
            host=args.host,
            port=args.port,
            browser=browser,
            tell=screen.say,
            ready=begin,
            stop=service.drain,
        )


@contextmanager
def _shelf(service: Service) -> Iterator[Shelf]:
    """The collections of the search page, the served indexes among them."""
    from apps.demos.shelf import Shelf

    encoder = service.first("colbert")
    assert encoder is not None  # one is bundled
    home = checkpoint.settings().home
    with closing(Shelf(home, encoder.engine, service.indexes, service.changing)) as shelf:
        yield shelf


def _pages(service: Service, shelf: Shelf, folder: Path) -> tuple[list[Page], Viewer | None]:
    """Every page; where no checkpoint for one is here, one that says what to do."""
    from apps.demos import chat, search, see, talk
    from apps.demos.talker import Talker
    from apps.demos.viewer import Viewer

    vision, speech = service.first("vision"), service.first("speech")
    answering = service.answering()
    viewer = Viewer(vision.engine) if vision is not None else None
    if viewer is not None:
        look = see.page(viewer, folder / "samples", answering if _sees(answering) else None)
    else:
        look = see.missing(str(wiring.nothing_here("vision")))
    if speech is not None:
        speak = talk.page(Talker(speech))
    else:
        speak = talk.missing(str(wiring.nothing_here("speech")))
    write = chat.page(answering or service.models["echo"])
    return [search.page(shelf, answering), look, write, speak], viewer


def _sees(model: Served | None) -> bool:
    """Whether a chat model takes pictures, as a server elsewhere does."""
    return model is not None and Image in model.engine.accepts
