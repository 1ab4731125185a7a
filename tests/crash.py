"""Kill -9 at random moments: a process that forks workers on a small index and kills them.

    python -m tests.crash --kills 300 --seed 1

After each kill the index must be sound, hold the old or the new state (for work of several
publications: some documents new, the later ones old), and when the work is done again, only what
was lost is encoded, and the index ranks as one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import retrieval
from retrieval import compact, index, repair, update, writer  # noqa: F401  (before the forks)
from retrieval.types import MODES
from tests.words_encoder import WordsEncoder

DOCUMENTS = 60
QUERIES = ("word3 shared", "fresh word7 word8", "nothing of this")
State = dict[str, str]  # source -> text
BATCH: list[Path] = []  # the index that is attached


def text(number: int, version: str) -> str:
    return " ".join([f"{version} word{number} shared"] * (1 + number % 9))


OLD = {f"d{n:02d}": text(n, "old") for n in range(DOCUMENTS)}
NEW = {f"d{n:02d}": text(n, "fresh" if n % 2 else "old") for n in range(DOCUMENTS)}


def opened(folder: Path) -> index.Index:
    return retrieval.open(folder, model=WordsEncoder(), create=True)


def add(folder: Path, texts: State) -> list[str]:
    """Texts that were encoded for it."""
    with opened(folder) as made:
        made.add_texts((source, words, "") for source, words in texts.items())
        return made.encoder().encoded  # type: ignore[attr-defined]


def delete(folder: Path) -> list[str]:
    with opened(folder) as made:
        if any(s.source.endswith("1") for s in made.sources()):
            made.delete("*1")
        else:
            made.add_texts([])  # what was deleted counts in BM25 until a writer has cleared up
    return []


def shrink(folder: Path) -> list[str]:
    with opened(folder) as made:
        made.compact()
    return []


def attach(folder: Path) -> list[str]:
    """All of NEW, encoded elsewhere, in one publication."""
    with opened(folder) as made:
        made.attach(BATCH[0])
    return []


def mend(folder: Path) -> list[str]:
    with opened(folder) as made:
        made.repair()
        return made.encoder().encoded  # type: ignore[attr-defined]


def harmed(folder: Path) -> None:
    """A bit flipped in the first segment's vectors and in the manifest."""
    for path in (sorted((folder / "segments").glob("*.vectors"))[0], folder / "manifest.json"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@dataclass
class Job:
    """Work that is killed. `before` makes the index it starts from, once."""

    work: Callable[[Path], list[str]]
    before: Callable[[Path], None]
    old: State
    new: State
    steps: bool  # may be published document by document
    harmed: bool = False  # what it starts from is damaged, and may still be so when it was killed
    undisturbed: list[object] = field(default_factory=list)
    seconds: float = 0.0
    chunks: int = 0  # encoded by the undisturbed run


def start(folder: Path) -> None:
    add(folder, OLD)


def beside_a_batch(folder: Path) -> None:
    start(folder)
    BATCH[:] = [folder.parent / "batch"]
    add(BATCH[0], NEW)


def scattered(folder: Path) -> None:
    """Many small segments with deleted passages."""
    start(folder)
    with opened(folder) as made:
        made.delete("*5")
    add(folder, {**OLD, "d00": "another text", "d05": "back again"})


def damaged(folder: Path) -> None:
    start(folder)
    harmed(folder)


SCATTERED = {**OLD, "d00": "another text", "d05": "back again"}
JOBS = {
    "index": Job(lambda f: add(f, OLD), lambda f: None, {}, OLD, steps=True),
    "update": Job(lambda f: add(f, NEW), start, OLD, NEW, steps=True),
    "delete": Job(
        delete, start, OLD, {s: t for s, t in OLD.items() if not s.endswith("1")}, steps=False
    ),
    "attach": Job(attach, beside_a_batch, OLD, NEW, steps=False),
    "compact": Job(shrink, scattered, SCATTERED, SCATTERED, steps=False),
    "repair": Job(mend, damaged, OLD, OLD, steps=False, harmed=True),
}


def state(folder: Path) -> State:
    """What a sound index holds, after every part of it told the same."""
    with opened(folder) as made:
        found = {s.source: " ".join(made.text(s.document).split()) for s in made.sources()}
        listed = {hit.source for hit in made.search("shared another back", 999, "lexical")}
        scored = {hit.source for hit in made.search("shared", 999, "colbert")}
    assert listed == scored == set(found), (listed ^ set(found), scored ^ set(found))
    return found


def rankings(folder: Path) -> list[object]:
    """All that searches say, but for ids."""
    with opened(folder) as made:
        return [
            sorted((-round(h.score, 4), h.source, h.start) for h in made.search(query, 400, mode))
            for query in QUERIES
            for mode in MODES
        ]


def fits(job: Job, found: State) -> bool:
    if found in (job.old, job.new):
        return True
    order = sorted({**job.old, **job.new})
    states = [{**job.old, **{s: job.new[s] for s in order[:n]}} for n in range(len(order) + 1)]
    return job.steps and found in states


def run(job: Job, folder: Path, *, after: float) -> bool:
    """The work in a process of its own, killed after so many seconds; was it?"""
    child = os.fork()
    if child == 0:
        try:
            job.work(folder)
        except BaseException as error:  # told by the exit code
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < after:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
            job.seconds = min(job.seconds, elapsed)  # it was quicker than was thought
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return os.WIFSIGNALED(status)


def prepare(job: Job, folder: Path) -> None:
    """The index that the work starts from, and what comes of it when nobody disturbs it."""
    job.before(folder / "start")
    if (folder / "start").exists():
        shutil.copytree(folder / "start", folder / "whole")
    began = time.perf_counter()
    job.chunks = len(job.work(folder / "whole"))
    job.seconds = time.perf_counter() - began
    job.undisturbed = rankings(folder / "whole")


def once(job: Job, start_from: Path, folder: Path, after: float) -> tuple[bool, bool]:
    """Kill the work once and finish it: was it killed, and between two publications?"""
    if start_from.exists():
        shutil.copytree(start_from, folder)
    killed = run(job, folder, after=after)
    folder.mkdir(exist_ok=True)  # perhaps it was killed before anything was there
    with opened(folder) as made:
        damage = made.check()
    assert job.harmed or not damage, damage
    kept, between = 0, False
    if not damage:
        found = state(folder)
        between = found not in (job.old, job.new)
        assert fits(job, found), {s: t[:30] for s, t in found.items()}
        with opened(folder) as made:
            kept = made.info().chunks
    encoded = len(job.work(folder))
    with opened(folder) as made:
        assert made.check() == [], made.check()
        if job is JOBS["index"]:
            assert encoded == job.chunks - kept, (encoded, job.chunks, kept)
    assert state(folder) == job.new
    assert rankings(folder) == job.undisturbed
    return killed, between


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    args = parser.parse_args()
    # Several publications in little time, and segments enough to be tidied up.
    writer.SEGMENT_CHUNKS, writer.ENCODE_CHUNKS = 10, 5
    compact.SMALL_VECTORS, compact.MANY = 800, 4
    chance = random.Random(args.seed)
    told: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="lfm2-mm-crash-") as place:
        for name in args.jobs:
            prepare(JOBS[name], Path(place) / name)
        number = 0
        while sum(count["killed"] for count in told.values()) < args.kills:
            number += 1
            name = args.jobs[number % len(args.jobs)]
            job = JOBS[name]
            after = chance.uniform(0, job.seconds)
            folder = Path(place) / f"round{number}"
            try:
                killed, between = once(job, Path(place) / name / "start", folder, after)
            except Exception as error:
                kept = Path(tempfile.mkdtemp(prefix="lfm2-mm-crash-kept-")) / "index"
                if folder.exists():
                    shutil.copytree(folder, kept)
                where = f"round {number}, {name} killed after {after:.4f} s, seed {args.seed}"
                raise SystemExit(f"{where}; the index is kept in {kept}: {error!r}") from error
            count = told.setdefault(name, {"rounds": 0, "killed": 0, "between": 0})
            count["rounds"] += 1
            count["killed"] += killed
            count["between"] += between
            shutil.rmtree(folder)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
