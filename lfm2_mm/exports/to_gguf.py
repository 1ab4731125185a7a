"""The target gguf: a file for llama.cpp, and that file at work in llama.cpp itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfm2_mm.device import choose
from lfm2_mm.errors import BadInput
from lfm2_mm.exports.checks import TEXTS, Limits, Row
from lfm2_mm.exports.gguf_file import TYPES, plan, write_gguf
from lfm2_mm.exports.mmproj_file import type_beside, write_mmproj
from lfm2_mm.exports.source import Source, read_tokenizer
from lfm2_mm.exports.vocabulary import read_vocabulary
from lfm2_mm.llama import Llama, mmproj_of
from lfm2_mm.loading import build
from lfm2_mm.types import Message
from lfm2_mm.weights import read_json
from lfm2_mm.wire import write_message

__all__ = ["DEFAULT", "NEEDS", "SUFFIX", "TYPES", "limits", "open_runner", "rounded", "write"]

SUFFIX, DEFAULT = ".gguf", "f16"
SEEING = 4096  # positions: a picture of ten tiles has some 2,800
NEEDS = ("gguf", "xllamacpp")
PIECES = (  # how llama.cpp splits text for the family: Llama 3's expression
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp keeps keys and values in 16 bits, and rounds what it multiplies with rounded weights:
# to the 16 bits that they have, or to 8 in blocks of 32.
OF_TYPE = {
    "f32": Limits(0.01, 0.003, 1e-4, exact=True),
    "f16": Limits(0.05, 0.01, 1e-3, exact=True),
    "bf16": Limits(0.5, 0.1, 0.05, exact=False),
}
IN_BLOCKS = Limits(1.0, 0.2, 0.5, exact=False)


def write(source: Source, path: Path, kind: str, context: int) -> list[str]:
    """Write `source` as `kind`; returns remarks."""
    config = source.config
    told: list[str] = []
    if source.sight is not None:
        sight = source.sight
        told = write_mmproj(
            mmproj_of(path), sight.sizes, config.hidden_size, sight.tensors, type_beside(kind),
            source.name,
        )  # fmt: skip
    vocabulary = read_vocabulary(
        source.folder, config.vocab_size, config.bos_token_id, config.eos_token_id,
        config.pad_token_id,
    )  # fmt: skip
    return told + write_gguf(
        path, config, source.tensors().__getitem__, kind, vocabulary, name=source.name,
        projection=source.projection(), bidirectional=source.backbone.bidirectional,
    )  # fmt: skip


def limits(kind: str) -> Limits:
    return OF_TYPE.get(kind, IN_BLOCKS)


def rounded(source: Source, kind: str) -> Source:
    """The checkpoint with its weights as the file has them, in our own engine."""
    if kind == "f32":
        return source
    tensor = source.tensors().__getitem__
    pairs = (pair for one in plan(source.config, kind, None) for pair in one.rounded(tensor))
    backbone = build(
        source.config, pairs, choose("cpu", "fp32"),
        bidirectional=source.backbone.bidirectional, head=source.head is None,
    )  # fmt: skip
    sight = source.sight and source.sight.rounded(type_beside(kind))
    return replace(source, backbone=backbone, sight=sight)


def open_runner(source: Source, path: Path) -> InLlama:
    return InLlama(source, path)


class InLlama:
    """The file in llama.cpp, as a Reader or as Vectors."""

    queries = False  # llama.cpp knows no ids that nobody looks at

    def __init__(self, source: Source, path: Path) -> None:
        vectors = source.kind == "colbert"
        # Small portions, so that the long prompt is read in several by llama.cpp itself too.
        self.llama = Llama(
            path, context=512, batch=256 if vectors else 16, vectors=vectors,
            threads=torch.get_num_threads(),
        )  # fmt: skip
        self.runtime = f"llama.cpp (xllamacpp {version('xllamacpp')})"
        self.tokenizer = read_tokenizer(source.folder)
        self.size = source.config.vocab_size
        self.seen: list[int] = []
        self.forced = self._forced(source)
        self.seeing = None
        if source.sight is not None:
            self.seeing = Llama(
                path, context=SEEING, threads=torch.get_num_threads(),
                mmproj=mmproj_of(path), image_tokens=source.sight.tokens,
            )  # fmt: skip
        equal = [self._same_text(text) for text in TEXTS]
        self.remarks: list[str] = []
        self.reads = "text"
        if not all(equal) and not splits_alike(source.folder):
            self.reads = "ids"
            self.remarks.append(
                "llama.cpp cannot split text as this checkpoint's tokenizer does "
                f"({sum(equal)} of {len(equal)} sample texts get the same ids): send it ids"
            )

    def start(self) -> None:
        self.seen = []

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities (vocabulary,) after these ids."""
        before, self.seen = len(self.seen), [*self.seen, *ids]
        answer = self.llama.post(
            "/completion",
            {
                "prompt": self.seen,
                "cache_prompt": before > 0,
                "n_predict": 1,
                "n_probs": self.size,
                "samplers": [],
                # What it says next is not asked, but of half a character llama.cpp tells nothing.
                "logit_bias": [[self.forced, 1e6]],
            },
        )
        if answer["timings"]["prompt_n"] != len(ids):
            raise BadInput(f"llama.cpp read {answer['timings']['prompt_n']} ids, not {len(ids)}")
        return self._logits(answer["completion_probabilities"][0]["top_logprobs"])

    def see(self, messages: Sequence[Message]) -> tuple[int, np.ndarray]:
        """Tokens of the prompt, and log-probabilities (vocabulary,) after it, as anyone asks."""
        assert self.seeing is not None
        answer = self.seeing.post(
            "/v1/chat/completions",
            {
                "messages": [write_message(message) for message in messages],
                "max_tokens": 1,
                "logprobs": True,
                "top_logprobs": self.size,
                "samplers": [],
                "logit_bias": [[self.forced, 1e6]],
                "cache_prompt": False,
            },
        )
        told = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return answer["usage"]["prompt_tokens"], self._logits(told)

    def vectors(self, rows: Sequence[Row]) -> list[np.ndarray]:
        answer = self.llama.post("/embeddings", {"input": [list(row.ids) for row in rows]})
        found = [np.array(one["embedding"]) for one in sorted(answer, key=lambda a: a["index"])]
        return [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in found]

    def same_ids(self, ids: Sequence[int], chosen: bool) -> bool:
        """Whether the text of these ids gets the same ids there; sent as ids, they are the same."""
        if self.reads == "ids":
            return True
        return self._same_text(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def tokens_per_s(self, ids: Sequence[int], count: int = 32) -> float:
        """Written one after another, as llama.cpp times itself."""
        body: dict[str, Any] = {"prompt": list(ids), "n_predict": count, "ignore_eos": True,
                                "cache_prompt": False, "samplers": []}  # fmt: skip
        timings = self.llama.post("/completion", body)["timings"]
        return float(timings["predicted_per_second"])

    def close(self) -> None:
        self.llama.close()
        if self.seeing is not None:
            self.seeing.close()

    def _logits(self, told: Sequence[dict[str, Any]]) -> np.ndarray:
        logits = np.full(self.size, np.nan)
        logits[[one["id"] for one in told]] = [one["logprob"] for one in told]
        return logits

    def _same_text(self, text: str) -> bool:
        ours = self.tokenizer.encode(text, add_special_tokens=False).ids
        return bool(ours == self.llama.ids(text, special=True))

    def _forced(self, source: Source) -> int:
        whole = (self.tokenizer.token_to_id(token) for token in ("a", "e", "the", "A", "1"))
        return next((number for number in whole if number is not None), source.config.eos_token_id)


def splits_alike(folder: Path) -> bool:
    """Whether the tokenizer does to text what llama.cpp does for the family, and nothing more."""
    raw = read_json(folder / "tokenizer.json")
    steps = raw.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    patterns = [(step.get("pattern") or {}).get("Regex") for step in steps if step]
    prefixed = (raw.get("model") or {}).get("continuing_subword_prefix")
    return not raw.get("normalizer") and not prefixed and patterns[:1] == [PIECES]
