"""An encoder for tests that a person can follow: a word is always the same random direction."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from retrieval.encoder import Token

WORD = re.compile(r"\w+")


class WordsEncoder:
    """One vector a word; equal words (case folded) have cosine 1, others about 0."""

    def __init__(self, name: str = "words", dim: int = 32, document_length: int = 24) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(f"{name} {dim}".encode()).hexdigest()
        self.dim = dim
        self.document_length = document_length
        self.query_length = 16
        self.encoded: list[str] = []  # every document text it was given

    def encode_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._vectors(self.query_tokens(text)) for text in texts]

    def encode_documents(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        self.encoded += texts
        if progress:
            progress(len(texts))
        return [self._vectors(self.document_tokens(text)) for text in texts]

    def count_tokens(self, text: str) -> int:
        return 1 + len(WORD.findall(text))

    def query_tokens(self, text: str) -> list[Token]:
        return [Token("[Q]", -1, -1), *_tokens(text)][: self.query_length]

    def document_tokens(self, text: str) -> list[Token]:
        return [Token("[D]", -1, -1), *_tokens(text)][: self.document_length]

    def _vectors(self, tokens: list[Token]) -> np.ndarray:
        return np.stack([_direction(token.text.lower(), self.dim) for token in tokens])


def _tokens(text: str) -> list[Token]:
    return [Token(found.group(), found.start(), found.end()) for found in WORD.finditer(text)]


@functools.cache
def _direction(word: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)
