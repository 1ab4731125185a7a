"""Texts -> one vector a token. Opens the right encoder for a checkpoint; imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lfm2_mm import registry
from lfm2_mm.checkpoint import locate
from lfm2_mm.errors import BadInput
from lfm2_mm.weights import read_json
from retrieval.colbert_files import MODULES, SETTINGS, is_colbert
from retrieval.colbert_tokenizer import ColbertTokenizer, Token

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Encoder", "Progress", "Token", "fingerprint_of", "open_encoder"]

Progress = Callable[[int], None]  # called with the number of texts that were just finished
OWN = ("lfm2", "lfm2_moe")  # model_type of the checkpoints that need no PyLate
PARTS = (".json", ".safetensors", ".txt", ".model", ".metadata")  # what decides the vectors


class Encoder(Protocol):
    """What an index needs of a late-interaction model. Vectors: float32, rows of length 1."""

    name: str  # what open_encoder takes to open it again
    dim: int
    document_length: int  # tokens, markers included; what is beyond is not encoded
    query_length: int

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over configuration, tokenizer and weights."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(tokens, dim) for each query, expansion included."""
        ...

    def encode_documents(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> list[np.ndarray]:
        """(tokens_i, dim) for each document, in the order of `texts`; punctuation left out."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a document's text, markers included, before truncation."""
        ...

    def query_tokens(self, text: str) -> list[Token]:
        """What each row of the query's vectors stands for."""
        ...

    def document_tokens(self, text: str) -> list[Token]:
        """What each row of the document's vectors stands for."""
        ...


class OfFolder:
    """What every encoder over a checkpoint folder tells in the same way."""

    tokenizer: ColbertTokenizer
    folder: Path

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.folder)

    def count_tokens(self, text: str) -> int:
        return self.tokenizer.count(text)

    def query_tokens(self, text: str) -> list[Token]:
        return self.tokenizer.query_tokens(text)

    def document_tokens(self, text: str) -> list[Token]:
        return self.tokenizer.document_tokens(text)


def open_encoder(
    name_or_path: str | Path = "nano-colbert",
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> Encoder:
    """The encoder of a ColBERT checkpoint: our name, a hub id, or a folder saved by PyLate.

    LFM2 checkpoints run on our own backbone, any other architecture through PyLate (extra
    `pylate`). Raises BadInput when the checkpoint is none for late interaction,
    CheckpointDamaged, NotAvailable, UnknownCheckpoint, MissingExtra.
    """
    folder = locate(name_or_path, offline=offline)
    name = _name(name_or_path, folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") in OWN:
        if not is_colbert(folder):
            raise BadInput(_no_colbert(name, folder))
        from retrieval.lfm2_encoder import Lfm2Encoder

        return Lfm2Encoder(folder, name=name, device=device, dtype=dtype)
    if not is_colbert(folder) and config.get("architectures") != ["HF_ColBERT"]:
        raise BadInput(_no_colbert(name, folder))
    from retrieval.pylate_encoder import PylateEncoder

    return PylateEncoder(folder, name=name, device=device, dtype=dtype)


def fingerprint_of(name_or_path: str | Path, *, offline: bool = False) -> str:
    """sha256 (hex) over the checkpoint's configuration, tokenizer and weights, with their names.

    Equal files give an equal fingerprint wherever they lie. A file is read once a process, and
    again when its size or time changes.
    """
    folder = locate(name_or_path, offline=offline)
    parts = sorted(
        path
        for pattern in ("*", "*_*/*")  # the folder, and its modules such as 1_Dense
        for path in folder.glob(pattern)
        if path.suffix in PARTS and path.is_file() and not path.name.startswith(".")
    )
    total = hashlib.sha256()
    for path in parts:
        stat = path.stat()
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        total.update(_digest(path, stat.st_size, stat.st_mtime_ns))
    return total.hexdigest()


@lru_cache(maxsize=1024)
def _digest(path: Path, size: int, modified_ns: int) -> bytes:
    """sha256 of one file; size and time are part of the key, so a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _name(name_or_path: str | Path, folder: Path) -> str:
    """The registry's spelling of a name, the full path of a folder, a hub id as it is."""
    text = str(name_or_path)
    if Path(text).expanduser().absolute() == folder.absolute():
        return str(folder.absolute())
    return registry.find(text).name if registry.knows(text) else text


def _no_colbert(name: str, folder: Path) -> str:
    missing = " and ".join(part for part in (MODULES, SETTINGS) if not (folder / part).is_file())
    return (
        f"{name} is no late-interaction checkpoint ({missing} missing in {folder}); "
        "`lfm2-mm models` lists those of kind colbert, and nano-colbert is bundled"
    )
