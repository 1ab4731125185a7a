"""A server with the live endpoint over a tiny speech checkpoint, for tests. It can be restarted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import audio
from apps import realtime, server
from apps.demos import site, talk
from apps.demos.talker import Talker
from apps.lanes import Lane
from apps.service import Served, Service
from audio.conversation import Conversation, Manner
from audio.speech import Speech
from lfm2_mm.types import Sampling
from tests import tiny_audio
from tests.tone_codec import ToneCodec

made: list[Conversation] = []  # every conversation of every talker, in order


def talker(folder: Path, *, steps: int = 60) -> Speech:
    """Answers everything with tones: about a frame for each of two thirds of `steps`."""
    endless = {tiny_audio.IM_END: 0.0}
    tiny_audio.speech_folder(folder, seed=3, loud=endless, loud_end=0.0, **tiny_audio.SMALL)
    speech = audio.open(folder, device="cpu", dtype="fp32")
    speech.codec = ToneCodec()  # type: ignore[assignment]
    manner = Manner(sound=Sampling(temperature=0.0), steps=steps)
    straight = speech.converse

    def converse(system: str | None = None, *, manner: Manner = manner) -> Conversation:
        made.append(straight(system, manner=manner))
        return made[-1]

    speech.converse = converse  # type: ignore[method-assign]
    return speech


@contextmanager
def serving(
    speech: Speech, *, page: bool = False, port: int = 0, detector: str = "auto",
    key: str | None = None, warm: bool = False,
) -> Iterator[str]:  # fmt: skip
    """The address, such as http://127.0.0.1:1234/; with `page` its talk/ is the page."""
    model = Served("tiny-audio", "speech", speech, Lane("tiny-audio"))
    service = Service([model])
    routers = [realtime.router(detector=detector), talk.routes()]
    app = server.build(service, routers, key=key, loopback=True)
    pages = [talk.page(Talker(model))] if page else []
    if warm:
        speech.prepare()
    served = site.Site(pages, host="127.0.0.1", port=port, app=app)
    try:
        yield served.address
    finally:
        served.close()
        service.close()
