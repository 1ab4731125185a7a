"""Whole conversations, as the reference package has them with the same weights.

golden/README.md says how the numbers were made.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from audio.chat import Script
from audio.generation import Ended, TextToken, generate
from audio.history import History
from audio.loading import load_speech
from audio.mel import log_mel
from audio.memory import Memory
from audio.modes import Interleaved, Mode, Sequential
from audio.resample import resample
from lfm2_mm.device import choose
from lfm2_mm.prompt import ChatTokenizer
from tests import tiny_audio
from tests.golden.cases import CASES, Case, Clip, Turn

GOLDEN = json.loads((Path(__file__).parent / "golden/speech.json").read_text())
# Logits are written with four digits; over 40 steps float32 rounding adds up to about as much.
TOLERANCE = 3e-4


class Replay:
    """One case, on our side."""

    def __init__(self, case: Case, folder: Path) -> None:
        tiny_audio.speech_folder(folder, interleaved_n_audio=case.n_audio, **case.checkpoint)
        self.model = load_speech(folder, choose("cpu", "fp32"))
        self.tokenizer = ChatTokenizer(folder)
        self.script = Script(self.tokenizer, self.model.config)
        self.case = case
        self.logits: list[list[float]] = []

    def begin(self) -> History:
        history = self.script.begin()
        self.script.turn(history, "system", self.case.system)
        return history

    def ask(self, history: History, turn: Turn) -> None:
        parts = [self.mel(part) if isinstance(part, Clip) else part for part in turn.parts]
        self.script.turn(history, "user", *parts)
        self.script.open_turn(history, "assistant")

    def mel(self, clip: Clip) -> Tensor:
        config = self.model.config.mel
        return log_mel(resample(clip.samples(), clip.rate, config.sample_rate), config)

    def answer(self, memory: Memory, limit: int) -> list[list[int]]:
        self.logits.clear()
        made = generate(memory, self.mode(), self.script.marks, self.take, self.take, limit)
        return [
            [item.id] if isinstance(item, TextToken) else list(item.codes)
            for item in made
            if not isinstance(item, Ended)
        ]

    def mode(self) -> Mode:
        config, marks = self.model.config, self.script.marks
        if self.case.mode == "sequential":
            return Sequential(marks.audio_start)
        return Interleaved(config.n_text, config.n_audio, marks.text_end)

    def take(self, logits: Tensor) -> int:
        self.logits.append([logits.max().item(), logits[100].item()])
        return int(logits.argmax())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conversations_are_the_reference_s(case: Case, tmp_path: Path) -> None:
    """Positions, tokens, codes and logits of every turn, over one memory from turn to turn."""
    replay = Replay(case, tmp_path)
    memory = Memory(replay.model, replay.begin())
    for number, (turn, wanted) in enumerate(zip(case.turns, GOLDEN[case.name], strict=True)):
        if number:
            replay.script.close_turn(memory.history)
        replay.ask(memory.history, turn)
        assert "".join(str(int(flag)) for flag in memory.history.flags) == wanted["flags"]
        assert memory.history.text == wanted["text"]
        assert replay.answer(memory, turn.limit) == wanted["made"]
        np.testing.assert_allclose(replay.logits, wanted["logits"], atol=TOLERANCE, rtol=0)


def test_every_event_happens_in_the_golden_conversations() -> None:
    """Else equality would prove less than it seems."""
    made = [m for turns in GOLDEN.values() for turn in turns for m in turn["made"]]
    text = {m[0] for m in made if len(m) == 1}
    frames = [m for m in made if len(m) == 8]
    assert {tiny_audio.AUDIO_START, tiny_audio.TEXT_END, tiny_audio.IM_END} <= text
    assert len(text) > 60
    assert 10 < sum(frame == [2048] * 8 for frame in frames) < len(frames) / 4
    assert len({tuple(frame) for frame in frames}) > 100
