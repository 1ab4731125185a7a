"""The nano-vl recipe: what it draws and says of it. A run of it: test_recipe_vl_run.py."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from nano_vl_batches import Sheet
from nano_vl_draw import Drawing
from nano_vl_heldout import (
    SCENE_QUESTIONS,
    letters_right,
    page_items,
    scene_items,
    words_right,
)
from nano_vl_scenes import (
    PAIRS,
    PLACES,
    UNNAMED,
    Gallery,
    Scenes,
    Thing,
    about,
    ask,
    bars,
    clock,
    flag,
    pair_held_out,
)
from nano_vl_texts import FIELDS, Layout, aligned, form, lines, window
from nano_vl_tokens import IMAGE, Scribe, make_tokenizer, words_of
from nano_vl_words import (
    CHARACTERS,
    CLASS_OF,
    HELD_OUT_FONTS,
    TRAINING_FONTS,
    Lexicon,
    font,
    is_held_out,
    load_words,
    split,
)
from PIL import Image

from tests import vl_data
from tests.vl_data import UNSEEN, WORDS

pytestmark = pytest.mark.skipif(
    not vl_data.FONTS_ARE_HERE, reason="the fonts that nano-vl learns to read are not installed"
)
LEXICON = Lexicon(WORDS, TRAINING_FONTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vl_data.folder(tmp_path_factory.mktemp("data"))


# What is drawn is what is noted


@pytest.mark.parametrize("size", [14, 23, 40])
@pytest.mark.parametrize("name", [TRAINING_FONTS[0], TRAINING_FONTS[19], HELD_OUT_FONTS[3]])
def test_a_character_lies_where_its_box_says(name: str, size: int) -> None:
    """All ink of a letter is in its box, give or take what italics and rounding overhang."""
    face = font(name, size)
    for character in "AgilWmy8%":
        drawing = Drawing(Image.new("RGB", (160, 96), "white"))
        drawing.write(40, 20, character, face, (0, 0, 0))
        ((box, label),) = drawing.characters
        assert CHARACTERS[label - 1] == character
        ys, xs = np.nonzero(np.asarray(drawing.image.convert("L")) < 128)
        slack = 1 + size / 16
        assert box[0] - slack <= xs.min() and xs.max() < box[2] + slack
        assert box[1] - 1 <= ys.min() and ys.max() < box[3] + 1


def test_a_line_is_as_wide_as_its_characters() -> None:
    for name in TRAINING_FONTS:
        face = font(name, 24)
        drawing = Drawing(Image.new("RGB", (400, 64), "white"))
        box = drawing.write(5, 5, "kettle 42", face, (0, 0, 0))
        assert abs(box[2] - 5 - face.width("kettle 42")) <= 3  # kerning


def test_labels_follow_the_picture_when_it_is_shown_smaller() -> None:
    drawing = Drawing(Image.new("RGB", (256, 128), "white"))
    drawing.write(32, 32, "O", font(TRAINING_FONTS[0], 64), (0, 0, 0))
    whole, half = drawing.shown(128, 256), drawing.shown(64, 128)
    assert whole.cells.shape == (128, 8) and half.cells.shape == (32, 8)
    marked = [np.count_nonzero(shown.cells == CLASS_OF["O"]) for shown in (whole, half)]
    assert marked[0] == pytest.approx(4 * marked[1], rel=0.3)


def test_patches_are_those_of_the_product() -> None:
    from lfm2_mm import Image as Picture
    from vision.crops import cut, normalised
    from vision.tiling import plan_tiles

    drawing = window(Random(3), LEXICON, 256, 320)
    plan = plan_tiles(256, 320)
    (patches,) = cut(Picture.open(np.asarray(drawing.image)), plan)
    theirs = normalised(patches, plan.rule).numpy()
    np.testing.assert_allclose(drawing.shown(256, 320).patches(), theirs, atol=1e-6)


def test_a_sheet_is_cut_with_the_labels_of_its_drawing() -> None:
    drawing = window(Random(1), LEXICON, 128, 192)
    sheet = Sheet.of(drawing)
    whole = drawing.shown(128, 192)
    same = sheet.cut(0, 0, 192, 128)
    np.testing.assert_array_equal(same.patches(), whole.patches())
    # Boxes were rounded to pixels: a cell whose middle lies on an edge may fall to its neighbour.
    assert (same.cells == whole.cells).mean() > 0.9
    corner = sheet.cut(64, 32, 128, 96)
    rows = same.cells.reshape(8, 12, 8)[2:, 4:].reshape(-1, 8)
    np.testing.assert_array_equal(corner.cells, rows)
    assert (whole.cells > 0).mean() > 0.3  # windows are full of text


# What is held out is not met in training


def test_held_out_words_and_fonts_are_apart() -> None:
    assert UNSEEN and not set(WORDS) & set(UNSEEN)
    assert is_held_out(UNSEEN[0].upper()) and not is_held_out(WORDS[0].capitalize())
    assert not set(TRAINING_FONTS) & set(HELD_OUT_FONTS)
    assert not any("NotoSans" in f or "FreeSerif" in f for f in TRAINING_FONTS)
    many = [f"word{i}" for i in range(5000)]
    assert 0.08 < len(split(many)[1]) / len(many) < 0.12


def test_training_never_draws_what_is_held_out(data: Path) -> None:
    words, unseen = load_words(data)
    assert set(words) == set(WORDS) and set(unseen) == set(UNSEEN)
    gallery = Gallery(data)
    lexicon = Lexicon(words, TRAINING_FONTS)
    for i in range(60):
        _, things = Scenes(gallery).shapes(Random(i), 64, 64)
        assert not any(pair_held_out(t.shape, t.colour) for t in things if t.colour)
        _, things = Scenes(gallery).pictures(Random(i), 64, 64)
        assert not any(is_held_out(t.shape) for t in things)
        _, turns = lines(Random(i), lexicon, 128, 256, Layout())
        written = {piece.lower() for _, text, _ in turns for piece in text.split()}
        assert not written & set(unseen)
    for i in range(20):
        _, things = Scenes(gallery, held_out=True).shapes(Random(i), 64, 64)
        assert any(pair_held_out(t.shape, t.colour) for t in things if t.colour)
    assert 0 < sum(pair_held_out(*pair) for pair in PAIRS) < len(PAIRS) / 5


# Answers are true


def test_answers_about_scenes_are_true() -> None:
    red, blue = Thing("circle", "red", 0), Thing("circle", "blue", 8)
    star = Thing("star", "green", 1)
    things = [red, blue, star]
    expected = {
        "How many shapes are there?": "three", "How many circles are there?": "two",
        "How many stars are there?": "one", "Which colour is the star?": "green",
        "What color is the star?": "green", "Where is the red circle?": "top left",
        "Where is the blue circle?": "bottom right", "What is at the top?": "a green star",
        "Is there a blue star?": "no", "Is there a red circle?": "yes",
        "Is the red circle left of the green star?": "yes",
        "Is the blue circle above the red circle?": "no",
    }  # fmt: skip
    said: dict[str, str] = {}
    for i in range(4000):
        for kind in SCENE_QUESTIONS.values():
            turn = ask(Random(f"{i}{kind}"), things, kind)
            if turn:
                assert said.setdefault(turn[0], turn[1]) == turn[1]
    assert {question: said[question] for question in expected} == expected
    for question, answer in said.items():
        if question.startswith("Where is the") and not answer.startswith("There is no"):
            assert answer in PLACES


def test_a_colour_without_a_name_is_counted_but_not_spoken_of() -> None:
    red, strange = Thing("star", "red", 0), Thing("star", UNNAMED, 8)
    told: dict[str, set[str]] = {}
    for i in range(1000):
        for kind in SCENE_QUESTIONS.values():
            if turn := ask(Random(f"{i}{kind}"), [red, strange], kind):
                told.setdefault(turn[0], set()).add(turn[1])
    assert told["How many stars are there?"] == told["How many shapes are there?"] == {"two"}
    assert told["How many red shapes are there?"] == {"one"}
    assert UNNAMED not in str(told) and "What is this?" not in told
    for question in ("What is at the bottom right?", "Which colour is the star?"):
        assert question not in told
    drawn = [Scenes(Gallery(Path())).shapes(Random(i), 32, 32)[1] for i in range(200)]
    assert any(thing.colour == UNNAMED for things in drawn for thing in things)


def test_questions_are_about_the_thing_they_name() -> None:
    red, blue = Thing("ring", "red", 0), Thing("ring", "blue", 8)
    star = Thing("star", "green", 1)
    wanted = {
        "What is at the top?": star, "What is at the top left?": red, "Is there a red star?": None,
        "Where is the blue ring?": blue, "Which colour is the star?": star,
        "Is there a red ring?": red, "Is the red ring left of the blue ring?": red,
        "How many shapes are there?": None,
    }  # fmt: skip
    assert {question: about(question, [red, blue, star]) for question in wanted} == wanted


def test_yes_is_as_frequent_as_no(data: Path) -> None:
    for kind in ("yes or no", "left or above"):
        items = scene_items(Scenes(Gallery(data)), kind, 60, seed=3)
        assert Counter(item.answer for item in items) == {"yes": 30, "no": 30}
    answers = Counter(
        turn[1]
        for i in range(1500)
        if (turn := ask(Random(i), Scenes(Gallery(data)).shapes(Random(i), 32, 32)[1], "is_there"))
    )
    assert 0.42 < answers["yes"] / sum(answers.values()) < 0.58


def test_letters_are_looked_for_where_they_lie(data: Path) -> None:
    """The token of the picture noted for a letter holds a cell with that letter."""
    scribe = Scribe(make_tokenizer(words_of(["Read the text."])))
    found = Counter[bool]()
    for i in range(40):
        drawing, turns = lines(Random(i), LEXICON, 192, 256, Layout(least=20))
        shown = drawing.shown(192, 256)
        ids, answers = scribe.turns(turns, picture=True)
        looks = scribe.looks(turns, shown.places)
        assert len(looks) == len(ids)
        for n, (token, said, look) in enumerate(zip(ids, answers, looks, strict=True)):
            if token == scribe.newline[0] and said:  # the next line is looked for
                assert look == looks[n + 1]
            elif look >= 0:
                row, column = divmod(look, 8)
                here = shown.cells.reshape(12, 16, 8)[2 * row :, 2 * column :][:2, :2]
                found[said and CLASS_OF[scribe.tokenizer.decode([token])] in here] += 1
    assert found[True] > 0.95 * found.total() > 300  # a thin letter may fall between cells


def test_forms_are_asked_for_what_they_hold() -> None:
    for i in range(30):
        drawing, turns = form(Random(i), LEXICON, 256, 256, Layout())
        written = "".join(CHARACTERS[label - 1] for _, label in drawing.characters)
        for question, answer, spelled in turns:
            name = question.removeprefix("What is the ").removesuffix("?")
            assert spelled and name.capitalize() in FIELDS
            assert f"{name.capitalize()}:{answer.replace(' ', '')}" in written


def test_lines_are_read_as_they_are_written() -> None:
    for i in range(30):
        drawing, turns = lines(Random(i), LEXICON, 192, 256, Layout())
        written = "".join(CHARACTERS[label - 1] for _, label in drawing.characters)
        whole = next(answer for question, answer, _ in turns if "line" not in question)
        assert whole.replace("\n", "").replace(" ", "") == written
        boxes = [box for box, _ in drawing.characters]
        assert all(b[0] >= 0 and b[2] <= drawing.width + 1 for b in boxes)


def test_lines_begin_as_a_block_or_each_on_its_own() -> None:
    widths, kinds = [40.0, 100.0, 70.0], Counter[str]()
    for seed in range(200):
        starts = aligned(Random(seed), widths, 250)
        ends = [x + width for x, width in zip(starts, widths, strict=True)]
        assert min(starts) >= 0 and max(ends) <= 250
        middles = [(x + end) / 2 for x, end in zip(starts, ends, strict=True)]
        block = {"left": starts, "right": ends, "centred": middles}
        kinds[next((k for k, xs in block.items() if np.ptp(xs) < 1e-9), "free")] += 1
    assert kinds["left"] > kinds["right"] and min(kinds[k] for k in block) > 20 < kinds["free"]
    assert aligned(Random(0), [300.0], 250) == [0]  # what is too wide is cut at its end


def test_other_pictures_have_answers(data: Path) -> None:
    gallery = Gallery(data)
    for i in range(10):
        assert flag(Random(i), gallery, 96, 128)[1][0][1] in ("Chile", "Peru", "Norway", "Japan")
        ((_, time, _),) = clock(Random(i), LEXICON, 128, 128)[1]
        hour, minute = map(int, time.split(":"))
        assert 1 <= hour <= 12 and minute % 5 == 0
        drawing, turns = bars(Random(i), LEXICON, 128, 128)
        heights = {box[1]: colour for box, _, colour in drawing.things}
        from nano_vl_scenes import COLOUR_CLASS

        tallest = next(answer for question, answer, _ in turns if "tallest" in question)
        assert COLOUR_CLASS[tallest] == heights[min(heights)]


def test_held_out_pages_are_the_same_at_every_budget() -> None:
    lexicon = Lexicon(UNSEEN, HELD_OUT_FONTS)
    coarse, fine = (page_items(lexicon, 24, tokens, 4, seed=0) for tokens in (64, 256))
    assert [a.answer for a in coarse] == [b.answer for b in fine]
    assert coarse[0].shown.pixels.shape == (256, 256, 3)
    assert fine[0].shown.pixels.shape == (512, 512, 3)
    assert words_right("one x three", "one two three") == [True, False, True]
    assert words_right("", "one") == [False]
    assert letters_right("kettle", "kettle") == 1.0 and letters_right("", "kettle") == 0.0
    assert letters_right("kitten", "sitting") == pytest.approx(1 - 3 / 7)


# Tokens


def test_text_comes_back_from_its_tokens() -> None:
    made = make_tokenizer(words_of(["What is the red circle?", "Vous êtes"]))
    scribe = Scribe(made)
    assert len(made.encode("What is the red circle?").ids) == 6
    for text in ("What is this?", "naïve £4.20 – ok\nnew", "the theremin", "42 red"):
        assert made.decode(made.encode(text).ids) == text
        assert made.decode(scribe.spell(text)) == text
    assert len(scribe.spell("red")) == 3 and len(made.encode(" red").ids) == 1


def test_a_conversation_is_tokenised_as_by_the_template(tmp_path: Path) -> None:
    from nano_vl_files import tokenizer_files
    from transformers import AutoTokenizer

    made = make_tokenizer(words_of(["What is this? a red circle Read the text."]))
    for name, content in tokenizer_files(made).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    turns = [("What is this?", "a red circle", False), ("Read the text.", "kettle", True)]
    scribe = Scribe(made)
    ids, answers = scribe.turns(turns, picture=True)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turns[0][0]}]},
        {"role": "assistant", "content": turns[0][1]},
        {"role": "user", "content": turns[1][0]},
        {"role": "assistant", "content": turns[1][1]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    text = text.replace("<image>", "<|image_start|><image><|image_end|>")
    assert tokenizer(text, add_special_tokens=False).input_ids == [*scribe.opening, IMAGE, *ids]
    spoken = made.decode([i for i, said in zip(ids, answers, strict=True) if said],
                         skip_special_tokens=False)  # fmt: skip
    assert spoken == "a red circle<|im_end|>kettle<|im_end|>"
