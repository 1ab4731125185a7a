"""The page for speech in a real browser, with a microphone that plays real recordings.

What sounds is judged on the page's sample clock: taps behind the player and the microphone give
samples with their frame numbers, so a busy machine changes no verdict.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile

from apps.demos import talk
from apps.demos.talker import Talker
from apps.lanes import Lane
from apps.service import Served
from audio.resample import resample
from audio.speech import Speech
from lfm2_mm.types import Audio
from tests import live_server, tiny_audio
from tests.browser import Visit, chromium
from tests.live_server import serving, talker
from tests.tone_codec import ToneCodec

pytestmark = pytest.mark.browser
RATE = 24_000
TAPS = (Path(__file__).parent / "taps.js").read_text(encoding="utf-8")
ORDER = "speech/barista/audio/0075d273-51bb-47cb-b323-4437bd0de029.ogg"
QUESTION = "speech/fixtures/how_old_is_the_brooklyn_bridge.wav"
LEAD_S, PAUSE_S, TAIL_S = 2.0, 3.0, 5.0
EVENT_TO_SILENCE_S = 0.040
FADE = 128  # samples


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    """Answers with 8 s of tones."""
    return talker(tmp_path_factory.mktemp("talker"), steps=150)


@pytest.fixture(scope="module")
def address(speech: Speech) -> Iterator[str]:
    with serving(speech, page=True) as address:
        yield f"{address}talk/"


def clip(path: Path) -> np.ndarray:
    audio = Audio.open(path)
    return resample(audio.samples, audio.rate, RATE)


def quiet(seconds: float) -> np.ndarray:
    noise = np.random.RandomState(0).standard_normal(int(seconds * RATE))
    return (1e-3 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def microphone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An order, and a question 3 s later; where that begins, in seconds."""
    order, question = clip(data / ORDER), clip(data / QUESTION)
    parts = (quiet(LEAD_S), order, quiet(PAUSE_S), question, quiet(TAIL_S))
    path = tmp_path_factory.mktemp("microphone") / "two turns.wav"
    soundfile.write(path, np.concatenate(parts), RATE, subtype="PCM_16")
    return path, LEAD_S + len(order) / RATE + PAUSE_S


def opened(visit: Visit, address: str) -> Any:
    visit.page.add_init_script(TAPS)
    visit.page.goto(address)
    visit.page.wait_for_selector(".live-host .go")
    return visit.page


def told(page: Any, kind: str) -> list[dict[str, Any]]:
    """What the page heard of its socket and its player."""
    events: list[dict[str, Any]] = page.evaluate("window.live")
    return [event for event in events if event["kind"] == kind]


def until(page: Any, kind: str, count: int = 1, timeout: int = 60_000) -> None:
    page.wait_for_function(
        "([kind, count]) => window.live.filter(e => e.kind === kind).length >= count",
        arg=[kind, count],
        timeout=timeout,
    )


def tapped(page: Any, name: str) -> np.ndarray:
    """All samples since frame 0, laid by their frame numbers."""
    blocks = page.evaluate(
        """name => window.taps[name].map(([frame, samples]) =>
        [frame, btoa(String.fromCharCode(...new Uint8Array(Int16Array.from(samples,
        s => Math.max(-32767, Math.min(32767, s * 32767))).buffer)))])""",
        name,
    )
    whole = np.zeros(max(frame for frame, _ in blocks) + 4096, np.float32)
    for frame, text in blocks:
        whole[frame : frame + 4096] = np.frombuffer(base64.b64decode(text), "<i2") / 32767
    return whole


def test_a_spoken_turn_is_answered_and_interrupted_by_speaking(
    address: str, microphone: tuple[Path, float]
) -> None:
    path, _ = microphone
    with chromium(microphone=path) as visit:
        page = opened(visit, address)
        made = len(live_server.made)
        page.click(".go")
        until(page, "player.flushed")
        until(page, "player.started", 2)
        page.wait_for_timeout(1000)  # the second reply sounds
        out, heard = tapped(page, "out"), tapped(page, "mic")
        (flushed,), starts = told(page, "player.flushed"), told(page, "player.started")
        lines = page.locator(".talk li.you, .talk li.it")
        assert [lines.nth(n).get_attribute("class").split()[0] for n in range(4)] == [
            "you", "it", "you", "it",
        ]  # fmt: skip
        assert "interrupted after" in lines.nth(1).inner_text()
        assert "echo cancellation is on" in page.inner_text(".echo")
        assert "ms after your last word" in page.inner_text(".latency")
        hearing = told(page, "hearing")
        assert visit.errors == [] and visit.elsewhere == []

    # The first reply sounds from where the player says it began, and stops where it was flushed.
    first, second = (int(start["frame"]) for start in starts[:2])
    end = int(flushed["frame"])
    assert np.abs(out[:first]).max() < 1e-3 and np.abs(out[first : first + 4800]).max() > 0.1
    sounding = np.flatnonzero(np.abs(out[:second]) > 1e-4)
    assert sounding[-1] <= end + FADE + 128, "something of the old reply sounded afterwards"
    # Silence came within 40 ms of the server's event.
    event = hearing[1]["at_frame"]
    assert sounding[-1] - event <= EVENT_TO_SILENCE_S * RATE
    # The events tell of onsets that the microphone heard, by the clock of the samples sent.
    loud = np.abs(heard[: len(heard) // 256 * 256]).reshape(-1, 256).max(1) > 0.02
    blocks = np.flatnonzero(loud)
    onsets = 256 * blocks[np.diff(blocks, prepend=-RATE) > 0.5 * RATE / 256]
    offset = onsets[0] - int(hearing[0]["start"]) * RATE // 1000
    told_of = int(hearing[1]["start"]) * RATE // 1000 + offset
    assert np.abs(onsets[1:] - told_of).min() < 0.25 * RATE

    # What was played is what the history keeps of the first reply.
    conversation = live_server.made[made]
    items = conversation.history.items
    second_turn = conversation.turns.starts[1]
    sounds = conversation.speech.codec.codebook_size  # codes below mean a sound
    frames = [item for item in items[:second_turn] if isinstance(item, tuple)]
    kept = [frame for frame in frames if max(frame) < sounds]
    assert len(kept) == -(-int(flushed["played"]) // ToneCodec.samples_per_frame)


def test_two_pages_talk_at_once(address: str, microphone: tuple[Path, float]) -> None:
    with chromium(microphone=microphone[0]) as visit:
        first = opened(visit, address)
        second = first.context.new_page()
        second.add_init_script(TAPS)
        second.goto(address)
        second.wait_for_selector(".live-host .go")
        first.click(".go")
        second.click(".go")
        for page in (first, second):
            until(page, "player.started")
            assert told(page, "lost") == [] and told(page, "error") == []


def test_the_page_survives_a_restart_of_the_server_and_says_so(speech: Speech) -> None:
    with chromium() as visit:
        with serving(speech, page=True) as address:
            page = opened(visit, f"{address}talk/")
            ask(page, "Hello?")
            until(page, "player.started")
        page.wait_for_selector("text=The connection was lost.")
        assert page.inner_text(".state").startswith("Connection lost")
        with serving(speech, page=True, port=int(address.rsplit(":")[-1].strip("/"))):
            page.wait_for_selector("text=Connected again.")
            ask(page, "Are you there?")
            until(page, "player.started", 2)
            assert "Connection lost" not in page.inner_text(".state")
            assert visit.elsewhere == []


def ask(page: Any, text: str) -> None:
    page.fill(".live-host input[name=text]", text)
    page.click(".live-host form button")


def test_push_to_talk(address: str) -> None:
    """The browser's own fake microphone beeps; only what is held counts."""
    with chromium() as visit:
        page = opened(visit, address)
        page.locator(".push").evaluate("input => input.click()")
        page.click(".go")
        page.wait_for_selector(".hold:visible")
        page.wait_for_selector(".state b:text('Ready')")
        page.hover(".hold")
        page.mouse.down()
        page.wait_for_timeout(1500)
        assert told(page, "answering") == []
        page.mouse.up()
        until(page, "player.started")
        page.mouse.down()  # speaking again stops the reply
        until(page, "player.flushed")
        page.wait_for_timeout(500)
        page.mouse.up()
        until(page, "player.started", 2)
        assert told(page, "hearing") == [] and told(page, "error") == []
        assert visit.errors == []


def test_without_a_secure_address_the_page_says_why_it_is_deaf(address: str) -> None:
    with chromium() as visit:
        visit.page.add_init_script(
            "Object.defineProperty(window, 'isSecureContext', {value: false})"
        )
        page = opened(visit, address)
        assert page.is_disabled(".go") and "https" in page.inner_text(".trouble")


def test_stop_lets_go_of_everything(address: str) -> None:
    with chromium() as visit:
        page = opened(visit, address)
        page.click(".go")
        until(page, "ready")
        page.click(".go")
        page.wait_for_function("window.contexts.every(one => one.state === 'closed')")
        assert page.inner_text(".state").startswith("Off")
        page.click(".go")
        until(page, "ready", 2)
        assert visit.errors == []


def test_what_is_recorded_is_answered_in_sound_words_and_codes(address: str) -> None:
    """However long the recording is on its way: nothing can be answered before it is there."""
    with chromium() as visit:
        page = opened(visit, address)
        sent: list[Any] = []
        page.route("**/upload*", lambda route: sent.append(route))
        page.get_by_role("tab", name="A recording").click()
        assert page.is_disabled("#answer")
        page.click("#recording .record-button")
        page.wait_for_timeout(1500)
        with page.expect_request("**/upload*"):
            page.click("#recording .stop-button")
            page.wait_for_selector("#recording button[aria-label='Trim audio to selection']")
        assert page.is_disabled("#answer")
        sent[0].fallback()
        page.click("#answer")  # waits until it can be clicked
        page.wait_for_selector(".stream-host:text('Playing')")
        page.wait_for_selector("#timeline .timeline img")
        page.wait_for_selector("#told:has-text('of real time')")
        page.wait_for_selector(".stream-host:text('Played')", timeout=60_000)
        out = tapped(page, "out")
        seconds = float(page.inner_text(".stream-host").split()[1])
        assert seconds > 5 and abs(np.count_nonzero(np.abs(out) > 1e-4) / RATE - seconds) < 0.3
        frames = int(page.get_attribute("#timeline img", "alt").split()[0])
        assert -0.1 < frames * 0.08 - seconds < 1  # a frame may mean no sound
        assert page.inner_text("#text .answer")
        page.wait_for_selector("#whole button[aria-label='Download'], #whole a[download]")
        page.click("#restart")
        page.wait_for_selector("#answer:disabled")
        assert visit.errors == [] and visit.elsewhere == []


def test_a_recording_taken_away_again_is_asked_for(speech: Speech) -> None:
    page = talk.Page(Talker(Served("tiny-audio", "speech", speech, Lane("tiny-audio"))))
    ((*_, told, whole),) = page.answer(None, gr.Request())
    assert "Record something, or choose a file, first." in told and whole is None


def test_a_bad_recording_is_told_and_the_page_goes_on(address: str, tmp_path: Path) -> None:
    broken, good = tmp_path / "broken.wav", tmp_path / "good.wav"
    broken.write_bytes(b"RIFF....WAVE and nothing more")
    soundfile.write(good, tiny_audio.recording(0.5, 16_000, 1), 16_000)
    with chromium() as visit:
        page = opened(visit, address)
        page.get_by_role("tab", name="A recording").click()
        page.click("#recording button[aria-label='Upload file']")
        for path, wanted in ((broken, "#told:has-text('broken')"), (good, "#timeline img")):
            page.set_input_files("#recording input[type=file]", path)
            page.wait_for_selector("#recording input[type=file]", state="detached")
            page.click("#answer")
            page.wait_for_selector(wanted)
            page.click("#recording button[aria-label='Clear']")
            page.wait_for_selector("#recording input[type=file]", state="attached")
