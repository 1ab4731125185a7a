"""Reading real files of every kind, whole and broken: the text, or the reason why not."""

import io
import json
import zipfile
from pathlib import Path

import pypdf
import pytest

from lfm2_mm.errors import Unreadable
from retrieval.documents import KINDS, cut, read
from retrieval.extract import MAX_CHARACTERS
from retrieval.formats import READERS
from tests.test_chunks import check, count


def written(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as caught:
        read(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def pdf(*pages: str, title: str = "") -> bytes:
    """A PDF with one line of Helvetica on each page, and none where it is empty."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, line in enumerate(pages):
        content = f"BT /F1 12 Tf 72 700 Td ({line}) Tj ET" if line else ""
        objects += [
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {5 + 2 * number} 0 R>>",
            f"<</Length {len(content)}>>stream\n{content}\nendstream",
        ]
    objects.append(f"<</Title({title})>>")
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj{body}endobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = (
        f"xref\n0 {size}\n0000000000 65535 f \n{table}"
        f"trailer<</Size {size}/Root 1 0 R/Info {size - 1} 0 R>>\n"
        f"startxref\n{len(out)}\n%%EOF\n"
    )
    return out + end.encode()


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
STYLES = f"""<w:styles {W}><w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>
<w:style w:styleId="Sub"><w:name w:val="Mine"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>
</w:styles>"""


def paragraph(*runs: str, style: str = "") -> str:
    looks = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    inner = "".join(f'<w:r><w:t xml:space="preserve">{run}</w:t></w:r>' for run in runs)
    return f"<w:p>{looks}{inner}</w:p>"


def docx(body: str, prolog: str = "", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("word/styles.xml", STYLES)
        document = f"<w:document {W}><w:body>{body}</w:body></w:document>"
        archive.writestr("word/document.xml", prolog + document)
    return out.getvalue()


def test_every_kind_has_a_reader():
    assert set(KINDS.values()) == set(READERS)


@pytest.mark.parametrize("name", ["a.txt", "README", "a.md", "a.py", "a.csv", "a.odd"])
def test_plain_text_is_kept_to_the_character(tmp_path, name):
    text = "Erste Zeile\r\n\tzweite  \n\n日本語 🙂\x0c\n"
    document = read(written(tmp_path, name, text))
    assert document.text == text
    assert document.kind == KINDS.get(Path(name).suffix, "text")
    for chunk in check(document, 8):
        assert text[chunk.start : chunk.end] == chunk.text


SENTENCES = (
    "Die Prüfung für das Café: Größe, Übung, Straße. Ça coûte 5 euros à l'été, déjà vu. " * 8
)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", SENTENCES),
        ("utf-8-sig", SENTENCES),
        ("utf-16", SENTENCES),
        ("utf-32", SENTENCES),
        ("cp1252", SENTENCES),
        ("shift_jis", "東京は日本の首都であり、世界最大の都市のひとつです。" * 20),
        ("euc_jp", "東京は日本の首都であり、世界最大の都市のひとつです。" * 20),
        ("iso2022_jp", "東京は日本の首都であり、世界最大の都市のひとつです。" * 20),
        ("gb18030", "我们今天去公园散步，天气很好，大家都很高兴。" * 20),
        ("big5", "我們今天去公園散步，天氣很好，大家都很高興。" * 20),
        ("cp1251", "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20),
        ("euc_kr", "대한민국의 수도는 서울이며 세계에서 가장 큰 도시 중 하나입니다. " * 20),
    ],
)
@pytest.mark.parametrize("plain_before", [0, 300_000])
def test_encodings_are_found_also_behind_much_plain_text(tmp_path, encoding, text, plain_before):
    whole = "plain line\n" * (plain_before // 11) + text
    assert read(written(tmp_path, "a.txt", whole.encode(encoding))).text == whole


NOISE = bytes(128 + (n * n * 7 + n) % 128 for n in range(4000))


def test_a_few_broken_characters_do_not_spoil_the_rest(tmp_path):
    data = ("größer, schöner, weiter, übermütig. " * 20).encode() + b"\xff end"
    document = read(written(tmp_path, "a.log", data))
    assert document.text.startswith("größer, schöner")
    assert document.text.endswith("\ufffd end")
    assert document.notes == ("1 characters are not valid UTF-8",)
    ascii_text = b"a plain line of a log\n" * 900
    document = read(written(tmp_path, "b.log", ascii_text + NOISE[:100]))
    assert "not valid UTF-8" in document.notes[0]
    assert document.text.startswith(ascii_text.decode())


def test_what_is_in_no_encoding_is_refused(tmp_path):
    refused(written(tmp_path, "a.txt", NOISE), "encoding was not recognised")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\t\xc2\xa0\n", "no text in it"),
        ("a.txt", b"\xef\xbb\xbf", "no text in it"),
        ("a.txt", b"text\0text", "binary .*NUL"),
        ("a.md", b"x" * 70_000 + b"\0", "NUL byte at 70,000"),
        ("a.txt", bytes(range(1, 32)) * 9, "control characters"),
        ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(50), r"a PNG picture, although it is named \.txt"),
        ("a.xyz", b"\xff\xd8\xff\xe0" + bytes(50), r"no reader for \.xyz: a JPEG picture"),
        ("a.mp4", b"\0\0\0\x20ftypisom" + bytes(50), r"no reader for \.mp4: an MP4 video"),
        ("a.zip", b"PK\x03\x04" + bytes(50), "a zip archive"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "an old Office file"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "or an encrypted one"),
        ("a.bin", bytes(range(256)) * 40, r"no reader for \.bin: binary"),
        ("a.html", b"<title>Only</title><script>text</script>", "no text"),
        ("a.json", b"[]", "no text"),
        ("a.pdf", b"<html>Not found</html>", r"not a PDF, although it is named \.pdf"),
        ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "damaged or truncated PDF"),
        ("a.docx", b"PK\x03\x04" + b"x" * 50, "damaged or truncated Word"),
        ("a.docx", b"Dear Sir", "not a Word document"),
        ("a.txt", b"\xff\xfe\x00\xd8\x41\x00", "utf-16-le, but it is damaged at byte"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, name, data, reason):
    refused(written(tmp_path, name, data), reason)


def test_a_missing_file_and_a_folder_say_why(tmp_path):
    refused(tmp_path / "gone.txt", "No such file")
    refused(tmp_path, "a folder")


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    for name, start, reason in (("zeros.txt", b"", "NUL"), ("big.txt", b"a" * 70_000, "NUL|large")):
        path = written(tmp_path, name, start)
        with path.open("r+b") as file:
            file.truncate(1 << 30)  # a sparse file: it takes no room on the disk
        refused(path, reason)


def test_a_text_beyond_the_limit_is_refused(tmp_path):
    refused(written(tmp_path, "a.txt", b"word " * (MAX_CHARACTERS // 5 + 1)), "limit .* 64 MB")


def test_markdown_and_rst_take_their_title_from_the_first_heading(tmp_path):
    assert read(written(tmp_path, "a.md", "intro\n\n# The guide\n")).title == "The guide"
    assert read(written(tmp_path, "a.rst", "The guide\n=========\n")).title == "The guide"
    assert read(written(tmp_path, "notes.txt", "# no\n")).title == "notes"
    assert read(written(tmp_path, "x.py", "def f():\n    pass\n")).title == "x.py"


HTML = """<!doctype html><html><head><meta charset="utf-8"><title>The
 page &amp; more</title><style>p {}</style></head><body><nav><a>Home</a></nav>
<h1>Guide <small>new</small></h1><p>One <b>bo</b>ld,<br>two.<p>Three&nbsp;four
<h2>Refunds</h2><ul><li>first<li><p>second</p></ul><script>if (a < b) {}</script>
<pre># not a heading
  kept</pre><table><tr><th>Price<td>5</tr></table><img alt="a cat"></body></html>"""


def test_html_is_what_a_reader_sees_with_headings(tmp_path):
    document = read(written(tmp_path, "a.html", HTML))
    assert document.title == "The page & more"
    assert document.text == (
        "Guide new\n\nOne bold,\ntwo.\n\nThree four\n\nRefunds\n\nfirst\n\nsecond\n\n"
        "# not a heading\n  kept\n\nPrice 5\n\na cat"
    )
    chunks = check(document, 100)
    assert [c.heading for c in chunks] == ["Guide new", "Guide new > Refunds"]
    assert chunks[1].text.startswith("Refunds\n\nfirst")


def test_html_says_its_encoding_and_survives_depth_and_dirt(tmp_path):
    latin = "<meta http-equiv=x content='text/html; charset=ISO-8859-1'><p>Größe “5 €”"
    assert read(written(tmp_path, "l.html", latin.encode("cp1252"))).text == "Größe “5 €”"
    deep = "<div>" * 200_000 + "bottom" + "</div>" * 200_000 + "<p>after"
    assert read(written(tmp_path, "deep.html", deep)).text == "bottom\n\nafter"
    dirty = "<p>a</div></nav></p><p>b<!-- <p>c --><x y='" + "z" * 10 + "'>d&#xD800;&#0;"
    assert read(written(tmp_path, "dirty.html", dirty)).text.startswith("a\n\nbd")


def test_pdf_pages_keep_their_numbers_and_blank_ones_are_told(tmp_path):
    data = pdf("First page.", "", "Third page.", title="Annual report")
    document = read(written(tmp_path, "a.pdf", data))
    assert (document.kind, document.title) == ("pdf", "Annual report")
    assert document.notes == ("1 pages without text: 2",)
    assert [(c.page, c.text) for c in check(document, 50)] == [
        (1, "First page."),
        (3, "Third page."),
    ]


def test_a_pdf_of_another_name_is_read_as_a_pdf(tmp_path):
    document = read(written(tmp_path, "a.txt", pdf("Hello there.")))
    assert (document.kind, document.text.strip(), document.title) == ("pdf", "Hello there.", "a")


def test_a_scanned_pdf_is_refused(tmp_path):
    refused(written(tmp_path, "scan.pdf", pdf("", "")), "no text layer in its 2 pages")


def test_an_encrypted_pdf_is_refused(tmp_path):
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Secret.")))
    writer.encrypt("user", "owner", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    refused(tmp_path / "locked.pdf", "an encrypted PDF")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_truncated_pdf_is_refused(tmp_path, share):
    data = pdf(*[f"Page number {n}." for n in range(20)])
    path = written(tmp_path, "cut.pdf", data[: int(len(data) * share)])
    refused(path, "damaged or truncated PDF")


def test_a_pdf_with_a_lost_page_is_read_without_it(tmp_path):
    data = pdf("First page.", "Second page.")
    lost = read(written(tmp_path, "lost.pdf", data.replace(b"Kids[4 0 R", b"Kids[3 0 R")))
    assert "Second page." in lost.text
    assert len(lost.notes) == 1
    assert lost.notes[0].endswith(": 1")


def test_many_pages_are_read_in_order(tmp_path):
    document = read(written(tmp_path, "long.pdf", pdf(*[f"Page {n}." for n in range(1, 1001)])))
    pages = [(c.page, c.text) for c in cut(document, 20, count)]
    assert pages == [(n, f"Page {n}.") for n in range(1, 1001)]


def test_word_paragraphs_headings_and_tables(tmp_path):
    cell = "<w:tc>" + paragraph("Price") + "</w:tc><w:tc>" + paragraph("5") + "</w:tc>"
    body = (
        paragraph("Gui", "de", style="berschrift1")
        + paragraph("One &amp; ", "two.")
        + paragraph("Refunds", style="Sub")
        + f"<w:tbl><w:tr>{cell}</w:tr><w:tr>{cell}</w:tr></w:tbl>"
        + paragraph("After.")
    )
    document = read(written(tmp_path, "a.docx", docx(body)))
    assert (document.kind, document.title) == ("docx", "Guide")
    assert document.text == "Guide\n\nOne & two.\n\nRefunds\n\nPrice 5\nPrice 5\n\nAfter."
    assert [c.heading for c in check(document, 100)] == ["Guide", "Guide > Refunds"]


def test_word_bombs_entities_and_damage_are_refused(tmp_path):
    bomb = docx(paragraph("a" * 20_000_000))
    refused(written(tmp_path, "bomb.docx", bomb), "unpacks .* to 20,0")
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    refused(written(tmp_path, "laughs.docx", docx(paragraph("&b;"), laughs)), "DOCTYPE")
    whole = docx(paragraph("Text."))
    refused(written(tmp_path, "cut.docx", whole[:-30]), "damaged or truncated Word")
    refused(written(tmp_path, "xml.docx", docx("<w:p><w:t>never closed")), "damaged Word")
    stored = docx(paragraph("Text."), compression=zipfile.ZIP_STORED)
    flipped = stored.replace(b"Text.", b"Next.")
    refused(written(tmp_path, "flip.docx", flipped), "damaged or truncated Word")
    sheet = io.BytesIO()
    with zipfile.ZipFile(sheet, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    refused(written(tmp_path, "sheet.docx", sheet.getvalue()), "holds no word/document.xml")


def test_json_lines_become_records_under_their_titles(tmp_path):
    lines = [
        json.dumps(
            {"_id": "d1", "title": "Café", "text": "東京 " * 3, "n": {"x": [1, None, True]}}
        ),
        "",
        '{"_id": "d2", broken',
        json.dumps({"_id": "d3", "text": "lone \ud800 surrogate"}),
    ]
    document = read(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert document.text == (
        "_id: d1\ntitle: Café\ntext: 東京 東京 東京 \nn.x: 1\nn.x: True\n\n"
        '{"_id": "d2", broken\n\n_id: d3\ntext: lone \ufffd surrogate'
    )
    assert [c.heading for c in check(document, 100)] == ["Café", "record 3", "d3"]


def test_json_of_any_depth_and_damage_is_read(tmp_path):
    nested = '{"a": {"b": ["x", "y"]}}'
    assert read(written(tmp_path, "a.json", nested)).text == "a.b: x\na.b: y"
    deep = "[" * 100_000 + '"bottom"' + "]" * 100_000
    assert "bottom" in read(written(tmp_path, "deep.json", deep)).text
    assert read(written(tmp_path, "cut.json", '{"a": "b')).text == '{"a": "b'


def test_csv_rows_are_not_torn_where_they_fit(tmp_path):
    rows = [f"{n},name {n},{n * 7}" for n in range(200)]
    chunks = check(read(written(tmp_path, "a.csv", "\n".join(rows) + "\n")), 60)
    assert len(chunks) > 10
    assert [row for chunk in chunks for row in chunk.text.split("\n")] == rows


@pytest.mark.parametrize(
    ("name", "text", "heading"),
    [
        ("a.csv", 'name,"price, net"\nTea,3\nJam,4\n', "name, price, net"),
        ("a.tsv", "name\tprice\r\nTea\t3\r\n", "name, price"),
        ("a.csv", "\r\nname,price\rTea,3\rJam,4\r", "name, price"),
        ("a.csv", "\n;\n", ""),
        ("a.csv", "Tea,3\nJam,4\n", ""),
        ("a.csv", "one column\nTea\n", ""),
    ],
)
def test_rows_of_a_table_stand_under_its_column_names(tmp_path, name, text, heading):
    document = read(written(tmp_path, name, text))
    assert document.title == "a"
    assert {chunk.heading for chunk in check(document, 12)} == {heading}
