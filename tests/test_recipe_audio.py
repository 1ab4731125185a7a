"""The nano-audio recipe: what it says and hears, how lines are laid, and the folder it writes."""

from __future__ import annotations

import json
import lzma
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from nano_audio_augment import augment
from nano_audio_clips import RATE, Clip, commands, strung, trimmed, vocabulary, wordings
from nano_audio_detokenizer import Detokenizer, Grains, draw_batch
from nano_audio_dialogue import INTERLEAVED, N_AUDIO, SPOKEN, TEXT, Dialogue, Positions
from nano_audio_files import save_folder
from nano_audio_heldout import plain, read_codes, slots_right, slots_told
from nano_audio_joined import Whole, begin
from nano_audio_language import SORRY, draw_order, draw_reply, lexicon, words_of
from nano_audio_model import settings
from nano_audio_mouth import Lines, Mix, Mouth, losses, train
from nano_audio_speakers import other_sentences
from nano_audio_tokenizer import make_tokenizer
from nano_audio_units import CODES, PAUSES, Units
from nano_audio_voice import FRAME, sound
from safetensors.torch import load_file

import audio
from lfm2_mm.errors import BadInput
from lfm2_mm.types import Audio

HALVES = ((0, 2), (1, 2))


@pytest.fixture(scope="module")
def units() -> Units:
    """A voice of chance: every word has two to six frames."""
    draw = np.random.default_rng(0)

    def unit(frames: int) -> np.ndarray:
        return np.concatenate(
            [draw.integers(0, 17, (frames, 1)), draw.integers(0, CODES, (frames, 3))], 1
        )

    codes = {word: unit(int(draw.integers(2, 7))) for word in lexicon()}
    codes |= {mark: unit(count) for mark, count in PAUSES.items()}
    means = draw.standard_normal((3, CODES, 294), np.float32)
    return Units(codes, means, np.full(294, -3, np.float32))


@pytest.fixture(scope="module")
def lines(units: Units) -> Lines:
    tokenizer = make_tokenizer([w for w in vocabulary() if w[0] != "<"])
    return Lines(Dialogue(tokenizer, units), ["where is the embassy", "tom likes tea"], seed=3)


def test_the_laid_wave_is_the_voice_s(units: Units) -> None:
    codes = units.say("one large latte, coming right up.")
    laid = Grains(units).sound(codes)[FRAME:-FRAME]
    whole = sound(units.frames(codes))
    assert np.abs(laid - whole).max() <= 1e-5 * np.abs(whole).max()


def test_a_crop_is_late_by_half_a_window_less_a_hop(units: Units) -> None:
    """The first crop that begins with its text is the whole wave, later by 960 samples."""
    grains = Grains(units)
    codes, waves = draw_batch(units, grains, seed=1, step=0)
    assert codes.shape == (12, 16, 4) and waves.shape == (12, 16 * FRAME + 960)
    alone = sound(units.frames(codes[0].numpy()))
    inside = slice(3 * FRAME, 14 * FRAME)  # what lies before the crop rings into its beginning
    later = waves[0].numpy()[960:][inside]
    assert np.abs(later - alone[inside]).max() <= 1e-4 * np.abs(alone).max()


def test_a_word_is_written_no_later_than_it_sounds(lines: Lines) -> None:
    dialogue, draw = lines.dialogue, random.Random(5)
    for _ in range(50):
        reply = draw_reply(draw)
        tokens, frames = dialogue.aligned(reply)
        assert tokens[-1] == dialogue.text_end
        start = 0
        for word in words_of(reply):
            assert tokens[start // N_AUDIO] == dialogue.ids(word)[0]
            start += len(dialogue.units.codes[word])
        assert start == len(frames)
        shown = dialogue.tokenizer.decode([t for t in tokens if t != dialogue.pad])
        assert shown.strip() == reply


def test_positions_are_told_apart(lines: Lines) -> None:
    made = lines.dialogue.opening(INTERLEAVED)
    lines.exchange(made, random.Random(0))
    assert len(made.kinds) == len(made.tokens) == len(made.judged)
    assert made.kinds.count(SPOKEN) == len(made.frames)
    assert made.kinds[-1] == TEXT and made.tokens[-1] == lines.dialogue.im_end


def test_a_reply_repeats_every_slot() -> None:
    draw = random.Random(1)
    for _ in range(200):
        turn = draw_order(draw)
        assert slots_told(turn.reply) == dict(turn.slots)
        assert all(slots_right(turn.reply, turn.slots))
        assert tuple(turn.request.split()) in wordings(turn.slots)
    assert slots_told(SORRY) == {}
    assert slots_right("one latte with soy milk, coming right up.", {"milkAmount": "milk"}) == [
        False
    ]


def test_codes_are_read_back(units: Units) -> None:
    draw = random.Random(2)
    noise = np.random.default_rng(0)
    for _ in range(5):
        text = draw_reply(draw)
        codes = units.say(text)
        assert [w.lower() for w in read_codes(units, codes)] == plain(text)
        wrong = noise.random(codes.shape) < 0.1
        spoiled = np.where(wrong, noise.integers(0, 17, codes.shape), codes)
        assert [w.lower() for w in read_codes(units, spoiled)] == plain(text)


def test_single_words_are_digits_or_strange_and_some_speakers_are_held_out(tmp_path: Path) -> None:
    said = {"zero": ("a0", "1b", "ff"), "nine": ("1b",), "stop": ("a0", "1b"), "_noise_": ("1b",)}
    for word, speakers in said.items():
        (tmp_path / word).mkdir()
        for speaker in speakers:
            path = tmp_path / word / f"{speaker}_nohash_0.wav"
            soundfile.write(path, np.full(RATE, 0.1, np.float32), RATE)
    train, held, others = commands(tmp_path)
    assert [c.name for c in train] == ["9_1b_0", "0_1b_0", "0_ff_0"]
    assert [(c.words, c.name) for c in held] == [(("zero",), "0_a0_0")]
    assert [(c.words, c.name, c.reply) for c in others] == [(None, "stop_1b_0", SORRY)]
    first = [strung(train, random.Random(seed)).words for seed in range(200)]
    nines = sum(words is not None and words[0] == "nine" for words in first)
    assert 70 < nines < 130, "as often as zero, though said by one speaker of two"
    with pytest.raises(BadInput, match="holds no digits"):
        commands(tmp_path / "stop")


def test_a_word_is_cut_out_of_the_silence_around_it() -> None:
    samples = np.zeros(RATE, np.float32)
    samples[6000:9000] = 0.3 * np.sin(np.arange(3000) / 9)
    cut = trimmed(samples)
    assert 3000 < len(cut) < 5200 and np.abs(cut).sum() == pytest.approx(np.abs(samples).sum())
    assert len(trimmed(np.zeros(RATE, np.float32))) == RATE


def test_augmenting_tells_when_the_words_begin() -> None:
    click = np.zeros(RATE, np.float32)
    click[0] = 1.0
    for seed in range(20):
        draw = random.Random(seed)
        samples, slower, later = augment(Clip(click, ()), draw, [Clip(click * 0, ())], [click[:9]])
        assert abs(int(np.abs(samples).argmax()) - later * RATE) <= 1
        assert 0.87 < slower < 1.15 and np.abs(samples).max() <= 0.901


def test_what_is_measured_is_not_said_in_training(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for name in ("clinc150", "tatoeba_english"):
        texts = [f"who sees {letters(n % 2500)}?" for n in range(3000)]  # 500 of them twice
        texts += ["What is your name?", "no"]  # the counter's own, and too short
        with lzma.open(tmp_path / f"text/{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    train, held, more = map(set, other_sentences(tmp_path))
    assert min(len(train), len(held), len(more)) > 100
    assert not (train & held or train & more or held & more)
    assert train | held | more == {f"who sees {letters(n)}" for n in range(2500)}


def letters(number: int) -> str:
    return "".join(chr(97 + int(digit)) for digit in f"{number:04}")


def test_a_batch_hangs_on_seed_and_step_alone(lines: Lines) -> None:
    first, _ = lines.batch(6, Mix(whole=0.3))
    lines.batch(7, Mix())
    again, _ = lines.batch(6, Mix(whole=0.3))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.listened, again.listened)
    parts = [Lines(lines.dialogue, lines.others, 3, part).batch(6, Mix()) for part in HALVES]
    whole, _ = lines.batch(6, Mix())
    assert sum(part.tokens.shape[0] for part, _ in parts) == len(whole.tokens)
    assert sum(int(part.mask.sum()) for part, _ in parts) == int(whole.mask.sum())
    other, _ = Lines(lines.dialogue, lines.others, seed=4).batch(6, Mix(whole=0.3))
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


def test_a_resumed_run_is_one_that_was_not_interrupted(lines: Lines, tmp_path: Path) -> None:
    config = settings(lines.dialogue.tokenizer_size)

    def after(folder: Path, *stops: int) -> torch.Tensor:
        for stop in stops:
            mouth = train(lines, config, tmp_path / folder, 4, seed=0, stop=stop)
        return mouth.frames.weight.detach()

    assert torch.equal(after(Path("whole"), 4), after(Path("twice"), 2, 4))


def test_padding_changes_no_loss(lines: Lines) -> None:
    from nano_audio_mouth import Packed

    mouth = Mouth(settings(lines.dialogue.tokenizer_size), 0).eval()
    turns = [lines.read_aloud(random.Random(n)) for n in range(2)]
    draw = np.random.default_rng

    def of(some: list[Positions]) -> dict[str, float]:
        packed = Packed(some, draw(0), 0)
        packed.listened = packed.codes
        return {k: v.item() for k, v in losses(mouth, packed, draw(1), share=1.0).items()}

    counts = [sum(t.judged[1:]) for t in turns]
    assert counts[0] != counts[1]
    one, two, both = of(turns[:1]), of(turns[1:]), of(turns)
    frames = [len(t.frames) for t in turns]
    mean = (one["book0"] * frames[0] + two["book0"] * frames[1]) / sum(frames)
    assert both["book0"] == pytest.approx(mean, rel=1e-4)


def test_the_folder_opens_as_a_published_one_does(lines: Lines, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Whole(settings(lines.dialogue.tokenizer_size), lines, 0).eval()
    folder = save_folder(whole, Detokenizer().eval(), lines, tmp_path / "checkpoint")
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 18_000_000
    speech = audio.open(folder, dtype="fp32", device="cpu")
    noise = Audio(np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1, RATE)
    from audio.conversation import Manner

    with speech.converse(manner=Manner(steps=12)).reply(noise) as reply:
        assert reply.audio.seconds > 0
    spoken = speech.speak("Hello zork", manner=Manner(steps=6))
    assert spoken.spelled == ("zork",)
    assert "[?]" in speech.tokenizer.decode(speech.tokenizer.encode("a zork", special=False))


def test_a_finished_mouth_is_gone_on_with(lines: Lines, tmp_path: Path) -> None:
    """What a folder gives back is what was trained, to bfloat16's rounding, and unsharpened."""
    config = settings(lines.dialogue.tokenizer_size)
    whole, voice = Whole(config, lines, 0).eval(), Detokenizer().eval()
    trained = {k: t.clone() for k, t in whole.mouth.state_dict().items()}
    adapter = whole.encoder.out.weight.detach().clone()
    sounds = voice.emb.weight.detach().clone()
    folder = save_folder(whole, voice, lines, tmp_path / "checkpoint")
    again, other = Whole(config, lines, 1), Detokenizer()
    begin(again, folder)
    for name, tensor in again.mouth.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=2**-8, atol=0)
    torch.testing.assert_close(again.encoder.out.weight, adapter, rtol=2**-8, atol=0)
    other.load_published(load_file(folder / "audio_detokenizer" / "model.safetensors"))
    torch.testing.assert_close(other.emb.weight, sounds, rtol=2**-8, atol=0)
