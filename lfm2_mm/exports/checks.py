"""How far an artefact agrees with its checkpoint: prompts of awkward lengths, ours beside theirs.

Knows numbers and what a runtime can be asked; no runtime. Logits are compared as log-probabilities.
An encoder has vectors in their place: the largest difference is one of their numbers, and what each
says of the others, the cosines as logits, gives divergence and agreement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lfm2_mm.errors import BadInput
from lfm2_mm.exports.source import Source

STEPS = 4  # tokens read one at a time after each prompt
LONG, PORTION = 40, 16
UNLIKELY = -80.0  # log-probabilities below are rounded to nothing by runtimes in float32
SAMPLE = (
    "How do 2 threads share 1 lock? They don't: one waits.\n\n  Prüfe 12345 Äpfel — 你好，世界！"
    " for i in range(10):\n\tprint(i ** 2)  # comment\r\nCafé naïve 🙂 e.g. (a+b)=c; "
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
)
TEXTS = (*SAMPLE.split("\n"), SAMPLE, "", " ", "\n\n\n", "a  b   c", "I'LL we've it's", "1234567",
         "日本語のテキスト", "<|im_start|>user\nHi<|im_end|>\n", "...!?", "end \n")  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One prompt, the artefact beside its checkpoint. `how`: whole, in portions, query or batch.

    What the type rounds away is told, not judged. Judged is the runtime: `runtime_difference` and
    `runtime_kl` are those from our own engine with the weights rounded as the file has them.
    """

    prompt_tokens: int
    how: str
    ids_equal: bool
    max_logit_difference: float
    kl: float
    argmax_equal: bool
    runtime_difference: float
    runtime_kl: float
    within: bool


@dataclass(frozen=True)
class Limits:
    """What a runtime may differ by from our engine with the same weights.

    logits: in their standard deviations. vectors: any number of one of length 1. exact: the
    likeliest token is the same, unless two are as close as the difference found.
    """

    logits: float
    vectors: float
    kl: float
    exact: bool


class Runner(Protocol):
    """An artefact in its own runtime. `reads` says whether it takes text, or ids alone."""

    runtime: str
    reads: str

    def close(self) -> None: ...


class Reader(Runner, Protocol):
    """A language model: `start` forgets, `read` goes on and gives (vocabulary,) logits."""

    def start(self) -> None: ...
    def read(self, ids: Sequence[int]) -> np.ndarray: ...
    def same_ids(self, ids: Sequence[int], chosen: bool) -> bool: ...
    def tokens_per_s(self, ids: Sequence[int]) -> float: ...


class Vectors(Runner, Protocol):
    """An encoder: rows of ids, each with how many are attended and convolved -> vectors of each."""

    queries: bool  # whether an expansion that nobody looks at can be given

    def vectors(self, rows: Sequence[Row]) -> list[np.ndarray]: ...
    def same_ids(self, ids: Sequence[int], chosen: bool) -> bool: ...


@dataclass(frozen=True)
class Row:
    ids: Sequence[int]
    attended: int
    convolved: int

    @classmethod
    def document(cls, ids: Sequence[int]) -> Row:
        return cls(ids, len(ids), len(ids))


def lengths(kernel: int) -> list[int]:
    """Prompts around which short convolutions go wrong: 1, 2, the kernel less one, the kernel."""
    return sorted({1, 2, max(kernel - 1, 1), kernel, kernel + 1})


def prompt_of(source: Source) -> list[int]:
    """Ids enough for every check, of a text with all kinds of characters."""
    ids = source.encode(SAMPLE)
    return (ids * (1 + (LONG + STEPS) // max(len(ids), 1)))[: LONG + STEPS]


def check_reader(
    source: Source, rounded: Source, reader: Reader, limits: Limits
) -> Iterator[Check]:
    """A language model: each prompt whole and the long one in portions, then token by token."""
    ids = prompt_of(source)
    for count in [*lengths(source.config.kernel), LONG]:
        known = ids[: count + STEPS]
        ours = source.logits(known, STEPS + 1)
        judge = ours if rounded is source else rounded.logits(known, STEPS + 1)
        for portion in [count] if count < LONG else [count, PORTION]:
            reader.start()
            for begin in range(0, count, portion):
                theirs = [reader.read(ids[begin : min(begin + portion, count)])]
            theirs += [reader.read(ids[count + i : count + i + 1]) for i in range(STEPS)]
            told = log_softmax(np.stack(theirs))
            how = "whole" if portion == count else f"in portions of {portion}"
            found, against = compare(ours, told), compare(judge, told)
            same = reader.same_ids(ids[:count], against.close)
            yield judged(
                count, how, same, found, against, limits, limits.logits * float(judge.std())
            )


def check_vectors(
    source: Source, rounded: Source, encoder: Vectors, limits: Limits
) -> Iterator[Check]:
    """An encoder: documents alone and in a batch, and a query with its expansion."""
    for how, rows in groups_of(source, encoder.queries):
        theirs = encoder.vectors(rows)
        found, against = (
            worst([compare_vectors(of.vectors(r.ids, r.attended, r.convolved), v)
                   for r, v in zip(rows, theirs, strict=True)])
            for of in (source, rounded)
        )  # fmt: skip
        same = all(encoder.same_ids(row.ids, True) for row in rows)
        yield judged(
            max(len(r.ids) for r in rows), how, same, found, against, limits, limits.vectors
        )


def groups_of(source: Source, queries: bool) -> list[tuple[str, list[Row]]]:
    """What an encoder is asked at once, by what it is."""
    ids = prompt_of(source)
    whole = [*lengths(source.config.kernel), LONG]
    groups = [("document", [Row.document(ids[:count])]) for count in whole]
    groups.append(("batch", [Row.document(ids[:count]) for count in (LONG, 7, 3)]))
    if queries:
        flows = 16 if source.backbone.bidirectional else 6
        groups.append(("query", [Row(ids[:6] + [source.config.eos_token_id] * 10, 6, flows)]))
    return groups


@dataclass(frozen=True)
class Found:
    """What a comparison gave; `close` forgives another choice between all but equal tokens."""

    difference: float
    kl: float
    same: bool
    close: bool


def worst(found: Sequence[Found]) -> Found:
    return Found(
        max(one.difference for one in found),
        max(one.kl for one in found),
        all(one.same for one in found),
        all(one.close for one in found),
    )


def judged(
    count: int,
    how: str,
    ids_equal: bool,
    found: Found,
    runtime: Found,
    limits: Limits,
    most: float,
) -> Check:
    within = (
        ids_equal
        and runtime.difference <= most
        and runtime.kl <= limits.kl
        and (runtime.close or not limits.exact)
    )
    return Check(
        count, how, ids_equal, found.difference, found.kl, found.same,
        runtime.difference, runtime.kl, within,
    )  # fmt: skip


def compare(ours: np.ndarray, theirs: np.ndarray) -> Found:
    """(rows, vocabulary) log-probabilities of both. Raises BadInput for what is not finite."""
    if theirs.shape != ours.shape or not np.isfinite(theirs[ours > UNLIKELY]).all():
        raise BadInput(
            f"the runtime gave logits of shape {theirs.shape} for {ours.shape}, or not finite ones"
        )
    likely = ours > UNLIKELY
    difference = float(np.abs(ours - theirs)[likely].max())
    kl = np.where(likely, np.exp(ours) * (ours - theirs), 0.0).sum(-1)
    first, chosen = ours.argmax(-1), theirs.argmax(-1)
    rows = np.arange(len(ours))
    lost = ours[rows, first] - ours[rows, chosen]
    return Found(
        difference,
        max(0.0, float(kl.max())),
        bool((first == chosen).all()),
        bool((lost <= 2 * difference).all()),
    )


def compare_vectors(ours: np.ndarray, theirs: np.ndarray) -> Found:
    """(tokens, dim) vectors of length 1 of both."""
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        raise BadInput(
            f"the runtime gave vectors of shape {theirs.shape} for {ours.shape}, or not finite ones"
        )
    found = compare(log_softmax(ours @ ours.T), log_softmax(theirs @ ours.T))
    difference = float(np.abs(ours - theirs).max())
    return Found(difference, found.kl, found.same, found.close)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(rows, n) of any scale -> float64 log-probabilities."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def rate(call: Callable[[], object], tokens: int, repeats: int = 5) -> float:
    """Tokens a second of a call that reads `tokens` of them, after one that warms up."""
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return repeats * tokens / (time.perf_counter() - start)


def one_by_one(read: Callable[[Sequence[int]], object], ids: Sequence[int]) -> float:
    """Tokens a second where each is read alone, after a short prompt."""
    read(ids)
    place = iter(range(10**9))

    def one() -> None:
        at = next(place) % len(ids)
        read(ids[at : at + 1])

    return rate(one, 1, repeats=24)
