"""A server with the live endpoint over a tiny speech checkpoint, for tests. It can be restarted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import audio
from apps import realtime, server
from apps.demos import site
from apps.lanes import Lane
from apps.service import Served, Service
from audio.conversation import CONVERSING, Manner
from audio.speech import Speech
from lfm2_mm.types import Sampling
from tests import tiny_audio
from tests.tone_codec import ToneCodec


def talker(folder: Path, *, steps: int = 60) -> Speech:
    """Answers everything with tones: about a frame for each of two thirds of `steps`."""
    tiny_audio.speech_folder(folder, seed=3, loud={tiny_audio.IM_END: 0.1}, **tiny_audio.SMALL)
    speech = audio.open(folder, device="cpu", dtype="fp32")
    speech.codec = ToneCodec()  # type: ignore[assignment]
    manner = Manner(sound=Sampling(temperature=0.0), steps=steps)
    straight = speech.converse
    speech.converse = lambda system=None, *, manner=manner: straight(system, manner=manner)  # type: ignore[method-assign]
    assert CONVERSING.steps > steps
    return speech


@contextmanager
def serving(
    speech: Speech, pages: Sequence[site.Page] = (), *, port: int = 0, detector: str = "auto",
    key: str | None = None,
) -> Iterator[str]:  # fmt: skip
    """The address, such as http://127.0.0.1:1234/"""
    service = Service([Served("tiny-audio", "speech", speech, Lane("tiny-audio"))])
    app = server.build(service, [realtime.router(detector=detector)], key=key, loopback=True)
    served = site.Site(pages, host="127.0.0.1", port=port, app=app)
    try:
        yield served.address
    finally:
        served.close()
        service.close()
