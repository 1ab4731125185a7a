"""The text in the bytes of a file, for each kind. Knows open files; knows no paths, no passages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from retrieval.docx import read_docx
from retrieval.encodings import SNIFFED, Undecodable, binary, decode
from retrieval.extract import MAX_CHARACTERS, Extract, Refused, Writer
from retrieval.html import declared_charset, read_html
from retrieval.pdf import read_pdf

MAX_BYTES = MAX_CHARACTERS  # of a file that is text itself


def read_bytes(file: BinaryIO) -> bytes:
    """All of a file that is text; a binary one is refused after its first block."""
    head = file.read(SNIFFED)
    why = binary(head)
    if why:
        raise Refused(why)
    rest = file.read(MAX_BYTES + 1 - len(head))
    if len(head) + len(rest) > MAX_BYTES:
        raise Refused(f"too large; the limit for a text is {MAX_BYTES >> 20} MB: split it")
    return head + rest


def decoded(data: bytes, declared: str | None = None) -> tuple[str, tuple[str, ...]]:
    try:
        text, notes = decode(data, declared)
    except Undecodable as error:
        raise Refused(str(error)) from None
    return text, tuple(notes)


def read_plain(file: BinaryIO) -> Extract:
    """Text, markdown, rst, code, csv and logs: the file as it is."""
    text, notes = decoded(read_bytes(file))
    return Extract(text, notes=notes)


def read_html_file(file: BinaryIO) -> Extract:
    data = read_bytes(file)
    text, notes = decoded(data, declared_charset(data))
    return read_html(text, notes)


def read_json(file: BinaryIO) -> Extract:
    """JSON and JSON lines as "key: value" lines, one section a record; escapes are resolved.

    What does not parse is kept as it stands: a broken line loses nothing.
    """
    text, notes = decoded(read_bytes(file))
    try:
        whole = json.loads(text)
        records: Iterator[Any] = iter(whole if isinstance(whole, list) else [whole])
    except (ValueError, RecursionError):
        records = map(parsed, text.splitlines())
    out = Writer(notes)
    for number, record in enumerate(records, 1):
        write_record(out, record, number)
    return out.extract()


def parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def write_record(out: Writer, record: Any, number: int) -> None:
    """A record under its title or number."""
    if isinstance(record, str) and not record.strip():
        return
    named = record if isinstance(record, dict) else {}
    titles = (named.get(key) for key in ("title", "name", "_id", "id"))
    title = next((str(t) for t in titles if isinstance(t, str | int) and str(t).strip()), "")
    out.gap(2)
    out.mark(1, " ".join(title.split())[:200] or f"record {number}")
    for key, value in leaves(record):
        out.gap(1)
        out.write(f"{key}: {value}" if key else str(value))


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """(path, value) of the strings and numbers inside nested lists and objects, in order."""
    waiting = [("", value)]
    while waiting:  # a loop, since nesting may be deeper than Python's stack
        path, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{path}.{key}" if path else str(key), v) for key, v in value.items()]
            waiting.extend(reversed(inner))
        elif isinstance(value, list):
            waiting.extend((path, v) for v in reversed(value))
        elif value is not None and value != "":
            yield path, value


READERS: dict[str, Callable[[BinaryIO], Extract]] = {
    "text": read_plain,
    "markdown": read_plain,
    "rst": read_plain,
    "code": read_plain,
    "csv": read_plain,
    "log": read_plain,
    "json": read_json,
    "html": read_html_file,
    "pdf": read_pdf,
    "docx": read_docx,
}
