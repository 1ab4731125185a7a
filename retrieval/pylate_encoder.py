"""Any other late-interaction checkpoint (BERT, ModernBERT, ...) as an `Encoder`, run by PyLate.

The optional door: needs the extra `pylate`. Code that comes with a checkpoint is never run, and
weights are read from safetensors only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lfm2_mm.device import Choice, choose, set_threads
from lfm2_mm.errors import BadInput, CheckpointDamaged, MissingExtra
from retrieval.colbert_files import Settings, is_colbert, read_projections, read_settings
from retrieval.colbert_tokenizer import ColbertTokenizer, Marks
from retrieval.encoder import OfFolder, Progress

DTYPES = ("auto", "fp32", "bf16")
BATCH = 32  # PyLate's own default


class PylateEncoder(OfFolder):
    """The `Encoder` over `pylate.models.ColBERT`."""

    def __init__(self, folder: Path, *, name: str, device: str = "auto", dtype: str = "auto"):
        if find_spec("pylate") is None:
            raise MissingExtra(
                f"{name} is not an LFM2 checkpoint, and PyLate, which runs the others, is not "
                "installed: pip install 'lfm2-mm[pylate]'"
            )
        if dtype not in DTYPES:
            raise BadInput(f"dtype {dtype!r} is for LFM2 checkpoints; {name} runs in fp32 or bf16")
        if is_colbert(folder):
            read_settings(folder)
            read_projections(folder)  # checks the import paths in the files before PyLate uses them
        _check_weights(folder)
        choice = choose(device, "fp32" if dtype == "auto" else dtype)
        set_threads(choice.threads)
        self.model = _open(folder, choice)
        self.tokenizer = _tokenizer(self.model)
        self.name = name
        self.dim = int(self.model[-1].out_features)
        self.query_length = int(self.model.query_length)
        self.document_length = int(self.model.document_length)
        self.folder = folder

    def encode_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(tokens, dim) float32 for each query, expansion included."""
        return self._encode(list(texts), is_query=True)

    def encode_documents(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> list[np.ndarray]:
        """(tokens_i, dim) float32 for each document, in the order of `texts`."""
        vectors: list[np.ndarray] = [np.empty((0, self.dim), np.float32)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            rows = self._encode([texts[i] for i in batch], is_query=False)
            for i, row in zip(batch, rows, strict=True):
                vectors[i] = row
            if progress is not None:
                progress(len(batch))
        return vectors

    def _encode(self, texts: list[str], *, is_query: bool) -> list[np.ndarray]:
        if not texts:
            return []
        vectors = self.model.encode(
            texts, is_query=is_query, batch_size=BATCH, show_progress_bar=False
        )
        if not all(np.isfinite(v).all() for v in vectors):
            raise CheckpointDamaged(f"{self.name} gives vectors that are not finite")
        return [np.ascontiguousarray(v, np.float32) for v in vectors]


def _open(folder: Path, choice: Choice) -> Any:
    from pylate.models import ColBERT

    with _told(folder):
        return ColBERT(
            str(folder),
            device=choice.device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": choice.torch_dtype, "use_safetensors": True},
        )


def _check_weights(folder: Path) -> None:
    """transformers only warns about weights that it had to invent; here that is an error."""
    from transformers import AutoModel

    with _told(folder):
        _, report = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    # A pooler is there for single vectors and plays no part in ours.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointDamaged(
            f"{folder} lacks {len(missing)} weights of its trunk, such as {missing[0]}"
        )


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What PyLate, transformers or torch raise on opening, as one error naming the folder."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BadInput(f"PyLate cannot open {folder}: {reason[0]}") from error


def _tokenizer(model: Any) -> ColbertTokenizer:
    """Our tokenizer over the ids that PyLate has resolved, for counts and character offsets."""
    settings = Settings(
        query_length=model.query_length,
        document_length=model.document_length,
        do_query_expansion=model.do_query_expansion,
        attend_to_expansion_tokens=model.attend_to_expansion_tokens,
        lower_case=bool(model[0].do_lower_case),
    )
    marks = Marks(
        query=model.query_prefix_id,
        document=model.document_prefix_id,
        expansion=model.tokenizer.pad_token_id,
        skip=frozenset(model.skiplist),
    )
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput("its tokenizer has no tokenizer.json, without which words have no places")
    return ColbertTokenizer(Tokenizer.from_str(backend.to_str()), settings, marks)
