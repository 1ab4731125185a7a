"""nano-audio's ears on a data folder made here: what a step hears, alone and in parts; a run."""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import nano_audio_ears
from nano_audio_augment import clicks
from nano_audio_clips import HELD_SPEAKER, RATE, vocabulary, wordings
from nano_audio_ears import Ears, Sounds, ctc_loss, losses
from nano_audio_language import SORRY
from safetensors import safe_open

NOISE = np.random.default_rng(0)
SLOTS = {"coffeeDrink": "latte", "size": "large"}
CLUSTERS = (1, 2, 4)  # the last is held out


def sound(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * NOISE.standard_normal(round(seconds * RATE))
    soundfile.write(path, samples.astype(np.float32), RATE)


def several(path: Path, names: list[str], rate: int, seconds: float) -> None:
    """One recording, and where in it the clips are."""
    size = round(seconds * rate)
    sound(path.with_suffix(".ogg"), len(names) * seconds * rate / RATE)
    places = [[name, n * size, (n + 1) * size] for n, name in enumerate(names)]
    told = {"sample_rate": rate, "clips_name_start_end": places}
    path.write_text(json.dumps(told))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data") / "speech"
    rows = [
        {"file": f"audio/{cluster}.wav", "speaker_cluster": cluster, "slots": SLOTS}
        for cluster in CLUSTERS
    ]
    for row in rows:
        sound(folder / "barista" / str(row["file"]), 1.0)
    (folder / "barista/labels.json").write_text(json.dumps(rows))
    for speaker in ("somebody", HELD_SPEAKER):
        (folder / "fsdd").mkdir(exist_ok=True)
        several(folder / f"fsdd/{speaker}.json", [f"{n}_{speaker}_9" for n in range(10)], RATE, 0.3)
    (folder / "wakewords").mkdir()
    several(folder / "wakewords/computer.json", ["1", "2"], RATE, 0.5)
    for name in ("librispeech_6s/a.ogg", "esc10/rain/a.ogg", "noise/kitchen_60s.ogg"):
        sound(folder / name, 1.0)
    sound(folder / "noise/rir1.flac", 0.1)
    return folder.parent


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nano_audio_speakers writes: customers, and what nobody can answer."""
    folder: Path = tmp_path_factory.mktemp("run")
    row = {"length": RATE, "starts": [0, 0.3, 0.6], "voice": "v"}
    order = {
        "request": "a large latte", "slots": SLOTS, "reply": "one large latte, coming right up.",
    }  # fmt: skip
    other = {"request": "who are you", "slots": {}, "reply": SORRY}
    for name, said in (("spoken", order), ("spoken-others", other), ("spoken-clearly", order)):
        (folder / name).mkdir()
        samples = (3000 * NOISE.standard_normal(4 * RATE)).astype(np.int16)
        samples.tofile(folder / name / "samples.i16")
        rows = [json.dumps(row | said | {"start": n * RATE}) + "\n" for n in range(4)]
        (folder / name / "turns.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("count", [2, 3])
def test_parts_of_a_step_are_its_clips(data: Path, spoken: Path, count: int) -> None:
    whole = Sounds(data, spoken, seed=0).batch(5)
    parts = [Sounds(data, spoken, 0, part=(rank, count)).batch(5) for rank in range(count)]
    for n, clip in enumerate(whole.clips):
        own = parts[n % count].clips[n // count]
        assert own.words == clip.words and np.array_equal(own.samples, clip.samples)
    assert sum(len(part.clips) for part in parts) == len(whole.clips) == 24
    alone = Sounds(data, spoken, 0, part=(0, 1)).batch(5)
    assert torch.equal(alone.mels, whole.mels)


def test_what_is_no_order_is_short_or_long_and_holds_no_word(
    data: Path, spoken: Path, tmp_path: Path
) -> None:
    for word in ("four", "tree"):
        sound(tmp_path / word / "b1_nohash_0.wav", 0.5)
    draw, sounds = random.Random(0), Sounds(data, spoken, seed=0, single=tmp_path)
    clips = [sounds.rest(draw) for _ in range(200)]
    known = [clip for clip in clips if clip.words]
    assert {clip.words for clip in known} == {("computer",), ("who", "are", "you")}
    rest = [clip for clip in clips if not clip.words]
    assert {clip.reply for clip in rest} == {SORRY} and 80 < len(rest) < 160
    assert min(c.seconds for c in rest) < 0.5 and max(c.seconds for c in rest) > 1.5
    for clip in rest:
        heard = sounds.made([clip], draw, noisy=True)
        assert clip.seconds <= 5 and torch.isfinite(heard.mels).all()


@pytest.mark.filterwarnings("error")
def test_clicks_die_away_and_differ() -> None:
    one, again, other = (clicks(random.Random(seed)).samples for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    for seed in range(50):
        samples = clicks(random.Random(seed)).samples
        assert samples.dtype == np.float32 and 0.4 * RATE <= len(samples) <= 3 * RATE
        assert np.isfinite(samples).all() and np.abs(samples).max() > 0.05


def test_a_part_without_a_known_word_teaches_none(data: Path, spoken: Path) -> None:
    """Before the wordings of real orders are chosen, the longest clips may all be such orders."""
    sounds, ears = Sounds(data, spoken, seed=0), Ears(vocabulary())
    batch = sounds.made(sounds.orders, random.Random(0), noisy=True)
    scores, _, lengths = ears(batch.mels, batch.lengths)
    assert ctc_loss(ears, batch, scores, lengths) == 0
    assert all(torch.isfinite(loss) for loss in losses(ears, batch).values())


def test_two_processes_train_and_one_goes_on(
    data: Path, spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("spoken", "spoken-others", "spoken-clearly"):
        (tmp_path / name).symlink_to(spoken / name)
    few = partial(nano_audio_ears.settle_norms, count=2)
    monkeypatch.setattr(nano_audio_ears, "settle_norms", few)
    for steps, processes in ((2, 2), (3, 1)):
        words = ["--data", str(data), "--run", str(tmp_path), "--steps", str(steps)]
        monkeypatch.setattr(sys, "argv", ["ears", *words, "--processes", str(processes)])
        nano_audio_ears.main()
        with safe_open(tmp_path / "ears.safetensors", framework="pt") as state:
            assert state.metadata() == {"step": str(steps)}
            moment = state.get_tensor("exp_avg/by_ctc.weight")
        assert torch.isfinite(moment).all() and moment.abs().max() > 0
    assert capsys.readouterr().out.count("held out: slots ") == 2


def test_real_orders_get_a_wording_with_their_labels(data: Path, spoken: Path) -> None:
    sounds, ears = Sounds(data, spoken, seed=0), Ears(vocabulary())
    nano_audio_ears.force(ears, sounds)
    assert len(sounds.forced) == 2 and len(sounds.held) == 1
    assert all(words in wordings(SLOTS) for words in sounds.forced)
