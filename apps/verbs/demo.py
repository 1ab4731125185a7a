"""The verb `demo`."""

from __future__ import annotations

import signal
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from apps import wiring
from apps.screen import Screen
from lfm2_mm.errors import MissingExtra


def demo(args: Namespace, screen: Screen) -> None:
    """Serve the search page until Ctrl-C."""
    if find_spec("gradio") is None:
        raise MissingExtra("the page needs gradio: pip install 'lfm2-mm[demo]'")
    from apps.demos.search import serve

    # A polite kill cleans up as Ctrl-C does: the uploads go with the process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve(
        wiring.open_encoder(args),
        host=args.host,
        port=args.port,
        index=Path(args.index) if args.index else None,
        browser=not args.no_browser,
        tell=screen.say,
    )
