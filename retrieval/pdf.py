"""The text layer of a PDF, page by page. Knows pdfium; knows no paths."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from retrieval.extract import MAX_CHARACTERS, SURROGATE, Extract, Refused

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

PASSWORD_NEEDED = 4  # FPDF_ERR_PASSWORD
ONE_AT_A_TIME = threading.Lock()  # pdfium is not safe to use from two threads
BETWEEN_PAGES = "\n\n"


def read_pdf(file: BinaryIO) -> Extract:
    """All pages joined; `pages` tells where each begins, `notes` which ones gave nothing."""
    from pypdfium2 import PdfDocument, PdfiumError

    with ONE_AT_A_TIME:
        try:
            document = PdfDocument(file)
        except PdfiumError as error:
            if error.err_code == PASSWORD_NEEDED:
                raise Refused("an encrypted PDF: save a copy without its password") from None
            raise Refused("a damaged or truncated PDF") from None
        try:
            return join_pages(document)
        finally:
            document.close()


def join_pages(document: PdfDocument) -> Extract:
    parts: list[str] = []
    pages: list[int] = []
    blank: list[int] = []
    failed: list[int] = []
    length = 0
    for number in range(1, len(document) + 1):
        text = page_text(document, number - 1)
        if text is None:
            failed.append(number)
        elif not text.strip():
            blank.append(number)
        pages.append(length)
        parts.append((text or "").strip() + BETWEEN_PAGES)
        length += len(parts[-1])
        if length > MAX_CHARACTERS:
            raise Refused(f"more than {MAX_CHARACTERS:,} characters of text: split it")
    if len(failed) + len(blank) == len(pages):
        raise Refused(
            f"a damaged PDF: none of its {len(pages)} pages can be read"
            if failed or not pages
            else f"no text layer in its {len(pages)} pages (scanned?): run OCR first"
        )
    notes = noted(failed, "could not be read") + noted(blank, "without text")
    title = document.get_metadata_value("Title").strip()
    return Extract("".join(parts), SURROGATE.sub("\ufffd", title), pages=tuple(pages), notes=notes)


def page_text(document: PdfDocument, index: int) -> str | None:
    """The text of one page, None if it cannot be read. The page is closed again at once."""
    from pypdfium2 import PdfiumError

    try:
        page = document[index]
    except PdfiumError:
        return None
    try:
        layer = page.get_textpage()
        try:
            text = layer.get_text_bounded()
        finally:
            layer.close()
    except PdfiumError:
        return None
    finally:
        page.close()
    # pdfium writes U+FFFE (or U+0002) where a word was hyphenated at the end of a line
    for mark in ("\ufffe\r\n", "\x02\r\n", "\ufffe", "\x02", "\0", "\r"):
        text = text.replace(mark, "")
    return SURROGATE.sub("\ufffd", text)


def noted(numbers: Sequence[int], what: str) -> tuple[str, ...]:
    """One line about some pages: the first twenty by number."""
    if not numbers:
        return ()
    shown = ", ".join(map(str, numbers[:20])) + (", …" if len(numbers) > 20 else "")
    return (f"{len(numbers)} pages {what}: {shown}",)
