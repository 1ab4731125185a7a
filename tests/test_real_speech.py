"""With published weights, where somebody has them: LFM2_MM_SPEECH names the folder of a checkpoint.

Run by `pytest -m hub`; everywhere else this is skipped.
"""

from __future__ import annotations

import os
import re
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

import audio
from audio.conversation import Manner
from audio.speech import Speech
from lfm2_mm.types import Audio, Sampling

pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def speech() -> Speech:
    folder = os.environ.get("LFM2_MM_SPEECH")
    if not folder:
        pytest.skip("no published speech checkpoint here: LFM2_MM_SPEECH is not set")
    return audio.open(Path(folder))


def clips(data: Path) -> list[tuple[Path, str]]:
    folder = data / "speech/ljspeech_32"
    rows = (line.split("|") for line in (folder / "metadata.csv").read_text().splitlines())
    found = [(folder / f"{row[0]}.ogg", row[-1]) for row in rows]
    return [(path, text) for path, text in found if path.is_file()]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def test_the_steering_tokens_have_their_published_ids(speech: Speech) -> None:
    marks = speech.script.marks
    assert (marks.start, marks.turn_end, marks.audio_start, marks.text_end) == (1, 7, 128, 130)


def test_greedy_transcripts_are_what_was_read(speech: Speech, data: Path) -> None:
    """Nine words of ten in order: the published error on clean reading is 2 to 4 %."""
    found = clips(data)[:4]
    assert found
    for path, text in found:
        heard = words(speech.transcribe(path).text)
        assert SequenceMatcher(None, words(text), heard).ratio() > 0.9, (text, heard)


def test_a_spoken_question_is_answered_in_words_and_sound(speech: Speech, data: Path) -> None:
    question = Audio.open(clips(data)[0][0])
    greedy = Manner(sound=Sampling(temperature=1.0, top_k=4), steps=400, seed=1)
    reply = speech.converse(manner=greedy).reply(question)
    assert len(words(reply.text)) > 3
    sound = reply.audio
    assert sound.seconds > 1 and 0.005 < np.sqrt(np.mean(sound.samples**2)) < 0.5
    again = " ".join(words(speech.transcribe(sound).text))
    assert SequenceMatcher(None, " ".join(words(reply.text)), again).ratio() > 0.6
