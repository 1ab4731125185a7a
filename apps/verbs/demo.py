"""The verb `demo`."""

from __future__ import annotations

import signal
from argparse import Namespace
from pathlib import Path

from apps.screen import Screen


def demo(args: Namespace, screen: Screen) -> None:
    """Serve the search page until Ctrl-C."""
    from apps.demos.search import serve
    from apps.demos.shelf import Settings

    # A polite kill cleans up as Ctrl-C does: the uploads go with the process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve(
        Settings(args.model, args.device, args.dtype, args.offline),
        host=args.host,
        port=args.port,
        index=Path(args.index) if args.index else None,
        browser=not args.no_browser,
        tell=screen.say,
    )
