"""Cutting: whatever the text, passages are exact, in order, apart, complete, within the limit."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2_mm.errors import BadInput
from retrieval.chunks import cut
from retrieval.documents import SUFFIXES
from retrieval.structure import Chunk, Document, Heading, outline

MARKERS = 3


def count(text: str) -> int:
    """Tokens as a subword tokenizer has them: pieces of words, each sign, markers around."""
    return MARKERS + len(re.findall(r"[a-zA-Z]{1,4}|[0-9]|[^\sa-zA-Z0-9]", text))


def document(text: str, kind: str = "text", **known) -> Document:
    return Document("/a", text, kind, "A", **known)


def check(whole: Document, limit: int, measure=count) -> list[Chunk]:
    """Cut, and hold the result against every promise of `cut`."""
    chunks = cut(whole, limit, measure)
    place = 0
    for chunk in chunks:
        assert not whole.text[place : chunk.start].strip()
        assert chunk.text == whole.text[chunk.start : chunk.end]
        assert chunk.text.strip()
        assert measure(chunk.text) <= limit or len(chunk.text) == 1
        place = chunk.end
    assert not whole.text[place:].strip()
    return chunks


PIECES = (
    "a|word |Long sentence here. |\n|\r\n|\n\n|# T\n|## U\n|===\n|---\n|```\n| |\t|    |{|}|\f|"
    "def f(x):\n|class C:\n|我们|。|か゛|é|e\u0301|👩‍👧|- item\n|1,2\n|\u2028|\u3000|xxxxxxxxx"
)
ALPHABET = st.sampled_from([*PIECES.split("|"), "| a | b |\n"])
TEXTS = st.lists(ALPHABET, max_size=60).map("".join) | st.text(max_size=200)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=TEXTS,
    kind=st.sampled_from(sorted(SUFFIXES)),
    limit=st.sampled_from([1, 3, 4, 5, 7, 16, 64, 300]),
    offsets=st.lists(st.integers(0, 400), max_size=5).map(sorted),
    paged=st.booleans(),
)
def test_promises_hold_for_any_text_structure_and_limit(text, kind, limit, offsets, paged):
    if paged:
        whole = document(text, kind, pages=tuple(offsets))
    else:
        known = tuple(Heading(offset, 1 + offset % 3, f"H{offset}") for offset in offsets)
        whole = document(text, kind, headings=known)
    check(whole, limit)


@pytest.mark.parametrize("measure", [len, lambda text: len(text.encode()), lambda text: 1])
@pytest.mark.parametrize("limit", [1, 2, 17, 512])
def test_any_measure_will_do(measure, limit):
    check(document("Kurz. " * 40 + "\n\n" + "日本語のテキスト。" * 30 + "🙂" * 9), limit, measure)


def test_a_count_that_is_larger_for_a_prefix_still_keeps_the_limit():
    def odd(text: str) -> int:  # merges across a blank: "ab " is dearer than "ab cd"
        return count(text) + 5 * (len(text) % 7 == 0)

    check(document("ab cd efgh. " * 300), 20, odd)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(BadInput, match="at least 1"):
        cut(document("a"), limit, count)


@pytest.mark.parametrize("text", ["", " ", "\n\n\t", "\u3000"])
def test_blank_text_has_no_passages(text):
    assert cut(document(text), 10, count) == []


def test_small_paragraphs_of_a_section_are_packed_and_sections_are_not():
    text = "# Guide\n\nOne.\n\nTwo.\n\n## Refunds\n\nThree.\n\nFour.\n\n# Other\n\nFive.\n"
    chunks = check(document(text, "markdown"), 100)
    assert [(c.heading, c.text) for c in chunks] == [
        ("Guide", "# Guide\n\nOne.\n\nTwo."),
        ("Guide > Refunds", "## Refunds\n\nThree.\n\nFour."),
        ("Other", "# Other\n\nFive."),
    ]


def test_a_bare_heading_goes_with_the_deeper_one_below_it_only():
    text = "# Guide\n\n## Refunds\n\nText.\n\n## Empty\n\n## Last\n\nText.\n"
    chunks = check(document(text, "markdown"), 100)
    assert [(c.heading, c.text) for c in chunks] == [
        ("Guide > Refunds", "# Guide\n\n## Refunds\n\nText."),
        ("Guide > Empty", "## Empty"),
        ("Guide > Last", "## Last\n\nText."),
    ]


def test_cuts_prefer_paragraphs_then_sentences_then_words():
    paragraph = "Alpha beta gamma delta. Epsilon zeta eta theta. "
    text = f"{paragraph}\n\n{paragraph}\n\n{paragraph}"
    by_paragraph = check(document(text), count(paragraph + paragraph) + 2)
    assert [c.text for c in by_paragraph] == [
        f"{paragraph}\n\n{paragraph}".strip(),
        paragraph.strip(),
    ]
    by_sentence = check(document(paragraph), count(paragraph) - 1)
    assert [c.text for c in by_sentence] == [
        "Alpha beta gamma delta.",
        "Epsilon zeta eta theta.",
    ]
    by_word = check(document("alpha beta gamma delta"), MARKERS + 2)
    assert [c.text for c in by_word] == ["alpha", "beta", "gamma", "delta"]


def test_chinese_and_japanese_are_cut_at_their_sentence_ends_without_blanks():
    sentence = "我们今天去公园散步，天气很好。"
    chunks = check(document(sentence * 20), MARKERS + 2 * len(sentence) + 3)
    assert {c.text for c in chunks} == {sentence * 2}
    for chunk in check(document("東京は、日本の首都である" * 9), MARKERS + 5):
        assert chunk.text[0] not in "、。"


def test_a_monstrous_word_is_split_hard_but_no_character_is_torn():
    chunks = check(document("x" * 1000), MARKERS + 10)
    assert all(count(c.text) == MARKERS + 10 for c in chunks[:-1])
    for chunk in check(document("e\u0301" * 200), MARKERS + 7):
        assert chunk.text[0] == "e"


def test_pages_are_never_crossed_and_counted_from_one():
    text = "First page.\n\n\n\nThird page, " + "with many words " * 20
    whole = document(text, "pdf", pages=(0, 13, 15))
    chunks = check(whole, MARKERS + 30)
    assert chunks[0].page == 1
    assert chunks[0].text == "First page."
    assert {c.page for c in chunks[1:]} == {3}
    assert check(document("\n\nText", "pdf", pages=(0, 2)), 9)[0].page == 2


PYTHON = '''"""Doc."""
import os

LIMIT = 3


@cache
def alone(a):
    def inner(b):
        return b
    return inner(a)


# why it is
class Store:
    """Kept."""

    def add(self, x):
        """type of the thing"""
        self.x = x

    async def get(self):
        return self.x
'''


def test_code_is_cut_at_functions_and_methods_with_their_decorators_and_comments():
    chunks = check(document(PYTHON, "code"), 300)
    assert [(c.heading, c.text.splitlines()[0]) for c in chunks] == [
        ("", '"""Doc."""'),
        ("alone", "@cache"),
        ("Store", "# why it is"),
        ("Store > add", "    def add(self, x):"),
        ("Store > get", "    async def get(self):"),
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("export async function add(a, b = f(1)) {\n}\nconst sub = (a) => {\n};", "add sub"),
        (
            "class Foo extends Bar {\n  constructor(a) {\n    if (a) {\n    }\n  }\n}",
            "Foo constructor",
        ),
        ("int x;\nstd::string Foo::bar(const int &x,\n    int y) const\n{\n}", "Foo::bar"),
        ("static char *name(void) {\n  while (x) {\n  }\n}", "name"),
        ("public class A {\n  public void run(int x) throws E {\n  }\n}", "A run"),
        ("func (s *Store) Add(x int) error {\n}\ntype Hit struct {\n}", "Add Hit"),
        ("pub struct A {}\nimpl<T> Foo for A {\n    fn go(&self) {}\n}", "A Foo go"),
        ("module M\n  class C\n    def go\n    end\n  end\nend", "M C go"),
        ("build() {\n  make\n}\nfunction test {\n}", "build test"),
        ("CREATE TABLE IF NOT EXISTS users (id int);\ncreate view v AS SELECT 1;", "users v"),
        ("[tool.ruff]\nline-length = 100\n\n[[steps]]\nrun = 1", "tool.ruff steps"),
        ("if (x) {\n}\nfor (;;) {\n}\nreturn (y) {\n}", ""),
    ],
)
def test_definitions_are_found_in_many_languages(text, names):
    assert [heading.title for heading in outline(document(text, "code"))] == names.split()


def test_markdown_headings_of_both_styles_but_not_in_fences_or_front_matter():
    text = (
        "---\ntitle: x\n---\n# One #\n\n```sh\n# no\n```\n\nTwo\n===\n\n~~~\n```\n# no\n~~~\n"
        "Three\r\n-----\r\n\n#hash\n\na | b\n--- | ---\n\n- item\n---\n### \tSix\n"
    )
    assert [(h.level, h.title) for h in outline(document(text, "markdown"))] == [
        (1, "One"),
        (1, "Two"),
        (3, "Six"),
    ]


def test_rst_levels_follow_the_order_of_their_adornments():
    text = "=====\nGuide\n=====\n\nA\n---\n\nText\n\nB\n~~~\n\n- x\n\nC\n---\n\nlong title\n---\n"
    assert [(h.level, h.title) for h in outline(document(text, "rst"))] == [
        (1, "Guide"),
        (2, "A"),
        (3, "B"),
        (2, "C"),
    ]
    assert check(document(text, "rst"), 50)[0].heading == "Guide > A"


def words(seed: int, characters: int) -> str:
    rng = random.Random(seed)
    return " ".join(
        "".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(characters // 6)
    )


HOSTILE = {
    "prose": ("text", words(0, 400_000)),
    "one word": ("text", "x" * 400_000),
    "blanks": ("text", "a" + " " * 400_000 + "b"),
    "indentation": ("code", (" " * 200 + "\n") * 2_000 + "x"),
    "brackets": ("code", "f(" * 200_000),
    "headings": ("markdown", "# a\n" * 20_000),
    "rules": ("rst", "====\n" * 80_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_work_grows_with_the_text_and_no_faster(name):
    """Counted characters, not seconds: the dear part is the count, and machines differ."""
    kind, text = HOSTILE[name]
    counted = 0

    def measure(piece: str) -> int:
        nonlocal counted
        counted += len(piece)
        return count(piece)

    chunks = cut(document(text, kind), 300, measure)
    assert chunks
    assert counted <= 6 * len(text)
