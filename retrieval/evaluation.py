"""How good a ranking is: a BEIR-style folder through a real index. The measures are trec_eval's."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import lzma
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lfm2_mm.errors import BadInput
from retrieval import index as indexes
from retrieval.fusion import Fusion
from retrieval.requirements import check_by_meaning
from retrieval.stores.collection import Collection, open_collection
from retrieval.types import MODES, Mode

if TYPE_CHECKING:
    from retrieval.encoder import Encoder
    from retrieval.index import Index

DEPTH = 100  # documents retrieved for each query
LONGEST = 16 << 20  # characters of one line: longer ones are no text
GRADES = 1_000_000  # a judgement's score is below: the metrics count in 32 bits
CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
QRELS = ("qrels.tsv", "qrels/test.tsv")
OPENERS: dict[str, Callable[..., Any]] = {"": io.open, ".gz": gzip.open, ".xz": lzma.open}
Qrels = dict[str, dict[str, int]]  # query -> document -> how relevant
Tell = Callable[[int, int, str], None]  # done, of how many (0: unknown), what


class Seconds(TypedDict):
    """Wall time, in seconds, of bringing the index up to date and of all queries."""

    encode: float
    search: float


Evaluation = TypedDict(
    "Evaluation",
    {
        "ndcg@10": float,
        "recall@100": float,
        "mrr@10": float,
        "map": float,
        "queries": int,
        "documents": int,
        "seconds": Seconds,
    },
)


def evaluate(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Encoder | None = None,
    mode: Mode | None = None,
    store: str | None = None,
    index: str | os.PathLike[str] | None = None,
    fusion: Fusion | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    progress: Tell | None = None,
) -> Evaluation:
    """Measure search on judged queries: corpus.jsonl, queries.jsonl and qrels in `folder`.

    Each may be plain, .gz or .xz. Queries without judgements are left out. A document that is cut
    into passages counts by its best one. index: where to keep the index, so that a second run has
    nothing to encode; None makes one that goes with the call. store: the same in a store, which
    only knows the mode colbert; mode: None takes that there, and hybrid elsewhere. Averages are
    over the queries.
    Raises BadInput, with file and line, for what is missing or malformed.
    """
    folder = Path(folder)
    tell = progress or (lambda done, total, what: None)
    mode = mode or ("colbert" if store else "hybrid")
    if mode not in MODES:
        raise BadInput(f"no search mode {mode!r}; known: {', '.join(MODES)}")
    if store:
        check_by_meaning(store, mode)
    qrels = read_qrels(folder)
    queries = read_queries(folder, qrels)
    with contextlib.ExitStack() as stack:
        how: Any = {"model": model, "device": device, "dtype": dtype, "offline": offline}
        opened: Index | Collection
        if store:
            opened = stack.enter_context(open_collection(store, create=True, **how))
        else:
            place = index or stack.enter_context(
                tempfile.TemporaryDirectory(prefix="lfm2-mm-", ignore_cleanup_errors=True)
            )
            opened = stack.enter_context(indexes.open(place, create=True, **how))
        report = opened.add_texts(
            read_corpus(folder), progress=lambda step: tell(step.files, 0, step.source)
        )
        if not report.documents:
            raise BadInput(f"no document with text in {folder / CORPUS}")
        started = time.monotonic()
        runs = dict(_search(opened, queries, mode, fusion, tell))
        seconds = time.monotonic() - started
    found: Evaluation = {
        **measure(qrels, runs),  # type: ignore[typeddict-item]
        "queries": len(queries),
        "documents": report.documents,
        "seconds": {"encode": report.seconds, "search": seconds},
    }
    return found


def measure(qrels: Qrels, runs: dict[str, list[str]]) -> dict[str, float]:
    """The four averages over the queries of `runs`: the documents found for each, best first."""
    import pytrec_eval

    names = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map": "map"}
    judge = pytrec_eval.RelevanceEvaluator(qrels, set(names.values()) | {"recip_rank"})
    full = judge.evaluate({query: _ranked(found) for query, found in runs.items()})
    short = judge.evaluate({query: _ranked(found[:10]) for query, found in runs.items()})
    found = {name: sum(q[key] for q in full.values()) for name, key in names.items()}
    found["mrr@10"] = sum(q["recip_rank"] for q in short.values())
    return {name: total / max(1, len(runs)) for name, total in found.items()}


def _ranked(documents: list[str]) -> dict[str, float]:
    """trec_eval sorts by score, and ties by name: falling whole numbers keep our order."""
    return {document: float(-rank) for rank, document in enumerate(documents)}


def _search(
    opened: Index | Collection,
    queries: dict[str, str],
    mode: Mode,
    fusion: Fusion | None,
    tell: Tell,
) -> Iterator[tuple[str, list[str]]]:  # fmt: skip
    for done, (name, text) in enumerate(queries.items(), start=1):
        found = opened.rank(text, DEPTH, mode, fusion=fusion)
        yield name, [source for source, _ in found]
        tell(done, len(queries), "searching")


def read_corpus(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(id, text, title) of each document."""
    seen: set[str] = set()
    for where, record in _records(_found(folder, CORPUS)):
        name = _field(where, record, "_id")
        if name in seen:
            raise BadInput(f"{where}: a second document with the _id {name!r}")
        seen.add(name)
        yield name, _field(where, record, "text"), _field(where, record, "title", "")


def read_queries(folder: Path, qrels: Qrels) -> dict[str, str]:
    """Query id -> text, of the queries that are judged."""
    path = _found(folder, QUERIES)
    found: dict[str, str] = {}
    for where, record in _records(path):
        name, text = _field(where, record, "_id"), _field(where, record, "text")
        if name in qrels and text.strip():
            found[name] = text
    if not found:
        raise BadInput(f"no query in {path} has a judgement in {' or '.join(QRELS)}")
    return found


def read_qrels(folder: Path) -> Qrels:
    """Judgements from a table with the header query-id, corpus-id, score."""
    path = _found(folder, *QRELS)
    found: Qrels = {}
    for where, line in _lines(path):
        row = line.rstrip("\r\n").split("\t")
        if not found and row[0] == "query-id":
            continue
        try:
            query, document, score = row
            grade = int(score)
            if abs(grade) >= GRADES:
                raise ValueError("larger than the metrics can take")
            found.setdefault(query, {})[document] = grade
        except ValueError:
            raise BadInput(
                f"{where}: expected query-id, corpus-id and a whole score below {GRADES:,}, with "
                f"tabs between; got {_brief(row)}"
            ) from None
    if not found:
        raise BadInput(f"no judgement in {path}")
    return found


def _found(folder: Path, *names: str) -> Path:
    for name in names:
        for suffix in OPENERS:
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return path
    raise BadInput(
        f"{folder} lacks {' or '.join(names)} (plain, .gz or .xz): evaluation takes a folder with "
        f"{CORPUS}, {QUERIES} and {' or '.join(QRELS)}"
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[io.TextIOBase]:
    suffix = path.suffix if path.suffix in OPENERS else ""
    try:
        with OPENERS[suffix](path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line for messages, line) of each that is not blank."""
    with _reading(path) as file:
        for number in itertools.count(1):
            line, where = file.readline(LONGEST + 1), f"{path}, line {number}"
            if len(line) > LONGEST:
                raise BadInput(f"{where}: longer than {LONGEST >> 20} million characters")
            if line.strip():
                yield where, line
            elif not line:
                return


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line for messages, record) of each line that is not blank."""
    for where, line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise BadInput(f'{where}: expected an object such as {{"_id": …}}; got {_brief(line)}')
        yield where, record


def _brief(value: object) -> str:
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:80]} …"


def _field(where: str, record: dict[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if key == "_id" and isinstance(value, int):
        return str(value)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadInput(f"{where}: {key!r} must be a text; got {_brief(value)}")
    return value
