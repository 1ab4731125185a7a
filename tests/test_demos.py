"""The pages: built, driven in a real browser, and not to be broken by what files hold."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import pytest

import apps.demos
from apps import wiring
from apps.demos import library, markup, search, site
from apps.demos.shelf import LIBRARY, UPLOADS, Shelf, conditions
from lfm2_mm.errors import BadInput, IndexMissing, NotAvailable
from retrieval.encoder import Encoder, open_encoder
from retrieval.types import MODES, Hit, Match
from tests import tiny
from tests.browser import Visit, chromium
from tests.words_encoder import WordsEncoder

HOSTILE = "<img src=x onerror=document.title='owned'> ${document.title='owned'} {{#each value}} `x`"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tiny.colbert_folder(tmp_path_factory.mktemp("model") / "tiny")
    return open_encoder(folder, device="cpu", dtype="fp32")


@pytest.fixture
def shelf(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """A shelf whose library is two short texts: the installed packages would take a while."""
    texts = [
        ("docs/refunds.md", "A refund takes five days.", "refunds"),
        ("package/bread", "Bread needs flour, water and an oven.", "bread"),
    ]
    monkeypatch.setattr(library, "texts", lambda: iter(texts))
    with closing(Shelf(tmp_path, encoder)) as made:
        yield made


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """A shelf with thousands of uploaded passages, and a library that takes a while once begun."""
    many = [(f"package/{i}", f"package number {i} bakes bread. " * 20, str(i)) for i in range(9000)]
    monkeypatch.setattr(library, "texts", lambda: iter(many))
    with closing(Shelf(tmp_path / "home", WordsEncoder())) as made:
        files = [tmp_path / f"{n}.txt" for n in range(20)]
        for file in files:
            file.write_text("\n\n".join(f"Passage {n} of bread. " * 5 for n in range(130)))
        made.upload([str(file) for file in files])
        yield made


@pytest.fixture
def address(shelf: Shelf) -> Iterator[str]:
    """The page, served; its library is being prepared as in the real thing."""
    served = site.Site([search.page(shelf)], host="127.0.0.1", port=0)
    shelf.start()
    yield f"{served.address}search/"
    served.close()


def test_the_page_builds(shelf: Shelf) -> None:
    assert isinstance(search.build(shelf), gr.Blocks)


def test_every_page_is_in_the_bar() -> None:
    found = [one.name for one in pkgutil.iter_modules(apps.demos.__path__)]
    modules = [importlib.import_module(f"apps.demos.{name}") for name in found]
    pages = {m.__name__.rpartition(".")[2] for m in modules if hasattr(m, "build")}
    assert pages == {path for path, _ in site.BAR} - {""}


# ---- in the browser -------------------------------------------------------------------------


@pytest.mark.browser
def test_upload_search_open_delete(address: str, tmp_path: Path) -> None:
    refunds, bread = tmp_path / "refunds.txt", tmp_path / "<img src=x>{{bread}}.md"
    refunds.write_text("Opening hours are on the door.\n\n" * 40 + "Refunds: ask for the form.\n")
    bread.write_text(f"# Bread\n\nFlour, water, an oven. {HOSTILE}\n")
    with chromium() as visit:
        page = visit.page
        page.goto(address)
        page.set_input_files("#shelf input[type=file]", [refunds, bread])
        page.wait_for_function("document.querySelector('#told').innerText.includes('2 added')")
        page.wait_for_function("document.querySelectorAll('#documents li').length == 2")

        ask(visit, "refunds form")
        first = page.locator(".hit").first
        assert "refunds.txt" in first.inner_text()
        assert {"refunds", "form"} & {m.lower() for m in first.locator("mark").all_inner_texts()}

        first.locator(".open").click()
        page.wait_for_selector("#source .passage")
        assert "ask for the form" in page.inner_text("#source .passage")
        assert "Opening hours" in page.inner_text("#source pre")
        page.wait_for_function(IN_VIEW)

        ask(visit, "onerror title")
        assert "onerror" in page.locator("#results").inner_text()  # shown as text, not run
        page.locator("#documents .delete").first.click()
        page.wait_for_function("document.querySelectorAll('#documents li').length == 1")
        assert len(visit.asked) == 1 and visit.asked[0].startswith("Delete ")
        assert page.title() == "Search your documents"
        assert visit.elsewhere == [] and visit.errors == []


IN_VIEW = """() => {
  const box = document.querySelector('#source pre').getBoundingClientRect();
  const passage = document.querySelector('#source .passage').getBoundingClientRect();
  return passage.bottom > box.top && passage.top < box.bottom;
}"""


def ask(visit: Visit, query: str) -> None:
    """Search, and wait until the results are those of this query."""
    page = visit.page
    page.evaluate("document.querySelectorAll('.hit').forEach(hit => hit.remove())")
    page.fill("#query textarea, #query input", query)
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")


@pytest.mark.browser
def test_filter_and_recall_meter(address: str) -> None:
    with chromium() as visit:
        page = visit.page
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('#documents li').length == 2")
        ask(visit, "refund bread")
        page.wait_for_function("document.querySelectorAll('.hit').length == 2")
        page.get_by_label("Filter").fill("package/*")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelectorAll('.hit').length == 1")
        assert page.locator(".hit .open").inner_text() == "package/bread"
        page.click("#measure")
        page.wait_for_selector("#recall .meter")
        assert "100.0% of the 10 best" in page.inner_text("#recall")
        assert visit.elsewhere == [] and visit.errors == []


@pytest.mark.browser
def test_ready_at_once_also_in_the_dark(address: str) -> None:
    with chromium(color_scheme="dark") as visit:
        page = visit.page
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('#documents li').length == 2")
        ask(visit, "refund")
        assert page.locator(".hit").first.locator(".open").inner_text() == "docs/refunds.md"
        page.get_by_label("Words", exact=True).check()
        page.wait_for_function("document.querySelectorAll('.hit').length == 1")
        assert visit.elsewhere == [] and visit.errors == []


@pytest.mark.browser
def test_a_collection_answers_on_the_page_while_another_is_being_built(
    busy: Shelf,
) -> None:
    served = site.Site([search.page(busy)], host="127.0.0.1", port=0)
    with closing(served), chromium() as visit:
        page = visit.page
        page.goto(f"{served.address}search/")
        page.get_by_label("Collection").click()
        page.get_by_role("option", name=UPLOADS).click()
        page.wait_for_function("document.querySelectorAll('#documents li').length == 20")
        busy.start()
        while "so far" not in busy.preparing:
            assert busy._worker.is_alive(), busy.preparing
            time.sleep(0.01)
        for query in ("bread passage", "passage of bread"):
            ask(visit, query)
            assert page.locator(".hit").count() == 10
            assert re.fullmatch(r"\d+\.txt", page.locator(".hit .open").first.inner_text())
        assert "so far" in busy.preparing
        assert visit.elsewhere == [] and visit.errors == []


# ---- the shelf ------------------------------------------------------------------------------


def test_the_library_is_searched_and_read_at_the_place(shelf: Shelf) -> None:
    shelf.prepare()
    assert shelf.preparing == ""
    (hit,) = shelf.search(LIBRARY, "refund", 3, "lexical")
    assert shelf.index(LIBRARY).text(hit.document)[hit.start : hit.end] == hit.text
    assert shelf.search(LIBRARY, "refund", 3, "lexical", "package/*") == []


def test_thousands_of_passages_answer_while_another_index_is_being_built(busy: Shelf) -> None:
    assert busy.contents(UPLOADS)[1].chunks > 2000
    busy.start()
    while "so far" not in busy.preparing:
        assert busy._worker.is_alive(), busy.preparing
        time.sleep(0.01)
    for mode in MODES:
        assert len(busy.search(UPLOADS, "bread passage", 10, mode)) == 10
        busy.search(LIBRARY, "bread", 3, mode)  # also the one that is being built
    assert "so far" in busy.preparing


def test_the_recall_of_a_collection_is_measured(shelf: Shelf) -> None:
    assert "Nothing to measure" in markup.meter(shelf.recall(UPLOADS))
    shelf.prepare()
    found = shelf.recall(LIBRARY)
    assert (found.value, found.queries) == (1.0, 2)
    assert "100.0%" in markup.meter(found)


def test_a_damaged_library_is_made_anew(shelf: Shelf, encoder: Encoder, tmp_path: Path) -> None:
    shelf.prepare()
    (manifest,) = tmp_path.glob("library-*/manifest.json")
    manifest.write_bytes(manifest.read_bytes()[:-40])
    with closing(Shelf(tmp_path, encoder)) as again:
        again.prepare()
        assert again.preparing == "" and again.contents(LIBRARY)[1].documents == 2


def test_what_is_no_longer_installed_goes(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.prepare()
    texts = [("docs/refunds.md", "A refund takes six days.", "refunds")]
    monkeypatch.setattr(library, "texts", lambda: iter(texts))
    shelf.prepare()
    sources, info = shelf.contents(LIBRARY)
    assert [source.source for source in sources] == ["docs/refunds.md"] and info.documents == 1


def test_a_library_of_another_model_is_made_anew(
    shelf: Shelf, encoder: Encoder, tmp_path: Path
) -> None:
    shelf.prepare()
    other = open_encoder(tiny.colbert_folder(tmp_path / "other", seed=1), dtype="fp32")
    other.name = encoder.name  # the checkpoint's files were replaced by others
    with closing(Shelf(tmp_path, other)) as again:
        assert again.contents(LIBRARY)[1].documents == 0
        again.prepare()
        assert again.preparing == "" and again.contents(LIBRARY)[1].documents == 2


def test_uploads_replace_their_namesakes_and_go_with_the_shelf(
    tmp_path: Path, encoder: Encoder
) -> None:
    with closing(Shelf(tmp_path / "home", encoder)) as shelf:
        file = tmp_path / "a.txt"
        for text, expected in (("first words", (1, 0)), ("second words, more", (0, 1))):
            file.write_text(text)
            report = shelf.upload([str(file)])
            assert (report.added, report.updated) == expected
        (hit,) = shelf.search(UPLOADS, "second", 5, "lexical")
        assert shelf.shown(hit.source) == "a.txt"
        shelf.delete(UPLOADS, hit.source)
        assert shelf.contents(UPLOADS)[0] == []
        with pytest.raises(BadInput, match="at most"):
            shelf.upload([str(file)] * 1000)
    assert not shelf.temporary.exists()


def test_a_home_that_cannot_be_made_is_told_with_the_way_out(
    tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAvailable, match="LFM2_MM_HOME"):
        Shelf(tmp_path / "file" / "home", encoder)


def test_an_index_given_is_shown_by_its_name(tmp_path: Path, encoder: Encoder) -> None:
    import retrieval

    (tmp_path / "a.txt").write_text("words")
    for name in ("one.index", "two.index"):
        with retrieval.open(tmp_path / "all" / name, model=encoder, create=True) as index:
            index.update([tmp_path / "a.txt"])
    given = wiring.open_indexes(tmp_path / "all", encoder)
    with closing(Shelf(tmp_path, encoder, given)) as shelf:
        assert list(shelf.indexes) == [LIBRARY, UPLOADS, "one.index", "two.index"]
        assert shelf.contents("two.index")[1].documents == 1
    assert given["one.index"].info().documents == 1  # whoever gave it goes on with it
    assert list(wiring.open_indexes(tmp_path / "all" / "one.index", encoder)) == ["one.index"]
    assert list(wiring.open_indexes(tmp_path / "new", encoder)) == ["new"]
    with pytest.raises(IndexMissing, match="holds none"):
        wiring.open_indexes(Path(__file__).parent)


def test_filters_as_a_person_types_them() -> None:
    assert conditions("") == []
    assert conditions("*.pdf team=sales") == [("source", "*.pdf"), ("team", "sales")]
    assert conditions("'my file.txt' date>=2024") == [("source", "my file.txt"), ("date>=", "2024")]
    with pytest.raises(BadInput):
        conditions("'half")


def test_the_library_knows_what_is_installed() -> None:
    texts = list(library.texts())
    sources = [source for source, _, _ in texts]
    assert len(set(sources)) == len(sources) and "package/gradio" in sources
    assert all(len(text) >= library.LEAST for source, text, _ in texts if "package/" in source)


# ---- the markup -----------------------------------------------------------------------------


OURS = {"article", "b", "button", "div", "header", "i", "li", "mark", "p", "pre", "small", "span"}
OURS |= {"ul"}


def hit_of(text: str, *matches: Match, **more: object) -> Hit:
    fields = {"rank": 1, "score": 2.0, "id": 1, "document": 1, "source": HOSTILE, "start": 0}
    fields |= {"end": len(text), "text": text, "page": None, "heading": HOSTILE, "matches": matches}
    return Hit(**{**fields, **more})  # type: ignore[arg-type]


def test_nothing_hostile_reaches_the_page() -> None:
    hit = hit_of(HOSTILE, Match(HOSTILE, "src", 5, 8, 0.9))
    made = [
        markup.cards([hit], [HOSTILE]),
        markup.source(HOSTILE, HOSTILE, hit),
        markup.documents([(HOSTILE, HOSTILE, 1)]),
        markup.note(HOSTILE),
    ]
    for page in made:
        assert "<img" not in page and "${" not in page and "{{" not in page and "`" not in page
        tags = set(re.findall(r"<(\w+)", page))
        assert tags <= OURS


def test_words_are_marked_by_strength_and_once() -> None:
    text = "flour and water"
    matches = [
        Match("a", "flour", 0, 5, 0.9),
        Match("b", "flo", 0, 3, 0.4),
        Match("c", "water", 10, 15, -1.0),
    ]
    shown = markup.marked(text, matches)
    assert re.sub("<[^>]+>", "", shown) == text
    assert re.findall(r"--strength:([\d.]+)", shown) == ["0.90", "0.15"]


@pytest.mark.parametrize("at", [0, 300, 700, 1500, 1995])
def test_an_excerpt_holds_the_strongest_match(at: int) -> None:
    text = ("word " * 400)[:at] + "needle" + (" word" * 400)[: 2000 - at]
    match = Match("needle", "needle", at, at + 6, 1.0)
    start, end = markup.excerpt(text, [match])
    assert 0 <= start <= at and at + 6 <= end <= len(text) and end - start <= markup.EXCERPT
    assert "needle</mark>" in markup.cards([hit_of(text, match)], ["x"])


def test_a_source_far_longer_than_the_page_is_cut_around_the_hit() -> None:
    text = "a" * 100_000 + "needle" + "b" * 100_000
    page = markup.source("x", text, hit_of("needle", start=100_000, end=100_006))
    assert "needle" in page and len(page) < 2 * markup.AROUND + 1000


def test_a_port_that_is_taken_is_told(shelf: Shelf, address: str) -> None:
    port = urlsplit(address).port
    assert port
    with pytest.raises(BadInput, match="--port"):
        site.Site([search.page(shelf)], host="127.0.0.1", port=port)


def test_closing_stops_the_preparation_and_keeps_what_was_done(
    shelf: Shelf, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [(f"package/{i}", f"package number {i} bakes bread. " * 20, str(i)) for i in range(3000)]
    monkeypatch.setattr(library, "texts", lambda: iter(many))
    shelf.start()
    while "so far" not in shelf.preparing:
        assert shelf._worker.is_alive()
        time.sleep(0.01)
    shelf.close()
    assert not shelf._worker.is_alive() and "goes on from here" in shelf.preparing
    with closing(Shelf(tmp_path, encoder)) as again:
        assert again.index(LIBRARY).check() == []
        assert again.contents(LIBRARY)[1].documents < 3000


def test_the_library_says_how_far_it_is(shelf: Shelf) -> None:
    seen: list[str] = []
    tell = shelf._tell
    shelf._tell = lambda step: seen.append(tell(step) or shelf.preparing)  # type: ignore
    shelf.prepare()
    assert seen[-1] == "Indexing: 2 of 2 documents, 2 passages so far"
