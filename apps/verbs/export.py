"""The verb `export`: a checkpoint as a file of another runtime, and how far it agrees there."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from apps import wiring
from apps.screen import Screen, plain, size, table

if TYPE_CHECKING:
    from lfm2_mm.exports.export import Report

HEAD = ("tokens", "how", "ids equal", "largest difference", "KL", "same choice",
        "runtime difference", "runtime KL", "")  # fmt: skip


def export(args: Namespace, screen: Screen) -> int:
    """Write it, run it there, tell what was found; exit code 1 where the runtime disagrees."""
    from lfm2_mm.exports import export as exports

    output = Path(args.output).expanduser()
    kind = exports.prepare(args.to, args.type, output, force=args.force)
    source = wiring.open_source(args)
    report = exports.export(source, args.to, kind, output, context=args.context, tell=screen.say)
    record = {
        **asdict(report),
        "path": str(report.path),
        "mmproj": report.mmproj and str(report.mmproj),
        "ok": report.ok,
        "tokens_per_s": {"ours": report.ours, "theirs": report.theirs},
    }
    del record["ours"], record["theirs"]
    screen.result(record, lines_of(report))
    return 0 if report.ok else 1


def lines_of(report: Report) -> Iterator[str]:
    """The table for a person, what is behind it, and the verdict."""
    rows = [
        (c.prompt_tokens, c.how, yes(c.ids_equal), f"{c.max_logit_difference:.2g}", f"{c.kl:.2g}",
         yes(c.argmax_equal), f"{c.runtime_difference:.2g}", f"{c.runtime_kl:.2g}",
         "" if c.within else "too far")
        for c in report.checks
    ]  # fmt: skip
    yield from table(HEAD, rows)
    logits = report.judged_as == "logits"
    allowed = (
        f"{report.limits.logits:g} standard deviations of the logits"
        if logits
        else f"{report.limits.vectors:g} in a number of a vector"
    )
    yield "left: beside the checkpoint; runtime: beside our engine with the weights of the file,"
    yield f"where {allowed} and a divergence of {report.limits.kl:g} are allowed"
    yield (
        f"{report.runtime}: {report.theirs:,.0f} tokens/s, our engine in float "
        f"{report.ours:,.0f} ({'one by one' if logits else 'read at once'})"
    )
    yield from report.remarks
    verdict = "agrees" if report.ok else "DISAGREES beyond what is allowed, kept to be looked at"
    both = str(report.path) + (f" and {report.mmproj.name}" if report.mmproj else "")
    yield f"{plain(both)}: {size(report.bytes)}, {report.type}, {verdict}"


def yes(value: bool) -> str:
    return "yes" if value else "no"
