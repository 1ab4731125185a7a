"""transcribe, speak and hear of an opened checkpoint; how one is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import audio
from audio.chat import SPEAK, TRANSCRIBE
from audio.conversation import Manner
from audio.generation import Ended, Spoken, TextToken, generate
from audio.memory import Memory
from audio.modes import Sequential
from audio.passages import passages
from audio.speech import Speech
from lfm2_mm import device
from lfm2_mm import program as programs
from lfm2_mm.compiled import Machine, register_width
from lfm2_mm.device import set_threads
from lfm2_mm.errors import BadInput, ContextExceeded, Unreadable
from lfm2_mm.types import Audio, Done, Sampling, TextDelta, text_of
from tests import tiny, tiny_audio
from tests.plain_codec import PlainCodec

GREEDY = Manner(sound=Sampling(temperature=0.0), steps=25)
CLIP = Audio(tiny_audio.recording(0.7, 22_050, 1), 22_050)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speech")
    loud = {tiny_audio.IM_END: 1.2, tiny_audio.AUDIO_START: 3.0}
    return tiny_audio.speech_folder(path, seed=10, loud=loud, **tiny_audio.SMALL)


@pytest.fixture(scope="module")
def speech(folder: Path) -> Speech:
    speech = audio.open(folder, device="cpu", dtype="fp32")
    speech.codec = PlainCodec()  # type: ignore[assignment]
    return speech


def by_hand(
    speech: Speech, system: str, *parts: str | torch.Tensor, steps: int = 25
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Text ids and frames of one answer, by the loop itself."""
    history = speech.prompt(system, *parts)
    mode = Sequential(speech.script.marks.audio_start)
    marks, greedy = speech.script.marks, lambda logits: int(logits[:480].argmax())
    made = list(generate(Memory(speech.model, history), mode, marks, greedy, greedy, steps))
    assert isinstance(made[-1], Ended)
    text = [m.id for m in made if isinstance(m, TextToken)]
    return text, [m.codes for m in made if isinstance(m, Spoken)]


def shown(speech: Speech, ids: list[int]) -> str:
    return speech.tokenizer.decode([i for i in ids if i not in speech.script.marks.silent]).strip()


# ---- transcribe -----------------------------------------------------------------------------


def test_a_transcript_is_the_text_of_the_answer(speech: Speech) -> None:
    reply = speech.transcribe(CLIP, manner=GREEDY)
    ids, _ = by_hand(speech, TRANSCRIBE, speech.hear(CLIP))
    assert reply.text == shown(speech, ids) != ""
    assert reply.heard_s == pytest.approx(0.7) and len(reply.audio.samples) == 0
    assert reply.done is not None and reply.done.usage.completion_tokens <= 25


def test_paths_bytes_and_recordings_are_heard_alike(speech: Speech, tmp_path: Path) -> None:
    path = CLIP.save(tmp_path / "clip.flac")
    texts = {
        speech.transcribe(given, manner=GREEDY).text
        for given in (path, str(path), path.read_bytes(), Audio.open(path))
    }
    assert len(texts) == 1


def test_another_instruction_may_be_given(speech: Speech) -> None:
    ids, _ = by_hand(speech, "Perform ASR in French.", speech.hear(CLIP))
    said = speech.transcribe(CLIP, system="Perform ASR in French.", manner=GREEDY).text
    assert said == shown(speech, ids)


def test_a_long_recording_is_transcribed_passage_by_passage(
    speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio.speech.PASSAGE_S", 1.0)
    long = Audio(tiny_audio.recording(3.3, 16_000, 2), 16_000)
    cut = list(passages([long], 16_000, 1.0))
    assert len(cut) >= 4
    texts = [speech.transcribe(Audio(part, 16_000), manner=GREEDY).text for part in cut]
    events = list(speech.transcribe(long, manner=GREEDY))
    assert text_of(events).split() == " ".join(texts).split()
    assert sum(isinstance(event, Done) for event in events) == 1
    reply = speech.transcribe(long.save(tmp_path / "long.wav"), manner=GREEDY)
    assert reply.text.split() == " ".join(texts).split()
    assert reply.heard_s == pytest.approx(3.3)
    done = reply.done
    assert done is not None
    answers = [speech.transcribe(Audio(part, 16_000), manner=GREEDY) for part in cut]
    counts = [next(e for e in a if isinstance(e, Done)).usage.completion_tokens for a in answers]
    assert done.usage.completion_tokens == sum(counts)


def test_text_comes_while_the_rest_is_still_unread(
    speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audio.speech.PASSAGE_S", 1.0)
    long = Audio(tiny_audio.recording(3.3, 16_000, 2), 16_000)
    with speech.transcribe(long, manner=GREEDY) as reply:
        assert isinstance(next(reply), TextDelta)
    assert list(reply) == [] and reply.done is None


@pytest.mark.parametrize(
    ("samples", "message"),
    [(np.zeros(1), "at least 20 ms"), (np.zeros(319), "at least 20 ms")],
    ids=["one sample", "too short"],
)
def test_what_is_too_short_to_hear_is_told(
    speech: Speech, samples: np.ndarray, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        _ = speech.transcribe(Audio(samples.astype(np.float32), 16_000)).text


def test_files_that_are_none_are_told(speech: Speech, tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_bytes(b"hello, I am no recording")
    for given in (tmp_path / "no.wav", tmp_path / "missing.wav", b""):
        with pytest.raises(Unreadable):
            _ = speech.transcribe(given).text


# ---- speak ----------------------------------------------------------------------------------


def test_speaking_is_the_sound_of_the_frames(speech: Speech) -> None:
    _, frames = by_hand(speech, SPEAK, "How do I stop?")
    audible = [frame for frame in frames if max(frame) < 40]
    assert audible
    reply = speech.speak("How do I stop?", manner=GREEDY)
    wanted = speech.codec.wave(torch.tensor(audible).T).numpy()
    assert np.array_equal(reply.audio.samples, wanted)
    assert reply.audio.rate == PlainCodec.rate
    assert reply.first_audio_s is not None


@pytest.mark.parametrize("by", ["voice", "system"])
def test_the_voice_is_named_in_the_instruction(speech: Speech, by: str) -> None:
    instruction = "Perform TTS. Use the UK male voice."
    _, frames = by_hand(speech, instruction, "How do I stop?")
    wanted = speech.codec.wave(torch.tensor([f for f in frames if max(f) < 40]).T).numpy()
    assert len(wanted)
    voice, system = ("UK male", None) if by == "voice" else (None, instruction)
    reply = speech.speak("How do I stop?", voice=voice, system=system, manner=GREEDY)
    assert np.array_equal(reply.audio.samples, wanted)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_nothing_cannot_be_spoken(speech: Speech, text: str) -> None:
    with pytest.raises(BadInput, match="nothing to speak"):
        speech.speak(text)


def test_a_voice_beside_an_instruction_is_refused(speech: Speech) -> None:
    with pytest.raises(BadInput, match="the instruction names the voice"):
        speech.speak("Why?", voice="UK male", system="Perform TTS.")


def test_a_text_beyond_the_context_is_refused_with_both_lengths(speech: Speech) -> None:
    with pytest.raises(ContextExceeded, match=rf"\d+ positions long.*at most {speech.context - 1}"):
        speech.speak("How do I stop two threads? " * 2000)


def test_min_p_and_penalty_reach_the_samplers(speech: Speech) -> None:
    """min_p 1 leaves the largest alone; a penalty forbids the model to repeat itself."""
    wanted = speech.speak("How do I stop?", manner=GREEDY).audio.samples
    only = replace(GREEDY, sound=Sampling(temperature=1.0, min_p=1.0), seed=1)
    assert np.array_equal(speech.speak("How do I stop?", manner=only).audio.samples, wanted)
    penalty = Sampling(temperature=0.0, repetition_penalty=100.0)
    plain = speech.transcribe(CLIP, manner=GREEDY).text
    assert speech.transcribe(CLIP, manner=replace(GREEDY, text=penalty)).text != plain


# ---- opening --------------------------------------------------------------------------------


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nano-colbert is a colbert checkpoint"):
        audio.open("nano-colbert")


def test_a_text_checkpoint_s_folder_is_refused(tmp_path: Path) -> None:
    from lfm2_mm.errors import CheckpointDamaged

    with pytest.raises(CheckpointDamaged, match="speech checkpoint lacks 'lfm'"):
        audio.open(tiny.lfm2_folder(tmp_path))


def test_a_small_checkpoint_takes_one_thread(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audio import speech as module

    before = torch.get_num_threads()
    set_threads(2)
    monkeypatch.setattr(device, "_given", 2)
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    try:
        audio.open(folder, device="cpu", dtype="fp32")
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(module, "SMALL", 0)
        audio.open(folder, device="cpu", dtype="fp32")
        assert torch.get_num_threads() == 2
    finally:
        set_threads(before)


def test_preparing_compiles_what_a_reply_needs_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    compiled = Machine.__init__

    def counted(machine: Machine, text: str) -> None:
        made.append(text)
        compiled(machine, text)

    monkeypatch.setattr(Machine, "__init__", counted)
    plain, prepared = (audio.open(folder, device="cpu", dtype="int8") for _ in range(2))
    plain.codec = prepared.codec = PlainCodec()  # type: ignore[assignment]
    programs.machine.cache_clear()
    prepared.prepare()
    assert made or register_width() is None
    before = len(made)
    found = prepared.converse(manner=GREEDY).reply(CLIP)
    assert found.audio.seconds and len(made) == before
    expected = plain.converse(manner=GREEDY).reply(CLIP)
    assert found.text == expected.text
    assert np.array_equal(found.audio.samples, expected.audio.samples)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_every_dtype_answers(folder: Path, dtype: str) -> None:
    speech = audio.open(folder, device="cpu", dtype=dtype)
    speech.codec = PlainCodec()  # type: ignore[assignment]
    conversation = speech.converse(manner=replace(GREEDY, steps=30))
    assert len(conversation.reply(CLIP).audio.samples) > 0
    assert conversation.reply("Why?").done is None  # not run yet
    assert speech.transcribe(CLIP, manner=GREEDY).text


def test_a_checkpoint_without_a_voice_transcribes_all_the_same(folder: Path) -> None:
    from lfm2_mm.errors import CheckpointDamaged

    speech = audio.open(folder, device="cpu", dtype="fp32")
    assert speech.transcribe(CLIP, manner=GREEDY).text
    with pytest.raises(CheckpointDamaged, match="no voice"):
        speech.speak("Why?")
