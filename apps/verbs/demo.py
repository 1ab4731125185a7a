"""The verb `demo`."""

from __future__ import annotations

import signal
from argparse import Namespace
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from apps import wiring
from apps.screen import Screen
from lfm2_mm import checkpoint
from lfm2_mm.errors import BadInput, MissingExtra, NotAvailable

if TYPE_CHECKING:
    from apps.demos.site import Page
    from apps.demos.viewer import Viewer

PAGES = ("colbert", "vision")  # kinds of checkpoints that have a page


def demo(args: Namespace, screen: Screen) -> None:
    """Serve the pages until Ctrl-C. What visitors send goes with the process."""
    if find_spec("gradio") is None:
        raise MissingExtra("the pages need gradio: pip install 'lfm2-mm[demo]'")
    models = wiring.by_kind(args.models)
    for kind, name in models.items():
        if kind not in PAGES:
            raise BadInput(
                f"{name} is a {kind} checkpoint; the pages use {' and '.join(PAGES)} ones"
            )
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from apps.demos import search, site
    from apps.demos.shelf import Shelf

    encoder = wiring.open_encoder(with_model(args, models.get("colbert", "nano-colbert")))
    extra = Path(args.index) if args.index else None
    with (
        site.uploads() as folder,
        closing(Shelf(checkpoint.settings().home, encoder, extra)) as shelf,
    ):
        look, viewer = see_page(with_model(args, models.get("vision")), folder)

        def begin() -> None:
            shelf.start()
            if viewer is not None:
                Thread(target=viewer.warm_up, daemon=True).start()

        site.serve(
            [search.page(shelf), look],
            host=args.host,
            port=args.port,
            browser=not args.no_browser,
            tell=screen.say,
            ready=begin,
        )


def see_page(args: Namespace, folder: Path) -> tuple[Page, Viewer | None]:
    """The page about pictures; where no checkpoint for it is here, one that says what to do."""
    from apps.demos import see
    from apps.demos.viewer import Viewer
    from vision.tiling import TokenBudget

    try:
        viewer = Viewer(wiring.open_see(args, TokenBudget()))
    except NotAvailable as error:
        if args.model is not None:
            raise
        return see.missing(str(error)), None
    return see.page(viewer, folder / "samples"), viewer


def with_model(args: Namespace, name: str | None) -> Namespace:
    """The flags, as if this model had been given."""
    return Namespace(**{**vars(args), "model": name})
