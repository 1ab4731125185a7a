"""Small indexes that tests harm, search and mend, and all that such an index answers."""

from __future__ import annotations

from pathlib import Path

import retrieval
from retrieval.index import Index
from retrieval.types import MODES
from tests.words_encoder import WordsEncoder

NOTES = {
    "refunds.md": "# Refunds\n\nMoney comes back in five days.",
    "fox.txt": "The quick brown fox jumps over the lazy dog.",
    "panda.txt": "A slow red panda sleeps.",
}


def written(folder: Path) -> Path:
    """NOTES as files."""
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    return folder


def mixed(place: Path) -> Path:
    """An index of three files and a given text, with something deleted."""
    folder = place / "index"
    with opened(folder) as index:
        index.update(written(place / "notes"), meta={"team": "zoo"})
        index.add_texts([("given", "no file holds this zebra", ""), ("gone", "deleted", "")])
        index.delete("gone")
    return folder


def opened(folder: Path, name: str = "words") -> Index:
    return retrieval.open(folder, model=WordsEncoder(name), create=True)


def answers(folder: Path) -> list[object]:
    """All that searches say but for ids."""
    with opened(folder) as index:
        return [
            [
                (Path(h.source).name, h.start, h.text, round(h.score, 4))
                for h in index.search("quick money panda zebra", 9, mode, where)
            ]
            for mode in MODES
            for where in ({}, {"team": "zoo"}, {"date>=": "2000"})
        ]


def files_of(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "lock")  # which is empty


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)
