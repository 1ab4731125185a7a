"""Which files there are, their names as text, and opening one without hanging. Knows no formats."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path

from lfm2_mm.errors import BadInput

IGNORED = frozenset({"node_modules", "__pycache__", "__MACOSX"})
MARKS = ("pyvenv.cfg", "CACHEDIR.TAG")  # a folder with one of these is an environment or a cache
INDEX = frozenset({"manifest.json", "catalog.sqlite"})  # with both of these it is an index


def find_files(
    paths: Iterable[str | os.PathLike[str]], *, ignore: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[Path]:
    """Absolute paths of the files in `paths`, each once, folders walked in the order of names.

    A file that is named is always taken. In folders, hidden files and folders, IGNORED ones,
    indexes and those in `ignore` are passed over, and links to folders are not followed; such a
    link, and a folder that cannot be listed, are yielded themselves so that `read` tells why, as
    is a path that must not be looked at. Raises BadInput for a path that does not exist, before
    anything is yielded.
    """
    roots = [os.path.realpath(path) for path in paths if exists(path)]
    seen = {os.path.realpath(path) for path in ignore}  # one short string a file, for the walk
    for root in roots:
        if not os.path.isdir(root):
            if root not in seen:
                yield Path(root)
            seen.add(root)
    for root in roots:
        if os.path.isdir(root):
            yield from walk(root, seen)


def exists(path: str | os.PathLike[str]) -> bool:
    """True, or BadInput: a mistyped path must not read as an empty folder."""
    try:
        os.stat(path)
    except PermissionError:
        return True  # perhaps: reading it will tell
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        name = printable(Path(path).as_posix()) if os.fspath(path) else "an empty name"
        raise BadInput(
            f"cannot take {name}: {why}; give files and folders that are there"
        ) from None
    return True


def vanished(path: str | os.PathLike[str]) -> bool:
    """Is a file certainly not there? Not so where its folder must not be looked into."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def walk(root: str, seen: set[str]) -> Iterator[Path]:
    """The files below a folder, depth first. `seen` holds what was taken, and grows."""
    waiting = [root]
    while waiting:
        path = waiting.pop()
        real = path
        if os.path.islink(path):
            real = os.path.realpath(path)
            if os.path.isdir(real):
                yield Path(path)
                continue
        if real in seen:
            continue
        seen.add(real)
        if os.path.isdir(path):
            try:
                waiting.extend(reversed(children(path, named=path == root)))
            except OSError:
                yield Path(path)
        else:
            yield Path(real if os.path.exists(real) else path)


def children(folder: str, *, named: bool) -> list[str]:
    """What of a folder is to be looked at, sorted; of a cache or an index only where `named`."""
    names = os.listdir(folder)
    held = set(names)
    if not named and (not held.isdisjoint(MARKS) or held >= INDEX):
        return []
    kept = [name for name in names if not name.startswith(".") and name not in IGNORED]
    return [os.path.join(folder, name) for name in sorted(kept)]


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading. Never waits: a pipe or a device is refused."""
    if os.path.isdir(path):
        os.listdir(path)  # says "permission denied" where that is the reason
        linked = os.path.islink(path)
        raise NotAFile("a link to a folder; name the folder itself" if linked else "a folder")
    refuse_special(os.stat(path).st_mode)  # before opening: that alone may set a device going
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        refuse_special(os.fstat(file.fileno()).st_mode)
    except NotAFile:
        file.close()
        raise
    return file


class NotAFile(OSError):
    """A name that stands for something other than a regular file."""


def refuse_special(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFile("not a regular file (a pipe, socket or device)")


ESCAPED = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def source_of(path: str | os.PathLike[str]) -> str:
    """The name under which a file is known: its absolute path with links resolved, as text.

    With forward slashes. Line breaks, control characters, backslashes and bytes that are not UTF-8
    are written as \\xNN, so that the name can be printed and stored; `path_of` gives the path back.
    """
    return printable(Path(os.path.realpath(path)).as_posix())


def printable(name: str) -> str:
    return ESCAPED.sub(
        lambda found: "".join(f"\\x{byte:02x}" for byte in os.fsencode(found.group())), name
    )


def as_typed(pattern: str) -> tuple[str, str]:
    """A name or pattern in the two ways it may be meant: as a source is shown, its \\xNN included,
    and as the file is called.

    >>> as_typed("a\\x0ab"), as_typed("a\\nb")
    (('a\\\\x0ab', 'a\\\\x5cx0ab'), ('a\\\\x0ab', 'a\\\\x0ab'))
    """
    return "\\".join(map(printable, pattern.split("\\"))), printable(pattern)


def path_of(source: str) -> Path:
    """The path of a file from its `source_of`."""
    raw = re.sub(
        rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), os.fsencode(source)
    )
    return Path(os.fsdecode(raw))
