"""Sources of nano-colbert: files of the data folder -> passages, each with the queries it answers.

Knows file formats and what is held out; knows nothing of tokens or models.
"""

from __future__ import annotations

import ast
import hashlib
import json
import lzma
import re
import sysconfig
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

HELD_OUT_BOOK = "introduction-sociology"
WORD = re.compile(r"[^\W\d_]{3,}")
FOREIGN = ("site-packages", "dist-packages", "test", "idlelib", "lib2to3", "ensurepip")
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"(])")


@dataclass
class Passage:
    text: str
    queries: list[str] = field(default_factory=list)
    group: str = ""  # article, module, topic or command: never split between training and measuring


@dataclass
class Source:
    """Passages of one origin. `share` is its part of the steps; with `cloze` passages may also be
    asked by their own sentences."""

    name: str
    share: float
    passages: list[Passage]
    cloze: bool = True


def read_lines(path: Path) -> list[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def held_out(group: str, percent: int = 10) -> bool:
    """A stable draw by name, the same on every machine and in every run."""
    return (
        int.from_bytes(hashlib.sha1(group.encode(), usedforsecurity=False).digest()[:4], "big")
        % 100
        < percent
    )


def squad(data: Path) -> list[Passage]:
    rows = read_lines(data / "retrieval/squad/passages.jsonl.xz")
    passages = {r["id"]: Passage(r["text"], group=r["title"]) for r in rows}
    for query in read_lines(data / "retrieval/squad/queries.jsonl.xz"):
        passages[query["pos"]].queries.append(query["q"])
    return list(passages.values())


def squad_sentences(data: Path) -> list[Passage]:
    rows = read_lines(data / "retrieval/squad/sentence_pairs.jsonl.xz")
    return grouped((r["q"], r["pos"], "") for r in rows)


def qed(data: Path) -> list[Passage]:
    rows = read_lines(data / "retrieval/qed_nq/pairs.jsonl.xz")
    return grouped((r["q"], r["pos"], r["title"]) for r in rows)


def medquad(data: Path) -> list[Passage]:
    rows = read_lines(data / "retrieval/medquad/pairs.jsonl.xz")
    return grouped((r["q"], r["pos"], r["focus"].lower()) for r in rows)


def grouped(rows: Iterator[tuple[str, str, str]]) -> list[Passage]:
    """(query, text, group) rows -> one passage for each distinct text."""
    passages: dict[str, Passage] = {}
    for query, text, group in rows:
        passages.setdefault(text, Passage(text, group=group)).queries.append(query)
    return list(passages.values())


def openstax(data: Path) -> list[Passage]:
    """Paragraphs under their headings.

    Objectives, definitions and review questions go to the paragraph of their module that shares
    most of their rare words.
    """
    folder = data / "retrieval/openstax"
    modules: dict[str, list[Passage]] = defaultdict(list)
    for row in read_lines(folder / "paragraphs.jsonl.xz"):
        group = f"{row['book']}/{row['title']}"
        heading = " ".join([row["title"], *row["section"][-1:]])
        modules[group].append(Passage(row["text"], [heading], group))
    modules = {group: merged(passages) for group, passages in modules.items()}
    everything = [p for passages in modules.values() for p in passages]
    rarity = rarities(p.text for p in everything)
    for name, key in (("objectives", "objective"), ("glossary", "def"), ("review_questions", "q")):
        for row in read_lines(folder / f"{name}.jsonl.xz"):
            found = closest(row[key], modules.get(f"{row['book']}/{row['title']}", []), rarity)
            if found is not None:
                found.queries.append(row[key])
    return everything


def merged(passages: list[Passage], length: int = 600) -> list[Passage]:
    """Neighbouring paragraphs joined until they are as long as an abstract."""
    result: list[Passage] = []
    for passage in passages:
        last = result[-1] if result else passage
        if result and len(last.text) < length and len(last.text) + len(passage.text) < 1400:
            last.text += " " + passage.text
            last.queries += [q for q in passage.queries if q not in last.queries]
        else:
            result.append(passage)
    return result


@cache
def words(text: str) -> frozenset[str]:
    return frozenset(w.rstrip("s") for w in WORD.findall(text.lower()))


def rarities(texts: Iterator[str]) -> dict[str, float]:
    counts = Counter(word for text in texts for word in words(text))
    return {word: 1 / (1 + count) ** 0.5 for word, count in counts.items()}


def closest(query: str, passages: list[Passage], rarity: dict[str, float]) -> Passage | None:
    """The passage with most of the query's rare words, None when all have less than a third."""
    asked = sorted(words(query))  # a set's order, and so the last bit of a sum, differs by process
    weight = sum(rarity.get(word, 0.0) for word in asked)
    held = [words(passage.text) for passage in passages]
    scored = [(sum(rarity[w] for w in asked if w in own), i) for i, own in enumerate(held)]
    best, at = max(scored, default=(0.0, 0))
    return passages[at] if weight and best > weight / 3 else None


def glossary(data: Path) -> list[Passage]:
    rows = read_lines(data / "retrieval/openstax/glossary.jsonl.xz")
    return [Passage(r["def"], [r["term"]], f"{r['book']}/{r['title']}") for r in rows]


def tldr(data: Path) -> list[Passage]:
    """Commands as pages without explanations, asked by the explanations; and as single lines."""
    passages = []
    for row in read_lines(data / "retrieval/tldr/en.jsonl.xz"):
        asked = [what for what, _ in row["examples"]]
        lines = [line for _, line in row["examples"]]
        page = "\n".join([row["cmd"], row["desc"], *lines])
        passages.append(Passage(page, asked, row["cmd"]))
        passages.append(Passage("\n".join([row["cmd"], *lines]), [row["desc"], *asked], row["cmd"]))
        for what, line in row["examples"]:
            passages.append(Passage(f"{line}\n{row['cmd']}: {row['desc']}", [what], row["cmd"]))
    return passages


def factbook(data: Path) -> list[Passage]:
    forms = ("What is the {field} of {country}?", "{field} {country}", "{country} {field}",
             "Tell me about the {field} in {country}.")  # fmt: skip
    passages = []
    for i, row in enumerate(read_lines(data / "retrieval/factbook/fields.jsonl.xz")):
        name = row["field"].split(" - ")[0].lower()
        text = f"{row['country']}. {row['section']}, {row['field']}: {row['text']}"
        query = forms[i % len(forms)].format(field=name, country=row["country"])
        passages.append(Passage(text, [query], row["country"]))
    return passages


def wordnet(data: Path) -> list[Passage]:
    rows = read_lines(data / "retrieval/wordnet/synsets.jsonl.xz")
    plain, named = [], []
    for row in rows:
        lemmas, examples = ", ".join(row["lemmas"]), row["ex"][:2]
        plain.append(Passage(row["def"], [lemmas, *examples], row["lemmas"][0]))
        if examples:
            named.append(Passage(f"{lemmas}: {row['def']}", examples, row["lemmas"][0]))
    return plain + named


def synonyms(data: Path) -> dict[str, list[str]]:
    """Single words -> the other single words of their synsets."""
    table: dict[str, list[str]] = defaultdict(list)
    for row in read_lines(data / "retrieval/wordnet/synsets.jsonl.xz"):
        lemmas = [lemma.lower() for lemma in row["lemmas"] if lemma.isalpha()]
        for lemma in lemmas:
            table[lemma] += [other for other in lemmas if other != lemma]
    return {word: others for word, others in table.items() if others}


def wikitext(data: Path) -> list[Passage]:
    with lzma.open(data / "text/wikitext2_valid.txt.xz", "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    title, passages = "", []
    for line in lines:
        if line.startswith("= "):
            title = line.strip("= ")
        elif len(line) > 200 and "<unk>" not in line[:200]:
            text = line.replace(" @-@ ", "-").replace(" @,@ ", ",").replace("<unk>", "")
            passages.append(Passage(text, group=title))
    return passages


def onestop(data: Path) -> list[Passage]:
    """News in advanced English, asked by sentences of their retellings in plainer words."""
    rows = read_lines(data / "text/onestop_english.jsonl.xz")
    articles: dict[str, list[Passage]] = {}
    for row in rows:
        name = row["name"].rsplit("-", 1)[0]
        if row["level"].startswith("Adv"):
            parts = (part.strip() for part in row["text"].split("\n"))
            articles[name] = merged([Passage(part, group=name) for part in parts if part])
    everything = [passage for passages in articles.values() for passage in passages]
    rarity = rarities(p.text for p in everything)
    for row in rows:
        passages = articles.get(row["name"].rsplit("-", 1)[0], [])
        if not row["level"].startswith("Adv"):
            for sentence in sentences(row["text"]):
                found = closest(sentence, passages, rarity)
                if found is not None and sentence not in found.text:
                    found.queries.append(sentence)
    return everything


def python(data: Path) -> list[Passage]:
    """Functions asked by their docstrings.

    Of retrieval/python where the data folder has it, else of the running Python's own library (PSF
    licence). Files that speak of a copyright or licence of their own are left out.
    """
    own = data / "retrieval/python"
    root = own if own.is_dir() else Path(sysconfig.get_path("stdlib"))
    passages = []
    for path in sorted(root.rglob("*.py")):
        inner = path.relative_to(root)
        if inner.parts[0] in FOREIGN or "tests" in inner.parts:
            continue
        code = path.read_text(encoding="utf-8", errors="replace")
        if not re.search(r"copyright|licen[cs]e", code, re.IGNORECASE):
            passages += functions(code, group=inner.as_posix())
    return passages


def functions(code: str, group: str) -> list[Passage]:
    """Each function with a docstring: the source without it, asked by its first paragraph."""
    lines, passages = code.splitlines(), []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        doc = ast.get_docstring(node)
        if not doc or len(doc.split()) < 4 or len(node.body) < 2:
            continue
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        body = lines[node.body[0].end_lineno : node.end_lineno]
        text = textwrap.dedent("\n".join(head + body))
        query = " ".join(doc.split("\n\n")[0].split())
        passages.append(Passage(text, [query], group))
    return passages


# name, share of the steps, reader, asked by its own sentences, CC BY-SA
READERS: tuple[tuple[str, float, Callable[[Path], list[Passage]], bool, bool], ...] = (
    ("squad", 0.10, squad, True, True),
    ("squad-sentences", 0.09, squad_sentences, False, True),
    ("qed", 0.04, qed, True, True),
    ("wikitext", 0.03, wikitext, True, True),
    ("onestop", 0.06, onestop, True, True),
    ("openstax", 0.32, openstax, True, False),
    ("glossary", 0.03, glossary, False, False),
    ("medquad", 0.11, medquad, True, False),
    ("tldr", 0.10, tldr, False, False),
    ("python", 0.05, python, False, False),
    ("factbook", 0.04, factbook, False, False),
    ("wordnet", 0.06, wordnet, False, False),
)


def load(data: Path, sharealike: bool = True) -> list[Source]:
    """Every source for training, held-out groups removed."""
    sources = []
    for name, share, read, cloze, is_sharealike in READERS:
        if is_sharealike and not sharealike:
            continue
        passages = [p for p in read(data) if not is_held_out(name, p)]
        sources.append(Source(name, share, passages, cloze))
    return sources


def is_held_out(name: str, passage: Passage) -> bool:
    match name:
        case "squad":
            return held_out(passage.group, 25)
        case "openstax" | "glossary":
            return passage.group.startswith(HELD_OUT_BOOK)
        case "qed" | "medquad" | "tldr" | "python":
            return held_out(passage.group)
    return False


def sentences(text: str) -> list[str]:
    return [s for s in SENTENCE.split(text) if len(s.split()) >= 4]
