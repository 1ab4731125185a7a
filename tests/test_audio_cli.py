"""transcribe, speak and talk at the command line: keys, exit codes, files, and what is no sound."""

from __future__ import annotations

import io
import json
import unicodedata
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from apps import cli
from lfm2_mm.types import Audio
from tests import tiny_audio, tiny_codecs

RATE = 16_000
Asked = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny-speech"
    loud = {tiny_audio.IM_END: 1.2, tiny_audio.AUDIO_START: 3.0}
    tiny_audio.speech_folder(folder, seed=10, loud=loud, **tiny_audio.SMALL)
    sizes = {**tiny_codecs.SMALL_DETOKENIZER, "codebooks": 3, "codebook_size": 40}
    tiny_codecs.detokenizer_folder(folder, **sizes)
    return str(folder)


@pytest.fixture
def question(tmp_path: Path) -> str:
    return sound(tmp_path / "question.wav")


@pytest.fixture
def asked(model: str, capsys: pytest.CaptureFixture[str]) -> Asked:
    """Runs a verb with --json; returns the document. Nothing else may stand on stdout."""

    def ask(*argv: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert cli.main([*argv, *common(model), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def failed(model: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a verb that must fail; returns the one line of the error."""

    def fail(*argv: str, code: int = 1) -> str:
        capsys.readouterr()
        assert cli.main([*argv, *common(model)]) == code
        told = capsys.readouterr()
        assert told.out == ""
        assert code == 2 or told.err.count("\n") == 1, told.err
        return told.err

    return fail


def common(model: str) -> list[str]:
    return ["--model", model, "--dtype", "fp32", "--device", "cpu", "--max-tokens", "25"]


def sound(path: Path, seconds: float = 0.7, rate: int = RATE, seed: int = 1) -> str:
    return str(Audio(tiny_audio.recording(seconds, rate, seed), rate).save(path))


# ---- what is asked and what comes -----------------------------------------------------------


def test_a_transcript_and_its_keys(asked: Asked, question: str) -> None:
    told = asked("transcribe", question)
    assert told["path"] == question and told["text"]
    assert told["duration_s"] == pytest.approx(0.7)
    assert told["real_time_factor"] > 0


def test_text_is_all_that_is_printed(
    asked: Asked, question: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = asked("transcribe", question)["text"]
    assert cli.main(["transcribe", question, *common(model)]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == "".join(c for c in text if unicodedata.category(c) != "Cc")


def test_several_recordings_are_a_list_in_order(asked: Asked, tmp_path: Path) -> None:
    names = [sound(tmp_path / f"{n}.flac", seed=n) for n in (3, 1, 2)]
    (tmp_path / "no.wav").write_text("no sound")
    names.insert(1, str(tmp_path / "no.wav"))
    told = asked("transcribe", *names)
    assert [entry["path"] for entry in told] == names
    assert "error" in told[1] and "text" not in told[1]
    alone = [asked("transcribe", name)["text"] for name in names if name != names[1]]
    assert [entry["text"] for entry in told if "text" in entry] == alone


def test_nothing_that_can_be_read_is_a_failure(asked: Asked, tmp_path: Path) -> None:
    told = asked("transcribe", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), code=1)
    assert ["error" in entry for entry in told] == [True, True]


def test_speaking_writes_a_file_and_tells_its_length(asked: Asked, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    told = asked("speak", "How do I stop?", "-o", str(path), "--temperature", "0")
    assert told["path"] == str(path)
    written = Audio.open(path)
    assert told["duration_s"] == pytest.approx(written.seconds) and written.seconds > 0
    assert told["first_audio_s"] > 0 and told["real_time_factor"] > 0


def test_a_text_may_be_piped_in(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.wav", tmp_path / "b.wav"
    asked("speak", "How do I stop?", "-o", str(first), "--temperature", "0")
    monkeypatch.setattr("sys.stdin", io.StringIO("How do I stop?"))
    asked("speak", "-o", str(second), "--temperature", "0")
    assert first.read_bytes() == second.read_bytes()


def test_an_answer_is_text_and_sound(asked: Asked, question: str, tmp_path: Path) -> None:
    path = tmp_path / "answer.wav"
    told = asked("talk", question, "-o", str(path))
    assert told["text"] and told["path"] == str(path)
    assert told["duration_s"] == pytest.approx(Audio.open(path).seconds)
    assert told["first_audio_s"] > 0 and told["real_time_factor"] > 0


def test_several_questions_are_conversations_of_their_own(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    names = [
        sound(tmp_path / "a.wav", seed=1),
        sound(tmp_path / "b.wav", seed=2),
        sound(tmp_path / "more/a.wav", seed=3),
    ]
    out = tmp_path / "answers"
    told = asked("talk", *names, "-o", str(out), "--temperature", "0")
    assert [Path(entry["path"]).name for entry in told] == ["a.wav", "b.wav", "a-2.wav"]
    assert [entry["turn"] for entry in told] == [1, 1, 1]
    for name, entry in zip(names, told, strict=True):
        alone = asked("talk", name, "-o", str(tmp_path / "alone.wav"), "--temperature", "0")
        assert alone["text"] == entry["text"]
        assert (tmp_path / "alone.wav").read_bytes() == Path(entry["path"]).read_bytes()


def test_a_question_is_never_overwritten(
    asked: Asked, failed: Callable[..., str], question: str, tmp_path: Path
) -> None:
    before = Path(question).read_bytes()
    told = asked("talk", question, "-o", str(tmp_path))
    assert Path(told["path"]) == tmp_path / "question-2.wav"
    assert "the recording itself" in failed("talk", question, "-o", question)
    assert Path(question).read_bytes() == before


def test_history_carries_a_conversation_on(asked: Asked, tmp_path: Path) -> None:
    questions = [sound(tmp_path / f"{n}.wav", seed=n) for n in (1, 2)]
    history, out = str(tmp_path / "talk.history"), str(tmp_path / "out.wav")
    turns = [asked("talk", q, "-o", out, "--history", history) for q in questions]
    assert [turn["turn"] for turn in turns] == [1, 2]
    third = asked("talk", questions[0], "-o", out, "--history", history)
    assert third["turn"] == 3
    alone = asked("talk", questions[0], "-o", out)
    assert alone["turn"] == 1


def test_a_seed_settles_an_answer(asked: Asked, question: str, tmp_path: Path) -> None:
    def answer(seed: int) -> bytes:
        path = tmp_path / f"{seed}.wav"
        asked("talk", question, "-o", str(path), "--seed", str(seed))
        return path.read_bytes()

    assert answer(1) == answer(1) != answer(2)


# ---- what is no sound, or cannot be done ----------------------------------------------------


def eight_bit(path: Path) -> None:
    samples = tiny_audio.recording(0.7, RATE, 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(RATE)
        file.writeframes((samples * 127 + 128).astype(np.uint8).tobytes())


def seven_channels(path: Path) -> None:
    samples = tiny_audio.recording(0.7, RATE, 1)
    soundfile.write(path, np.stack([samples] * 7, 1), RATE)


@pytest.mark.parametrize("make", [eight_bit, seven_channels])
def test_odd_kinds_are_heard(asked: Asked, tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "odd.wav"
    make(path)
    assert asked("transcribe", str(path))["text"]
    assert asked("talk", str(path), "-o", str(tmp_path / "out.wav"))["text"]


def test_a_wrong_extension_is_no_obstacle(asked: Asked, tmp_path: Path) -> None:
    right = sound(tmp_path / "right.flac")
    wrong = tmp_path / "wrong.mp3"
    wrong.write_bytes(Path(right).read_bytes())
    assert asked("transcribe", str(wrong))["text"] == asked("transcribe", right)["text"]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.float32), RATE)


def one_sample(path: Path) -> None:
    soundfile.write(path, np.zeros(1, np.float32), RATE)


def not_a_number(path: Path) -> None:
    samples = tiny_audio.recording(0.7, RATE, 1)
    samples[5000] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def truncated(path: Path) -> None:
    sound(path)
    path.write_bytes(path.read_bytes()[:9000])


def text(path: Path) -> None:
    path.write_text("This is a letter, not a recording. " * 50)


def three_hours(path: Path) -> None:
    """A WAV of 3 hours of silence, 8 bit at 8 kHz; most file systems keep it in no space."""
    size = 3 * 3600 * 8000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"")
    header = bytearray(path.read_bytes())
    header[4:8] = (36 + size).to_bytes(4, "little")
    header[40:44] = size.to_bytes(4, "little")
    with path.open("wb") as handle:
        handle.write(header)
        handle.truncate(len(header) + size)


BAD = {
    empty: "the file is empty",
    no_samples: "no samples",
    one_sample: "at least 20 ms",
    not_a_number: "NaN",
    truncated: "cut off",
    text: "no recording",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
@pytest.mark.parametrize("verb", ["transcribe", "talk"])
def test_bad_recordings_are_told_in_one_line(
    failed: Callable[..., str], tmp_path: Path, verb: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "bad.wav"
    make(path)
    out = ["-o", str(tmp_path / "out.wav")] if verb == "talk" else []
    assert BAD[make] in failed(verb, str(path), *out)
    assert not (tmp_path / "out.wav").exists()


def test_three_hours_are_too_long_to_answer(failed: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    three_hours(path)
    told = failed("talk", str(path), "-o", str(tmp_path / "out.wav"))
    assert "180 minutes" in told and "transcribe" in told


def test_two_minutes_are_the_most_of_a_turn(failed: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(150 * 8000, np.int16), 8000)
    assert "120 s" in failed("talk", str(path), "-o", str(tmp_path / "out.wav"))


def test_a_failed_question_loses_no_other(asked: Asked, tmp_path: Path) -> None:
    good, bad = sound(tmp_path / "good.wav"), tmp_path / "bad.wav"
    text(bad)
    told = asked("talk", str(bad), good, "-o", str(tmp_path / "out"))
    assert "error" in told[0] and Path(told[1]["path"]).is_file()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["speak", "Hi", "-o", "out.doc"], "must end in"),
        (["speak", "  ", "-o", "out.wav"], "nothing to speak"),
        (["speak", "Hi"], "required: -o"),
        (["talk", "a.wav", "b.wav", "-o", "x", "--history", "h"], "one recording at a time"),
        (["talk", "a.wav", "-o", "out.xyz"], "must end in"),
        (["transcribe"], "FILE"),
        (["talk", "a.wav", "-o", "b.wav", "--max-tokens", "0"], "whole number"),
    ],
)
def test_wrong_usage(failed: Callable[..., str], argv: list[str], told: str) -> None:
    assert told in failed(*argv, code=2)


def test_places_that_cannot_be_written_are_told_before_the_work(
    failed: Callable[..., str], question: str, tmp_path: Path
) -> None:
    missing = str(tmp_path / "no" / "out.wav")
    assert "does not exist" in failed("speak", "Hi", "-o", missing)
    assert "does not exist" in failed("talk", question, "-o", missing)
    history = str(tmp_path / "no" / "history")
    out = str(tmp_path / "out.wav")
    assert "does not exist" in failed("talk", question, "-o", out, "--history", history)
    assert "need a folder" in failed("talk", question, question, "-o", question)


def test_a_history_that_is_none_is_told(
    failed: Callable[..., str], question: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.wav")
    assert "is no conversation" in failed("talk", question, "-o", out, "--history", question)
    assert "is no file" in failed("talk", question, "-o", out, "--history", str(tmp_path))


def test_a_text_beyond_the_context_is_told_with_both_lengths(
    failed: Callable[..., str], tmp_path: Path
) -> None:
    told = failed("speak", "How do I stop two threads? " * 900, "-o", str(tmp_path / "out.wav"))
    assert "positions long" in told and "at most 4095" in told
