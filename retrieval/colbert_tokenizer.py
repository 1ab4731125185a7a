"""Text -> marked ids, and back to characters: [Q]/[D], truncation, query expansion, skip list.

Knows the `tokenizers` library; no model, no transformers. The ids are PyLate's own (tests compare).
A text that spells a special token ("<|im_end|>", "[D] ") gets that token's id, as in PyLate. Here
is no dialogue that it could break out of: it moves its own vectors and nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.weights import read_json
from retrieval.colbert_files import Settings


@dataclass(frozen=True)
class Token:
    """What one vector stands for: characters start to end of the text, -1 for markers."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Marks:
    """Resolved ids. None where a checkpoint has no such marker."""

    query: int | None
    document: int | None
    expansion: int
    skip: frozenset[int]


@dataclass(frozen=True)
class Marked:
    """One text for the model: ids, of which the first `real` are attended; rows `keep` count."""

    ids: list[int]
    real: int
    keep: list[int]


class ColbertTokenizer:
    """Marks texts as queries or documents; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings, marks: Marks) -> None:
        tokenizer.no_truncation()  # both may have been saved with the file
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.settings = settings
        self.marks = marks

    @classmethod
    def open(cls, folder: Path, settings: Settings) -> ColbertTokenizer:
        """From tokenizer.json and the names in tokenizer_config.json. Raises CheckpointDamaged."""
        tokenizer = _read_tokenizer(folder)
        named = _named_tokens(folder)
        return cls(tokenizer, settings, _marks(tokenizer, settings, named, folder))

    @property
    def largest_id(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def queries(self, texts: Sequence[str]) -> list[Marked]:
        """Ids of queries, filled up to query_length where the checkpoint expands queries."""
        settings, marks = self.settings, self.marks
        found = []
        for encoding in self._encode(texts, settings.query_length, marks.query):
            ids = _marked(encoding.ids, marks.query)
            real = len(ids)
            if settings.do_query_expansion:
                ids = ids + [marks.expansion] * (settings.query_length - real)
                real = len(ids) if settings.attend_to_expansion_tokens else real
            found.append(Marked(ids, real, list(range(len(ids)))))
        return found

    def documents(self, texts: Sequence[str]) -> list[Marked]:
        """Ids of documents; rows of the skip list (punctuation) are computed and not kept."""
        found = []
        for encoding in self._encode(texts, self.settings.document_length, self.marks.document):
            ids = _marked(encoding.ids, self.marks.document)
            keep = [i for i, token in enumerate(ids) if token not in self.marks.skip]
            found.append(Marked(ids, len(ids), keep))
        return found

    def count(self, text: str) -> int:
        """Tokens of a document, markers included, before truncation."""
        special = self._tokenizer.num_special_tokens_to_add(False)
        body = self._tokenizer.encode(self._clean(text), add_special_tokens=False)
        return len(body.ids) + special + (self.marks.document is not None)

    def query_tokens(self, text: str) -> list[Token]:
        """One token for each row that `queries` keeps of this text."""
        return self._tokens(
            text, self.queries([text])[0], self.settings.query_length, self.marks.query
        )

    def document_tokens(self, text: str) -> list[Token]:
        """One token for each row that `documents` keeps of this text."""
        return self._tokens(
            text, self.documents([text])[0], self.settings.document_length, self.marks.document
        )

    def _encode(self, texts: Sequence[str], length: int, marker: int | None) -> Iterable[Encoding]:
        room = length - (marker is not None) - self._tokenizer.num_special_tokens_to_add(False)
        bodies = self._tokenizer.encode_batch(
            [self._clean(text) for text in texts], add_special_tokens=False
        )
        for body in bodies:
            body.truncate(room)
            yield self._tokenizer.post_process(body)

    def _tokens(self, text: str, marked: Marked, length: int, marker: int | None) -> list[Token]:
        encoding = next(iter(self._encode([text], length, marker)))
        places = _characters(text, self.settings.lower_case)
        spans = [
            (-1, -1) if special else (places[start], places[end])
            for (start, end), special in zip(
                encoding.offsets, encoding.special_tokens_mask, strict=True
            )
        ]
        spans = spans[:1] + [(-1, -1)] * (marker is not None) + spans[1:]
        spans += [(-1, -1)] * (len(marked.ids) - len(spans))
        return [self._token(text, marked.ids[i], *spans[i]) for i in marked.keep]

    def _token(self, text: str, token: int, start: int, end: int) -> Token:
        if start < 0:
            return Token(self._tokenizer.id_to_token(token) or "", -1, -1)
        blank = len(text[start:end]) - len(text[start:end].lstrip())
        start = start + blank if start + blank < end else start  # " word" is about the word
        return Token(text[start:end], start, end)

    def _clean(self, text: str) -> str:
        text = text.strip()
        text = text.lower() if self.settings.lower_case else text
        # Half a surrogate pair cannot be encoded; "?" keeps the count of characters.
        return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _marked(ids: list[int], marker: int | None) -> list[int]:
    return ids if marker is None else [*ids[:1], marker, *ids[1:]]


def _characters(text: str, lower_case: bool) -> list[int]:
    """Place in `text` of each character of the cleaned text, and one past the end."""
    first = len(text) - len(text.lstrip())
    body = text.strip()
    if not lower_case:
        return list(range(first, first + len(body) + 1))
    # Lower case can be longer than upper case: the Turkish capital I with a dot becomes two.
    places = [first + i for i, c in enumerate(body) for _ in c.lower()]
    return [*places, first + len(body)]


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointDamaged(f"{folder} has no tokenizer.json; fetch or save it again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower for a malformed file
        raise CheckpointDamaged(f"{path} cannot be read: {error}") from error


def _named_tokens(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json, where older files keep the names."""
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            named |= read_json(folder / name)
    return named


def _named(named: dict[str, Any], key: str) -> str | None:
    value = named.get(key)
    return value.get("content") if isinstance(value, dict) else value


def _marks(tokenizer: Tokenizer, settings: Settings, named: dict[str, Any], folder: Path) -> Marks:
    """Ids of the markers by name; the expansion token is the mask, end or pad token (PyLate)."""
    fillers = [_named(named, key) for key in ("mask_token", "eos_token", "pad_token")]
    filler = next((token for token in fillers if token), None)
    needed = {
        "query_prefix": settings.query_prefix,
        "document_prefix": settings.document_prefix,
        "mask_token, eos_token or pad_token": filler,
    }
    for key, token in needed.items():
        if token is None or (token and tokenizer.token_to_id(token) is None):
            raise CheckpointDamaged(
                f"{folder / 'tokenizer.json'} has no token {token!r} ({key}); "
                "save the checkpoint with PyLate, which adds it"
            )
    skip = (tokenizer.token_to_id(word) for word in settings.skiplist_words)
    return Marks(
        tokenizer.token_to_id(settings.query_prefix) if settings.query_prefix else None,
        tokenizer.token_to_id(settings.document_prefix) if settings.document_prefix else None,
        tokenizer.token_to_id(filler),
        frozenset(token for token in skip if token is not None),
    )
