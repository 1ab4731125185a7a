"""How fast this machine is: one record a row. Knows what is measured, not how it is shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

Row = dict[str, Any]
DIM = 128
REPEATS = 7


def bench_chat(
    shape: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    prefills: tuple[int, ...] = (128, 1024, 4096),
    contexts: tuple[int, ...] = (128, 1024, 4096),
    decoded: int = 32,
) -> Iterator[Row]:
    """Reading prompts and writing tokens at the shape of a published checkpoint, random weights.

    One record a row: what ("prefill" or "decode"), size (tokens read, or tokens in the context),
    ms a token, and tokens per_s.
    """
    from lfm2_mm.device import choose
    from lfm2_mm.shapes import find_shape, random_backbone

    config = find_shape(shape)
    choice = choose(device, dtype)
    backbone = random_backbone(config, choice)
    run = BackboneRun(backbone)
    common = {"model": f"{shape} {choice.weights}"}
    for size in prefills:
        run.prefill(min(size, 64))
        seconds = min(timed(partial(run.prefill, size)) for _ in range(2))
        yield {"what": "prefill", **common, "size": size,
               "ms": 1e3 * seconds / size, "per_s": size / seconds}  # fmt: skip
    for size in contexts:
        run.prefill(size)
        run.decode(4)
        seconds = timed(partial(run.decode, decoded)) / decoded
        yield {"what": "decode", **common, "size": size,
               "ms": 1e3 * seconds, "per_s": 1 / seconds}  # fmt: skip


class BackboneRun:
    """Drives a backbone as the engine does, with random ids and greedy choice."""

    def __init__(self, backbone: Any) -> None:
        import torch

        self.backbone = backbone
        self.ids = torch.randint(0, backbone.config.vocab_size, (1, 1 << 15))
        self.state = backbone.start()

    def prefill(self, size: int) -> None:
        """Read `size` tokens into a fresh state, in the engine's portions."""
        from lfm2_mm.engines.native import PREFILL

        self.state = self.backbone.start()
        for begin in range(0, size, PREFILL):
            self.feed(self.ids[:, begin : min(begin + PREFILL, size)])

    def decode(self, count: int) -> None:
        """Write `count` tokens, each the likeliest after the one before."""
        token = self.ids[:, :1]
        for _ in range(count):
            token = self.feed(token).argmax(-1, keepdim=True)

    def feed(self, ids: Any) -> Any:
        hidden, self.state = self.backbone.step(self.backbone.embed(ids), self.state)
        return self.backbone.logits(hidden[:, -1])


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bench_retrieval(
    model: str, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> Iterator[Row]:
    """Encoding with `model`, then exact MaxSim over random vectors of 1,000 and 3,000 documents."""
    yield from _encoding(model, device, dtype, offline)
    for documents in (1_000, 3_000):
        yield _maxsim(documents)


def _encoding(model: str, device: str, dtype: str, offline: bool) -> Iterator[Row]:
    from retrieval.encoder import open_encoder

    encoder = open_encoder(model, device=device, dtype=dtype, offline=offline)
    for words in (50, 250):
        texts = _texts(64, words)
        tokens = sum(min(encoder.count_tokens(text), encoder.document_length) for text in texts)
        seconds = median_seconds(partial(encoder.encode_documents, texts), repeats=3)
        yield {
            "what": "encode documents",
            "model": encoder.name,
            "size": tokens // len(texts),  # tokens of one document
            "ms": 1e3 * seconds / len(texts),
            "per_s": tokens / seconds,
        }
    seconds = median_seconds(lambda: encoder.encode_queries(["how do refunds work"]))
    yield {
        "what": "encode a query",
        "model": encoder.name,
        "size": 1,
        "ms": 1e3 * seconds,
        "per_s": 1 / seconds,
    }


def _texts(count: int, words: int) -> list[str]:
    """Texts of common words in random order: what an encoder's speed depends on is their length."""
    rng = np.random.default_rng(0)
    common = "the of a search index model token page file word time data with from query text"
    known = common.split()
    return [" ".join(rng.choice(known, words)) for _ in range(count)]


def _maxsim(documents: int) -> Row:
    from retrieval.scoring import maxsim

    query, packed, offsets = clustered(documents)
    seconds = median_seconds(lambda: maxsim(query, packed, offsets))
    return {
        "what": "exact MaxSim",
        "model": None,
        "size": documents,
        "ms": 1e3 * seconds,
        "per_s": documents / seconds,
    }


def clustered(documents: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors with the structure of a collection: (query (32, DIM), packed (tokens, DIM), offsets).

    A token is normalise(.75 word + .45 topic + .25 document + .55 noise), with 20,000 words drawn
    by Zipf, 6 documents a topic and 180 to 220 tokens a document; the query is 22 noised tokens of
    one document and 10 words of its topic.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(180, 221, documents)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(documents), lengths)
    words = _unit(rng, 20_000)[np.minimum(rng.zipf(1.2, len(owner)), 20_000) - 1]
    topics = _unit(rng, documents // 6 + 1)[owner // 6]
    own = _unit(rng, documents)[owner]
    packed = _normal(0.75 * words + 0.45 * topics + 0.25 * own + 0.55 * _unit(rng, len(owner)))
    first = packed[: lengths[0]]
    asked = np.concatenate([first[rng.integers(0, lengths[0], 22)], topics[:1].repeat(10, axis=0)])
    return _normal(asked + 0.55 * _unit(rng, 32)), packed, offsets


def _unit(rng: np.random.Generator, count: int) -> np.ndarray:
    return _normal(rng.standard_normal((count, DIM), dtype=np.float32))


def _normal(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of a call, after one that warms up."""
    call()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took)
