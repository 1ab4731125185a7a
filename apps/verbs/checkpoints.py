"""The verbs `models` and `fetch`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from apps.screen import Screen, plain, size, table
from lfm2_mm import checkpoint, registry
from lfm2_mm.hub import Plan


def models(args: Namespace, screen: Screen) -> None:
    """List the known checkpoints and where each one is."""
    here = {entry.name for entry in checkpoint.cached()}
    records: list[dict[str, Any]] = [
        {
            "name": known.name,
            "kind": known.kind,
            "source": "bundled" if known.bundled else "cached" if known.name in here else "hub",
            "parameters": checkpoint.parameters(known),
            "licence": known.licence,
            "repo": known.repo,
        }
        for known in registry.TABLE
    ]
    rows = [
        (r["name"], r["kind"], r["source"], count(r["parameters"]), r["licence"]) for r in records
    ]
    screen.result(records, table(("name", "kind", "source", "parameters", "licence"), rows))


def fetch(args: Namespace, screen: Screen) -> None:
    """Download a checkpoint, or remove it from the cache."""
    name = registry.find(args.name).name if registry.knows(args.name) else args.name
    if args.remove:
        freed = checkpoint.remove(args.name)
        record = {"name": name, "path": None, "bytes": freed}
        screen.result(record, [f"removed {name}: {size(freed)} freed"])
        return
    with screen.progress("bytes") as tell:
        folder = checkpoint.fetch(
            args.name,
            offline=args.offline,
            announce=lambda plan: screen.say(announcement(plan)),
            progress=lambda done, total: tell(done, total, name),
        )
    # Links are followed: the hub's cache keeps the bytes elsewhere.
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    record = {"name": name, "path": str(folder), "bytes": held}
    screen.result(record, [f"{name}: {size(held)} in {folder}"])


def announcement(plan: Plan) -> str:
    """What a download will bring, before its first byte."""
    rest = f", {size(plan.present)} of it here already" if plan.present else ""
    return plain(f"{plan.repo}: {size(plan.bytes)}{rest}; licence: {plan.licence}")


def count(parameters: int | None) -> str:
    """A parameter count for a person: 354,483,968 -> '354 M'."""
    if parameters is None:
        return "-"
    return f"{parameters / 1e6:,.1f} M" if parameters < 1e8 else f"{parameters / 1e6:,.0f} M"
