"""The verb `demo`."""

from __future__ import annotations

from argparse import Namespace

from apps.screen import Screen


def demo(args: Namespace, screen: Screen) -> None:
    """Serve the search page until Ctrl-C."""
    from apps.demos.search import serve

    serve(
        host=args.host,
        port=args.port,
        index=args.index,
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        offline=args.offline,
        browser=not args.no_browser,
        tell=screen.say,
    )
