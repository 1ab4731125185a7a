"""The page about pictures: driven in a real browser, and what stands behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image as Pil

import vision
from apps import wiring
from apps.demos import answers, figures, samples, see, site
from apps.demos.figures import Shown
from apps.demos.pace import Pace
from apps.demos.viewer import SESSIONS, Viewer
from apps.lanes import Lane
from apps.service import Served, Service
from lfm2_mm.engines.remote import Remote
from lfm2_mm.errors import BadInput, ContextExceeded
from lfm2_mm.types import Done, Image, Message, Progress, Sampling, TextDelta, Timings, Usage
from tests import served, tiny_vision
from tests.browser import Visit, chromium
from vision import TokenBudget, plan_tiles

ALL = TokenBudget()
HOSTILE = "<img src=x onerror=document.title='owned'>{{x}}${x}.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.vl_folder(tmp_path_factory.mktemp("see") / "tiny-vl")


@pytest.fixture
def viewer(folder: Path) -> Viewer:
    engine = vision.open(folder, dtype="fp32")
    engine.advice = Sampling(temperature=0.0, max_tokens=40)
    return Viewer(engine)


@pytest.fixture
def address(viewer: Viewer, tmp_path: Path) -> Iterator[str]:
    served = site.Site([see.page(viewer, tmp_path / "samples")], host="127.0.0.1", port=0)
    yield f"{served.address}see/"
    served.close()


def drawn(path: Path, height: int = 150, width: int = 260, seed: int = 0) -> Path:
    Pil.fromarray(noise(height, width, seed)).save(path)
    return path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def asking(*pictures: Image, text: str = "What?") -> list[Message]:
    return [Message.user(*pictures, text)]


def computed(viewer: Viewer) -> int:
    return viewer.engine.pictures.encoder.computed


@pytest.fixture
def served_far(folder: Path) -> Iterator[Served]:
    """The same checkpoint behind a server of its own, as an engine sees it."""
    far = Served("tiny-vl", "vision", vision.open(folder, dtype="fp32"), Lane("far"))
    with served.serving(Service([far], {})) as address, closing(Remote(f"{address}v1")) as engine:
        yield Served(engine.name, "chat", engine, Lane("near"))


# ---- in the browser -------------------------------------------------------------------------


def visit_page(visit: Visit, address: str) -> Any:
    visit.page.set_default_timeout(120_000)  # of a machine that has other things to do, too
    visit.page.goto(address)
    visit.page.wait_for_selector("#box textarea")
    return visit.page


def ask(page: Any, text: str) -> None:
    page.fill("#box textarea", text)
    page.keyboard.press("Enter")


ANSWERED = "document.querySelector('#told').innerText.includes('first word after')"
UNLOOKED = "document.querySelector('#told').innerText.includes('nothing had to be looked at')"


@pytest.mark.browser
def test_grid_answer_and_a_second_question_without_vision(
    address: str, viewer: Viewer, tmp_path: Path
) -> None:
    tiled, plain = drawn(tmp_path / "tiled.png"), drawn(tmp_path / "plain.png", 60, 90)
    plans = [plan_tiles(*size, ALL, viewer.engine.pictures.rule) for size in ((150, 260), (60, 90))]
    with chromium() as visit:
        page = visit_page(visit, address)
        page.set_input_files("#box input[type=file]", [tiled, plain])
        page.wait_for_function("document.querySelectorAll('#seen figure').length == 2")
        for place, plan in enumerate(plans):
            shown = page.locator("#seen figure").nth(place)
            assert shown.locator(".grid i").count() == plan.rows * plan.cols
            assert f"{plan.tokens} tokens" in shown.inner_text()
        together = sum(plan.tokens for plan in plans)
        assert f"{together} image tokens" in page.inner_text("#seen .cost")
        assert computed(viewer) == 0  # nothing was computed to tell this

        page.evaluate(WATCH)
        slow_down(viewer, 0.02)
        ask(page, "What are these?")
        page.wait_for_function(ANSWERED)
        crops = sum(len(plan.crops) for plan in plans)
        assert computed(viewer) == crops
        shares = page.get_by_label("Share", exact=True)  # would send the picture elsewhere
        assert not any(shares.nth(i).is_visible() for i in range(shares.count()))
        names = [img.get_attribute("alt") for img in page.locator("#talk img").all()]
        assert names == ["tiled.png", "plain.png"]
        assert f"{together} image tokens" in page.inner_text("#told")
        assert page.evaluate("window.lengths.size") >= 3  # it came in pieces

        ask(page, "Are you sure?")
        page.wait_for_function(UNLOOKED)
        assert computed(viewer) == crops
        assert visit.elsewhere == [] and visit.errors == []


WATCH = """() => {
  window.lengths = new Set();
  const talk = document.querySelector('#talk');
  new MutationObserver(() => window.lengths.add(talk.innerText.length))
    .observe(talk, {subtree: true, childList: true, characterData: true});
}"""


@pytest.mark.browser
def test_a_server_answers_in_place_of_the_checkpoint_here(
    viewer: Viewer, served_far: Served, tmp_path: Path
) -> None:
    page_of = see.page(viewer, tmp_path / "samples", served_far)
    with closing(site.Site([page_of], host="127.0.0.1", port=0)) as here, chromium() as visit:
        page = visit_page(visit, f"{here.address}see/")
        page.get_by_label("tiny-vl, by a server").check()
        page.set_input_files("#box input[type=file]", drawn(tmp_path / "noise.png"))
        page.wait_for_selector("#seen figure")
        ask(page, "What?")
        page.wait_for_function("document.querySelector('#told').innerText.includes('tokens read')")
        assert computed(viewer) == 0
        page.get_by_label("tiny-vl", exact=True).check()
        ask(page, "And now?")
        page.wait_for_function("document.querySelector('#told').innerText.includes('image tokens')")
        assert computed(viewer) > 0  # the whole conversation, now read here
        assert visit.elsewhere == [] and visit.errors == []


@pytest.mark.browser
def test_stop_ends_the_computation(address: str, viewer: Viewer, tmp_path: Path) -> None:
    with chromium() as visit:
        page = visit_page(visit, address)
        page.set_input_files("#box input[type=file]", [drawn(tmp_path / "a.png")])
        page.wait_for_selector("#seen figure")
        slow_down(viewer, 0.05)
        viewer.engine.advice = Sampling(temperature=0.0, max_tokens=900)
        ask(page, "Tell me everything.")
        page.wait_for_selector("#box button[aria-label=Stop]")
        page.wait_for_function("document.querySelector('#talk').innerText.length > 40")
        page.click("#box button[aria-label=Stop]")
        page.wait_for_function("document.querySelector('#told').innerText.includes('Stopped')")
        at = steps(viewer)
        time.sleep(0.6)
        assert steps(viewer) == at < 500
        page.wait_for_selector("#box button[aria-label=Stop]", state="detached")
        slow_down(viewer, 0.0)
        ask(page, "And now?")  # it goes on from what was said
        page.wait_for_function(ANSWERED)
        assert visit.errors == []


def slow_down(viewer: Viewer, pause: float) -> None:
    """Let every step take so long, as on a large model; and count the steps."""
    backbone = viewer.engine._backbone
    step = type(backbone).step

    def slow(*given: Any) -> Any:
        time.sleep(pause)
        backbone.__dict__["steps"] = backbone.__dict__.get("steps", 0) + 1
        return step(backbone, *given)

    backbone.__dict__["step"] = slow


def steps(viewer: Viewer) -> int:
    return int(viewer.engine._backbone.__dict__["steps"])


@pytest.mark.browser
def test_dial_and_compare(address: str, viewer: Viewer, tmp_path: Path) -> None:
    with chromium() as visit:
        page = visit_page(visit, address)
        page.set_input_files("#box input[type=file]", [drawn(tmp_path / "a.png")])
        page.wait_for_function("document.querySelectorAll('#seen .grid i').length == 6")
        page.fill("#dial input[type=number]", "16")
        page.keyboard.press("Tab")
        page.wait_for_function("document.querySelectorAll('#seen .grid i').length < 6")
        page.fill("#dial input[type=number]", "256")
        page.keyboard.press("Tab")
        page.wait_for_function("document.querySelectorAll('#seen .grid i').length == 6")
        page.click("#compare button")
        page.fill("#other input[type=number]", "16")
        page.keyboard.press("Tab")
        page.click("#both")
        page.wait_for_function(COMPARED)
        first, second = (page.locator("#compared section").nth(i) for i in (0, 1))
        assert "256 tokens" in first.inner_text() and "16 tokens" in second.inner_text()
        assert first.locator(".grid i").count() == 6 > second.locator(".grid i").count()
        assert visit.elsewhere == [] and visit.errors == []


COMPARED = """() =>
  document.querySelector('#compared').innerText.split('tokens a second').length == 3
"""


@pytest.mark.browser
def test_bad_and_hostile_pictures_stay_in_the_box(address: str, tmp_path: Path) -> None:
    broken, hostile = tmp_path / "broken.png", drawn(tmp_path / HOSTILE)
    broken.write_bytes(drawn(tmp_path / "good.png").read_bytes()[:400])
    with chromium() as visit:
        page = visit_page(visit, address)
        page.set_input_files("#box input[type=file]", [hostile, broken])
        page.wait_for_selector("#seen figure.trouble")
        assert "broken.png" in page.inner_text("#seen figure.trouble")
        assert page.locator("#seen figure:not(.trouble)").count() == 1
        ask(page, "What?")
        page.wait_for_function("document.querySelector('#told').innerText.includes('broken.png')")
        assert page.input_value("#box textarea") == "What?"
        assert page.title() == see.NAME
        assert visit.errors == []


@pytest.mark.browser
def test_paste_and_webcam(address: str) -> None:
    with chromium(permissions=["camera"], color_scheme="dark") as visit:
        page = visit_page(visit, address)
        page.evaluate(PASTE)
        page.wait_for_function("document.querySelectorAll('#seen figure').length == 1")
        assert "40 × 30 pixels" in page.inner_text("#seen")
        page.click("#webcam button")
        page.get_by_text("Click to Access Webcam").click()
        page.wait_for_selector("#camera video")
        page.wait_for_function("document.querySelector('#camera video').videoWidth > 0")
        page.get_by_label("capture photo").click()
        page.wait_for_function("document.querySelectorAll('#seen figure').length == 2")
        assert visit.elsewhere == [] and visit.errors == []


PASTE = """async () => {
  const canvas = document.createElement('canvas');
  canvas.width = 40; canvas.height = 30;
  const blob = await new Promise(done => canvas.toBlob(done));
  const data = new DataTransfer();
  data.items.add(new File([blob], 'image.png', {type: 'image/png'}));
  document.querySelector('#box textarea').dispatchEvent(
    new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}));
}"""


# ---- the viewer -----------------------------------------------------------------------------


def test_a_stop_between_crops_computes_no_further_crop(viewer: Viewer) -> None:
    shown = [Image.open(noise(150, 260, seed)) for seed in range(3)]
    events = viewer.reply("one", asking(*shown), ALL)
    assert isinstance(next(events), Progress)
    assert isinstance(next(events), Progress)
    before = computed(viewer)
    viewer.stop("another")
    assert isinstance(next(events), Progress) and computed(viewer) > before
    before = computed(viewer)
    viewer.stop("one")
    assert list(events) == [Done("cancelled")] and computed(viewer) == before
    assert viewer._stops == {}


def test_every_visitor_has_a_conversation_of_his_own(viewer: Viewer) -> None:
    shown = [Image.open(noise(70, 90, seed)) for seed in range(2)]
    talks = {name: asking(one) for name, one in zip("ab", shown, strict=True)}
    for name, messages in talks.items():
        text = words(viewer, name, messages)[0]
        talks[name] += [Message.assistant(text), Message.user("Sure?")]
    for name, messages in talks.items():
        before = computed(viewer)
        _, done = words(viewer, name, messages)
        assert done.usage.reused_tokens > done.usage.image_tokens and computed(viewer) == before


def words(viewer: Viewer, session: str, messages: list[Message]) -> tuple[str, Done]:
    events = list(viewer.reply(session, messages, ALL))
    assert isinstance(events[-1], Done)
    return "".join(e.text for e in events if isinstance(e, TextDelta)), events[-1]


def test_conversations_are_forgotten_when_left_and_beyond_a_number(viewer: Viewer) -> None:
    for number in range(SESSIONS + 3):
        viewer._engine(str(number), ALL)
    assert len(viewer._engines) == SESSIONS
    viewer.leave(str(SESSIONS + 2))
    assert len(viewer._engines) == SESSIONS - 1


def test_a_look_anew_remembers_nothing(viewer: Viewer) -> None:
    shown = Image.open(noise(150, 260))
    done = [list(viewer.look_anew("x", asking(shown), ALL))[-1] for _ in range(2)]
    assert all(isinstance(d, Done) and d.timings.vision_s > 0 for d in done)
    assert computed(viewer) == 0 and viewer.engine.pictures.encoder.cache.bytes == 0


def test_costs_are_foretold_once_something_was_measured(viewer: Viewer) -> None:
    shown = Image.open(noise(150, 260))
    (plan,) = viewer.plans([shown], ALL)
    assert viewer.cost([shown], [plan]).seconds is None
    viewer.warm_up()
    fresh = viewer.cost([shown], [plan])
    assert fresh.image_tokens == plan.tokens and fresh.seconds is not None and fresh.seconds > 0
    list(viewer.reply("x", asking(shown), ALL))
    known = viewer.looking.predict(plan.tokens)
    again = viewer.cost([shown, shown], [plan, plan])
    assert known and again.seconds == viewer.reading.predict(
        2 * (plan.tokens + plan.structural_tokens) + 16
    )


def test_a_pace_is_a_line_that_follows_the_latest() -> None:
    pace = Pace()
    assert pace.predict(0) == 0.0 and pace.predict(5) is None
    pace.learn(0, 9.0)
    pace.learn(100, 1.0)
    assert pace.predict(50) == pytest.approx(0.5)
    pace.learn(200, 1.5)
    assert pace.predict(300) == pytest.approx(2.0)
    assert pace.predict(1) == pytest.approx(0.505)
    for _ in range(24):
        pace.learn(100, 0.1)
        pace.learn(200, 0.2)
    assert pace.predict(300) == pytest.approx(0.3)


# ---- what is shown --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1080, 1920), (3000, 400), (100, 100), (1, 5000)])
@pytest.mark.parametrize("tokens", [16, 64, 256, 700, None])
def test_a_figure_has_a_cell_for_every_tile(size: tuple[int, int], tokens: int | None) -> None:
    plan = plan_tiles(*size, TokenBudget(tokens))
    image = Image.open(np.zeros((*size, 3), np.uint8))
    drawn_ = figures.figure(Shown(HOSTILE, image), plan)
    assert drawn_.count("<i>") == plan.rows * plan.cols
    assert f"{plan.tokens:,} tokens" in drawn_ and HOSTILE not in drawn_ and "${" not in drawn_
    thumbnail = plan.tokens - sum(figures.tile_tokens(plan))
    assert (thumbnail > 0) == plan.thumbnail


def test_outcomes_in_words() -> None:
    done = Done("length", Usage(90, 7, 0, 64), Timings(0.5, 12.0, 0.25))
    told = answers.outcome(answers.Reply(done=done), foretold=1.5)
    assert "64 image tokens of 90" in told and "looked for 250 ms" in told
    assert "after 500 ms (foretold 1.5 s)" in told and "cut" in told
    assert answers.outcome(answers.Reply(done=Done("cancelled"))) == "Stopped."


def test_what_goes_wrong_in_a_reply_is_told() -> None:
    def failing() -> Iterator[Any]:
        yield TextDelta("Well")
        raise ContextExceeded("too long")

    *_, last = answers.followed(failing())
    assert (last.text, last.error, last.done) == ("Well", "too long", None)


def test_the_page_says_which_checkpoint_is_at_work(viewer: Viewer, folder: Path) -> None:
    assert "tiny-vl" in see.about(viewer) and str(folder.parent) not in see.about(viewer)
    viewer.engine.name = "nano-vl"
    told = see.about(viewer)
    assert "photographs are beyond it" in told and "lfm2-mm fetch LFM2-VL-450M" in told
    viewer.engine.name = "LFM2-VL-450M"
    assert "LFM Open License" in see.about(viewer)


def test_samples_are_pictures_with_questions(tmp_path: Path) -> None:
    for ((asked,),) in zip(samples.draw(tmp_path), strict=True):
        assert asked["text"] and Image.open(asked["files"][0]).width > 100  # type: ignore[index]


# ---- the site -------------------------------------------------------------------------------


def test_the_start_page_joins_the_pages(viewer: Viewer, tmp_path: Path) -> None:
    pages = [see.page(viewer, tmp_path), see.missing("fetch <one>")]
    assert "&lt;one&gt;" in site.start_page(pages) and "<one>" not in site.start_page(pages)
    served = site.Site(pages[:1], host="127.0.0.1", port=0)
    try:
        with urlopen(served.address) as answer:
            start = answer.read().decode()
        assert 'href="/see/"' in start and see.NAME in start and "tiny-vl" in start
        with urlopen(f"{served.address}see") as answer:
            assert answer.status == 200 and answer.url.endswith("/see/")
    finally:
        served.close()
    with pytest.raises(OSError, match="refused"):
        urlopen(served.address)


def test_uploads_go_with_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(site.TEMPORARY, "/elsewhere")
    with site.uploads() as folder:
        assert site.os.environ[site.TEMPORARY] == str(folder)
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "picture.png").write_bytes(b"x")
    assert not folder.exists() and site.os.environ[site.TEMPORARY] == "/elsewhere"


def test_models_are_sorted_by_what_they_are_for(folder: Path) -> None:
    assert wiring.by_kind([]) == {}
    assert wiring.by_kind([str(folder), "nano-colbert"]) == {
        "vision": str(folder), "colbert": "nano-colbert",
    }  # fmt: skip
    with pytest.raises(BadInput, match="both vision"):
        wiring.by_kind([str(folder), "LFM2-VL-450M"])
