"""Words of a checkpoint that can say few: what is said, spelled, read digit by digit, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.lexicon import DIGITS, LONGEST, Lexicon
from lfm2_mm.errors import BadInput, CheckpointDamaged

WORDS = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "hello", "I'd", "like", "a", "latte", *DIGITS]


@pytest.mark.parametrize(
    ("text", "phrases", "spelled"),
    [
        ("Hello!", ("hello.",), ()),
        ("i’d LIKE a latte", ("I'd like a latte.",), ()),
        ("Table 42?", ("T A B L E four two?",), ("Table",)),
        ("hello; Zoé, zoé", ("hello, Z O E, Z O E.",), ("Zoé", "zoé")),
        ("… , hello -- latte\n", ("hello latte.",), ()),
        ("hello b", ("hello B.",), ()),
        ("hello. hello, . a", ("hello.", "hello.", "a."), ()),
        ("hello 東京", ("hello.",), ("東京",)),
    ],
)
def test_wordings(text: str, phrases: tuple[str, ...], spelled: tuple[str, ...]) -> None:
    found = Lexicon(WORDS).wording(text)
    assert (found.phrases, found.spelled) == (phrases, spelled)


def test_long_texts_are_cut_where_a_breath_is_needed() -> None:
    found = Lexicon(WORDS).wording("hello " * 25)
    assert [len(phrase.split()) for phrase in found.phrases] == [LONGEST, LONGEST, 5]


@pytest.mark.parametrize("text", ["東京", "?!", "--"])
def test_what_cannot_be_said_is_an_error(text: str) -> None:
    with pytest.raises(BadInput, match="can be said"):
        Lexicon(WORDS).wording(text)


@given(st.text(max_size=40))
def test_every_phrase_holds_only_its_words(text: str) -> None:
    try:
        found = Lexicon(WORDS).wording(text)
    except BadInput:
        return
    for phrase in found.phrases:
        said = phrase.rstrip(".?").replace(",", " ").split()
        assert said and set(said) <= set(WORDS)
        assert phrase[-1] in ".?" and ",." not in phrase


def test_the_file_of_a_checkpoint(tmp_path: Path) -> None:
    assert Lexicon.open(tmp_path) is None
    path = tmp_path / "spoken_words.json"
    path.write_text(json.dumps(WORDS))
    found = Lexicon.open(tmp_path)
    assert found is not None and found.words == set(WORDS)
    for damaged, told in (("{", "JSON"), ('{"a": 1}', "list of words"), ("[1]", "list of words")):
        path.write_text(damaged)
        with pytest.raises(CheckpointDamaged, match=told):
            Lexicon.open(tmp_path)
