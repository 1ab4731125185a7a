"""The vision checkpoint in the package: its files, transformers beside it, a floor for answers."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from random import Random

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from nano_vl_heldout import Item, Reader, letters_right, page_items, scene_items
from nano_vl_scenes import CANNOT_TELL, UNTOLD, Gallery, Scenes, photograph
from nano_vl_words import FONTS, HELD_OUT_FONTS, Lexicon
from PIL import Image

from lfm2_mm.checkpoint import locate
from lfm2_mm.weights import count_parameters

FOLDER = locate("nano-vl", fetch=False)
needs_fonts = pytest.mark.skipif(
    not all((FONTS / f"{name}.ttf").is_file() for name in HELD_OUT_FONTS),
    reason="the fonts that nano-vl is measured with are not installed",
)


@pytest.fixture(scope="module")
def reader() -> Reader:
    from nano_vl_files import open_folder

    return Reader(*open_folder(FOLDER))


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(Gallery(Path("unused")), held_out=True)  # shapes need no files


def test_it_is_small_and_has_a_card() -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 16_000_000
    assert count_parameters(FOLDER) < 8_000_000
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for word in ("Apache-2.0", "Tatoeba", "Noto Emoji", "grey picture", "Limits", "photographs"):
        assert word in card


def test_the_weights_are_those_of_the_card() -> None:
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_transformers_gives_the_same_answers(reader: Reader, scenes: Scenes) -> None:
    """Its own processor and model, greedy, over scenes of several sizes and a false photograph."""
    items = [*scene_items(scenes, "what", 4, seed=5), *scene_items(scenes, "how many", 2, seed=5)]
    drawing, ((question, answer, _), *_) = photograph(Random(1), 256, 192)
    items.append(Item(drawing.shown(256, 192), question, answer))
    assert reader.answers(items, length=24) == by_transformers(items, 24)


def by_transformers(items: list[Item], length: int) -> list[str]:
    from transformers import AutoProcessor, Lfm2VlForConditionalGeneration

    processor = AutoProcessor.from_pretrained(FOLDER)
    model, found = Lfm2VlForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    said = []
    for item in items:
        content = [{"type": "image"}, {"type": "text", "text": item.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        picture = Image.fromarray(item.shown.pixels)
        given = processor(images=picture, text=text, return_tensors="pt")
        out = model.generate(**given, max_new_tokens=length, do_sample=False)
        new = out[0, given.input_ids.shape[1] :]
        said.append(str(processor.tokenizer.decode(new, skip_special_tokens=True)))
    return said


# A floor well under the card's figures: a damaged file falls below it.


def right(reader: Reader, items: list[Item]) -> float:
    said = reader.answers(items)
    return sum(a == item.answer for a, item in zip(said, items, strict=True)) / len(items)


@pytest.mark.parametrize(
    ("kind", "floor"),
    [
        ("what", 0.8),
        ("how many", 0.75),
        ("which colour", 0.8),
        ("where", 0.85),
        ("yes or no", 0.85),
    ],
)
def test_it_answers_about_scenes_it_never_saw(
    reader: Reader, scenes: Scenes, kind: str, floor: float
) -> None:
    items = scene_items(scenes, kind, 40, seed=11)
    seen = right(reader, items)
    assert seen > floor
    assert seen > right(reader, [item.grey() for item in items]) + 0.2


@needs_fonts
def test_it_reads_more_with_more_tokens(reader: Reader) -> None:
    words = ("harbour", "quiet", "lantern", "Fig", "clover", "Summit", "4711", "velvet")
    lexicon = Lexicon(words, HELD_OUT_FONTS)
    read = []
    for tokens in (16, 256):
        items = page_items(lexicon, 32, tokens, 20, seed=2)
        said = reader.answers(items)
        letters = [letters_right(a, i.answer) for a, i in zip(said, items, strict=True)]
        read.append(sum(letters) / len(letters))
    assert read[1] > read[0] + 0.2


def test_it_is_modest_about_photographs(reader: Reader) -> None:
    data = os.environ.get("LFM2_MM_DATA")
    if not data:
        pytest.skip("LFM2_MM_DATA does not name the data folder")
    from nano_vl_heldout import photograph_items

    said = reader.answers(photograph_items(Path(data)))
    assert said.count(CANNOT_TELL) > len(said) / 2
    assert len(said) == 3 * len(UNTOLD)
