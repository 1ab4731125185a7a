"""A late-interaction checkpoint as a source of exports: trunk, projection and marked documents."""

from __future__ import annotations

from pathlib import Path

from lfm2_mm.errors import BadInput
from lfm2_mm.exports.source import Source, float_dtype
from lfm2_mm.weights import read_json
from retrieval.encoder import OWN
from retrieval.lfm2_encoder import Lfm2Encoder


def open_source(folder: Path, name: str, dtype: str = "auto") -> Source:
    """The checkpoint in float. Raises BadInput for another architecture than LFM2's."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in OWN:
        raise BadInput(f"{name} is of the type {kind!r}; exported are {' and '.join(OWN)}")
    encoder = Lfm2Encoder(folder, name=name, device="cpu", dtype=float_dtype(dtype))

    def encode(text: str) -> list[int]:
        return encoder.tokenizer.documents([text])[0].ids

    longest = max(encoder.query_length, encoder.document_length)
    return Source(name, folder, encoder.backbone, encode, encoder.head, longest)
