"""A real server on a free port, with small checkpoints; and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import retrieval
import vision
from apps import server
from apps.demos.site import Site
from apps.lanes import Lane
from apps.service import Served, Service
from lfm2_mm.engine import open_engine
from retrieval.encoder import Encoder, open_encoder
from retrieval.index import Index
from tests import tiny, tiny_audio, tiny_codecs, tiny_vision


def models(folder: Path, *, waiting: int = 8) -> list[Served]:
    """One checkpoint of every kind, freshly opened, and echo."""
    speech = folder / "tiny-audio"
    if not speech.exists():
        loud = {tiny_audio.IM_END: 1.2, tiny_audio.AUDIO_START: 3.0}
        # Of a few seeds, one whose transcript holds no sound, and whose speech ends soon.
        tiny_audio.speech_folder(speech, seed=15, loud=loud, loud_end=4, **tiny_audio.SMALL)
        sizes = {**tiny_codecs.SMALL_DETOKENIZER, "codebooks": 3, "codebook_size": 40}
        tiny_codecs.detokenizer_folder(speech, **sizes)
        tiny_vision.vl_folder(folder / "tiny-vl")
        tiny.colbert_folder(folder / "tiny-colbert")
        tiny.lfm2_folder(folder / "tiny-chat")
    import audio

    made = [
        ("tiny-vl", "vision", vision.open(folder / "tiny-vl", device="cpu", dtype="fp32")),
        ("tiny-audio", "speech", audio.open(speech, device="cpu", dtype="fp32")),
        ("tiny-colbert", "colbert", encoder(folder)),
        ("tiny-chat", "chat", open_engine(folder / "tiny-chat", device="cpu", dtype="fp32")),
        ("echo", "chat", open_engine("echo")),
    ]
    return [
        Served(name, kind, engine, Lane(name, waiting))  # type: ignore[arg-type]
        for name, kind, engine in made
    ]


def encoder(folder: Path) -> Encoder:
    return open_encoder(folder / "tiny-colbert", device="cpu", dtype="fp32")


def indexes(folder: Path, by: Encoder) -> dict[str, Index]:
    """One index of three short texts."""
    texts = [
        ("refunds.md", "A refund takes five working days.", "Refunds"),
        ("bread.md", "Bread needs flour, water, salt and an oven.", "Bread"),
        ("moon.txt", "The moon turns around the earth in a month.", "Moon"),
    ]
    index = retrieval.open(folder / "shop.index", model=by, create=True)
    index.add_texts(texts)
    return {"shop.index": index}


@contextmanager
def serving(service: Service, **how: Any) -> Iterator[str]:
    """The address of the server, with a slash at its end."""
    site = Site([], host="127.0.0.1", port=0, app=server.build(service, **how))
    try:
        yield site.address
    finally:
        service.drain()
        site.close()
        service.close()
