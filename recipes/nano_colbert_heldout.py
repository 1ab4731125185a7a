"""Held-out collections of nano-colbert, in the shape of BEIR: corpus, queries, judgements.

Whole articles, one whole book, topics, commands and modules that no training step has seen.
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import nano_colbert_data as sources
from nano_colbert_data import Passage, grouped


@dataclass
class Collection:
    name: str
    corpus: dict[str, str] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    judgements: dict[str, dict[str, int]] = field(default_factory=dict)  # by query, by document

    def write(self, folder: Path) -> None:
        """corpus.jsonl, queries.jsonl and qrels/test.tsv, as BEIR keeps them."""
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        for name, texts in (("corpus", self.corpus), ("queries", self.queries)):
            lines = [json.dumps({"_id": i, "title": "", "text": t}) for i, t in texts.items()]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        rows = ["query-id\tcorpus-id\tscore"]
        for query, found in self.judgements.items():
            rows += [f"{query}\t{document}\t{grade}" for document, grade in found.items()]
        table = "\n".join(rows)
        (folder / "qrels/test.tsv").write_text(table + "\n", encoding="utf-8")


def collections(data: Path, queries: int = 400) -> list[Collection]:
    """All held-out collections, at most `queries` queries each, drawn with a fixed seed."""
    readers = {name: read for name, _, read, _, _ in sources.READERS}

    def kept(name: str) -> list[Passage]:
        every = readers[name](data)
        seen = {
            p.text for p in every if not sources.is_held_out(name, p)
        }  # modules share functions
        return [p for p in every if sources.is_held_out(name, p) and p.text not in seen]

    squad, qed = kept("squad"), kept("qed")
    pages = {p.group: p for p in reversed(kept("tldr")) if p.text.startswith(f"{p.group}\n")}
    return [
        asked("encyclopaedia", squad, queries),
        asked("real-questions", qed + strip(squad), queries),
        book(data, queries),
        asked("medical", kept("medquad"), queries),
        asked("commands", list(pages.values()), queries),
        asked("python", kept("python"), queries),
    ]


def other_domain(library: str = "scipy", queries: int = 400) -> Collection:
    """Prose of a kind that no source has: docstrings of a scientific library that is installed.

    The first line asks for the rest, up to its references and examples. Raises ModuleNotFoundError.
    """
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{library} is not installed; other domains are measured on it")
    found: dict[str, str] = {}
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "tests" not in path.parts:
            found |= halves(path.read_text(encoding="utf-8", errors="replace"))
    chosen = sorted(found)
    random.Random(0).shuffle(chosen)
    return asked(library, grouped((q, found[q], "") for q in chosen[:700]), queries)


def halves(code: str) -> dict[str, str]:
    """First paragraph -> body of each long docstring."""
    found = {}
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        first, _, body = (ast.get_docstring(node) or "").partition("\n\n")
        body = re.split(r"\n(?:References|Examples|See Also)\n-+", body)[0]
        body = " ".join(re.sub(r"\n-{3,}", "", body).split())
        if 5 <= len(first.split()) <= 25 and len(body.split()) > 60:
            found[" ".join(first.split())] = body[:1500]
    return found


def strip(passages: list[Passage]) -> list[Passage]:
    return [Passage(p.text, [], p.group) for p in passages]


def asked(name: str, passages: list[Passage], limit: int) -> Collection:
    """Each query is answered by the passages that list it."""
    answers: dict[str, set[int]] = defaultdict(set)
    for i, passage in enumerate(passages):
        for query in passage.queries:
            answers[query].add(i)
    chosen = random.Random(0).sample(sorted(answers), min(limit, len(answers)))
    return Collection(
        name,
        {f"d{i}": p.text for i, p in enumerate(passages)},
        {f"q{n}": query for n, query in enumerate(chosen)},
        {f"q{n}": {f"d{i}": 1 for i in sorted(answers[q])} for n, q in enumerate(chosen)},
    )


def book(data: Path, limit: int) -> Collection:
    """A textbook never seen: objectives and review questions -> every passage of their module."""
    passages = [p for p in sources.openstax(data) if p.group.startswith(sources.HELD_OUT_BOOK)]
    modules: dict[str, list[int]] = defaultdict(list)
    for i, passage in enumerate(passages):
        modules[passage.group].append(i)
    asked_of = []
    for name, key in (("objectives", "objective"), ("review_questions", "q")):
        for row in sources.read_lines(data / f"retrieval/openstax/{name}.jsonl.xz"):
            group = f"{row['book']}/{row['title']}"
            if group in modules and len(row[key].split()) > 2:
                asked_of.append((row[key], group))
    chosen = random.Random(0).sample(sorted(set(asked_of)), min(limit, len(set(asked_of))))
    return Collection(
        "textbook",
        {f"d{i}": p.text for i, p in enumerate(passages)},
        {f"q{n}": query for n, (query, _) in enumerate(chosen)},
        {f"q{n}": {f"d{i}": 1 for i in modules[g]} for n, (_, g) in enumerate(chosen)},
    )
