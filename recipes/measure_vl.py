"""Measures nano-vl on pictures it never saw: tables for its card and docs, a plot of the budget.

    python recipes/measure_vl.py --data DIR --model runs/nano_vl/checkpoint [--write]

Words, fonts, and in every scene a pair of shape and colour, are held out. Beside each figure stands
what the same model says about a grey picture (what it can guess from the question), and what always
giving the most frequent answer would score. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nano_vl_files import open_folder
from nano_vl_heldout import (
    SCENE_QUESTIONS,
    Item,
    Reader,
    field_items,
    letters_right,
    page_items,
    photograph_items,
    picture_items,
    scene_items,
    words_right,
)
from nano_vl_plot import curves
from nano_vl_scenes import CANNOT_TELL, Gallery, Scenes
from nano_vl_words import HELD_OUT_FONTS, Lexicon, load_words

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
SIZES, BUDGETS = (12, 16, 20, 24, 32, 36), (16, 36, 64, 144, 256)
WORDS_A_PAGE = 3
CARD = Path(__file__).with_name("nano_vl_card.md")
DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Share:
    """So many right of so many."""

    right: int
    count: int

    @classmethod
    def of(cls, marks: Sequence[bool]) -> Share:
        return cls(sum(marks), len(marks))

    @property
    def part(self) -> float:
        return self.right / self.count

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's score interval."""
        n, p = self.count, self.part
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.part:.2f} ({low:.2f}-{high:.2f})"


def exactly(reader: Reader, items: Sequence[Item]) -> Share:
    """Answers that are right to the letter."""
    said = reader.answers(items)
    return Share.of([text == item.answer for text, item in zip(said, items, strict=True)])


def majority(items: Sequence[Item]) -> Share:
    ((_, most),) = Counter(item.answer for item in items).most_common(1)
    return Share(most, len(items))


def questions_table(reader: Reader, sets: dict[str, list[Item]]) -> list[str]:
    lines = ["| question | n | right (95 %) | grey picture | most frequent answer |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, items in sets.items():
        seen, blind = exactly(reader, items), exactly(reader, [item.grey() for item in items])
        lines.append(
            f"| {name} | {len(items)} | {seen} | {blind.part:.2f} | {majority(items).part:.2f} |"
        )
    return lines


def pages(
    reader: Reader, lexicon: Lexicon, words: int, seed: int, say: Callable[[str], None]
) -> dict[tuple[int, int], tuple[Share, float]]:
    """(font size, tokens) -> words read right, of at least `words`; part of the letters right."""
    found = {}
    for size in SIZES:
        for tokens in BUDGETS:
            items = page_items(lexicon, size, tokens, -(-words // WORDS_A_PAGE), seed, WORDS_A_PAGE)
            pairs = list(zip(reader.answers(items), items, strict=True))
            marks = [right for text, item in pairs for right in words_right(text, item.answer)]
            letters = sum(letters_right(text, item.answer) for text, item in pairs) / len(pairs)
            found[size, tokens] = Share.of(marks), letters
            say(f"page {size} px {tokens} tokens: words {Share.of(marks)} letters {letters:.2f}")
    return found


def pages_table(value: Callable[[int, int], float]) -> list[str]:
    head = " | ".join(str(tokens) for tokens in BUDGETS)
    lines = [f"| font \\ tokens | {head} |", "|---" * (len(BUDGETS) + 1) + "|"]
    for size in SIZES:
        cells = " | ".join(f"{value(size, tokens):.2f}" for tokens in BUDGETS)
        lines.append(f"| {size} px | {cells} |")
    return lines


def modest(reader: Reader, items: Sequence[Item]) -> str:
    said = reader.answers(items)
    told = sum(text == CANNOT_TELL for text in said)
    return f'"{CANNOT_TELL}": {told} of {len(items)} questions about photographs.'


def replace_measured(path: Path, lines: Sequence[str]) -> None:
    """Put the lines between the marks of a file."""
    text = path.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    reader = Reader(*open_folder(args.model, args.dtype))
    _, unseen = load_words(args.data)
    lexicon, gallery = Lexicon(unseen, HELD_OUT_FONTS), Gallery(args.data)
    scenes = Scenes(gallery, held_out=True)
    sets = {name: scene_items(scenes, name, args.count, args.seed) for name in SCENE_QUESTIONS}
    sets["what (small pictures)"] = picture_items(Scenes(gallery), args.count, args.seed)
    sets["one field of a form, 20 to 36 px, 256 tokens"] = field_items(
        lexicon, args.count, args.seed
    )
    table = questions_table(reader, sets)
    say("\n".join(table))
    photographs = modest(reader, photograph_items(args.data))
    say(photographs)
    found = pages(reader, lexicon, args.count, args.seed, say)
    wide = [share for (size, tokens), (share, _) in found.items() if tokens == 256 and size >= 20]
    whole = Share(sum(s.right for s in wide), sum(s.count for s in wide))
    reading = [
        f"Words read right on a page of 512 x 512 pixels with {WORDS_A_PAGE} words, "
        f"{wide[0].count} words a cell; at 20 to 36 px with 256 tokens {whole}, n = {whole.count}:",
        "",
        *pages_table(lambda size, tokens: found[size, tokens][0].part),
        "",
        "Letters right on the same pages (1 - character error rate):",
        "",
        *pages_table(lambda size, tokens: found[size, tokens][1]),
    ]
    say("\n".join(reading))
    if args.write:
        digest = hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest()
        note = f"Measured with the weights whose sha256 is `{digest}`."
        report = [*table, "", photographs, "", *reading, "", note]
        for path in (CARD, args.model / "MODEL_CARD.md", DOCS / "nano-vl.md"):
            replace_measured(path, report)
        series = {f"{s} px": [found[s, t][1] for t in BUDGETS] for s in SIZES}
        plot = curves(series, BUDGETS, "tokens of the picture", "letters right")
        (DOCS / "nano-vl.svg").write_text(plot, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = words.add_argument
    add("--data", type=Path, required=True, help="folder that holds vision/ and text/")
    add("--model", type=Path, required=True, help="folder of a checkpoint")
    add("--count", type=int, default=200, help="questions of each kind, words of each cell")
    add("--seed", type=int, default=0)
    add("--dtype", default="fp32")
    add("--write", action="store_true", help="into the card and docs/nano-vl.md, with the plot")
    return words


def main() -> None:
    measure(parser().parse_args(), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
