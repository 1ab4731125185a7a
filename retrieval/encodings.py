"""Bytes to text: what kind of bytes they are, and in which encoding. Knows no files, no formats."""

from __future__ import annotations

import codecs
import re

SNIFFED = 65536  # bytes that decide whether something is text at all
BOMS = (  # utf-32 first: its little-endian mark begins with that of utf-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MAGIC = (  # (offset, bytes, what a person calls it)
    (0, b"%PDF-", "a PDF"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (8, b"WEBP", "a WebP picture"),
    (8, b"WAVE", "a WAV recording"),
    (8, b"AVI ", "an AVI video"),
    (4, b"ftyp", "an MP4 video or HEIF picture"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"OggS", "an Ogg recording"),
    (0, b"fLaC", "a FLAC recording"),
    (0, b"ID3", "an MP3 recording"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"(\xb5/\xfd", "a Zstandard archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file, or an encrypted one"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ\x90", "a Windows program"),
    (0, b"\xca\xfe\xba\xbe", "a compiled Java class or program"),
)
CONTROLS = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")


class Undecodable(Exception):
    """Why bytes are not text; the message is for people."""


def magic(head: bytes) -> str | None:
    """What the first bytes say a file is, in words; None where they say nothing."""
    return next((name for at, mark, name in MAGIC if head.startswith(mark, at)), None)


def binary(head: bytes) -> str | None:
    """Why the first block cannot be text, in words; None where it may be."""
    known = magic(head)
    if known:
        return known
    if any(head.startswith(bom) for bom, _ in BOMS):
        return None
    if b"\0" in head:
        return "binary (it holds NUL bytes)"
    if len(CONTROLS.findall(head)) > len(head) * 0.02:
        return "binary (it is full of control characters)"
    return None


def decode(data: bytes, declared: str | None = None) -> tuple[str, list[str]]:
    """The text and notes on what was lost. Tries a byte order mark, UTF-8, `declared`, a guess.

    Raises Undecodable rather than return what is known to be wrong.
    """
    for bom, encoding in BOMS:
        if data.startswith(bom):
            return strictly(data[len(bom) :], encoding), []
    nul = data.find(b"\0")
    if nul >= 0:
        raise Undecodable(f"binary (a NUL byte at {nul:,})")
    if b"\x1b$" in data and fits(data, "iso2022_jp_2"):  # 7 bits, hence also valid UTF-8
        return strictly(data, "iso2022_jp_2"), []
    if fits(data, "utf-8"):
        return strictly(data, "utf-8"), []
    text = data.decode("utf-8", "replace")
    bad, foreign = text.count("\ufffd"), len(text) - len(text.encode("ascii", "ignore"))
    damage = [f"{bad} characters are not valid UTF-8"]
    if bad * 10 < foreign:
        return text, damage
    for encoding in filter(None, (declared, guess(data))):
        if fits(data, encoding):
            return strictly(data, encoding), []
    if bad * 100 < len(text):
        return text, damage
    raise Undecodable("its text encoding was not recognised; save it as UTF-8")


def strictly(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        place = f"damaged at byte {error.start:,}"
        raise Undecodable(f"its encoding seems to be {encoding}, but it is {place}") from None


def fits(data: bytes, encoding: str) -> bool:
    """Whether `encoding` is one that Python knows, and decodes these bytes."""
    try:
        "".encode(encoding)  # refuses what is no text encoding: zip, hex, ...
        data.decode(encoding)
        return True
    except (LookupError, UnicodeError):
        return False


# The encodings that files without a mark are in, the likelier first: a tie goes to the first.
LIKELY = ["cp1252", "cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1251", "koi8_r", "cp1250"]
LIKELY += ["cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874", "cp437", "mac_roman"]
CLOSE = 0.1  # of mess (0 to 1) by which a likelier encoding may look worse and still be taken


def guess(data: bytes) -> str | None:
    """The likeliest encoding by the lines that hold more than ASCII; None if none makes sense."""
    from charset_normalizer import from_bytes

    matches = from_bytes(sample(data), cp_isolation=LIKELY)
    best = matches.best()
    if best is None:
        return None
    as_good = {
        match.encoding
        for match in matches
        if match.coherence >= best.coherence and match.chaos <= best.chaos + CLOSE
    }
    return next(name for name in LIKELY if name in as_good)


def sample(data: bytes) -> bytes:
    """Lines with more than ASCII, up to a block of them; a character is not torn at its end."""
    lines, size = [], 0
    for found in re.finditer(rb"[^\n]*[\x80-\xff][^\n]*\n?", data):
        line = found.group()[: SNIFFED - size]
        lines.append(line)
        size += len(line)
        if size >= SNIFFED:
            whole = re.match(rb"(?s).*[\x00-\x2f]", line)  # not a second byte in any encoding
            lines[-1] = whole.group() if whole else line
            break
    return b"".join(lines)
