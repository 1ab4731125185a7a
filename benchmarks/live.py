"""Live conversation in a real browser: how long until the answer sounds, until it stops, and gaps.

    python -m benchmarks.live --data DIR [--model nano-audio] [--turns 6]

Headless Chromium opens the talk page of a server of its own; its microphone plays real recordings
from DIR. All times are counted in samples of the page's audio context, by taps behind microphone
and player. The load of the machine is told, for the server's part depends on it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import audio
from audio.memory import Memory
from audio.resample import resample
from audio.speech import Speech
from lfm2_mm.types import Audio, AudioChunk
from tests.browser import chromium
from tests.live_server import serving, talker
from tests.test_demo_talk import opened, quiet, tapped, told, until

RATE = 24_000
LEAD_S, REPLY_S, INTO_S = 2.0, 7.0, 2.0
BUSY_MAIN = """() => setInterval(() => {
  const start = performance.now();
  while (performance.now() - start < 150);
}, 500)"""


def clips(data: Path, count: int) -> list[np.ndarray]:
    rows = json.loads((data / "speech/barista/labels.json").read_text(encoding="utf-8"))
    files = [data / "speech/barista" / row["file"] for row in rows[:: len(rows) // count]]
    return [recording(path) for path in files[:count]]


def recording(path: Path) -> np.ndarray:
    found = Audio.open(path)
    samples = resample(found.samples, found.rate, RATE)
    return samples[: int(last_sound(samples) + 0.02 * RATE)]


def last_sound(samples: np.ndarray) -> int:
    frames = samples[: len(samples) // 240 * 240].reshape(-1, 240)
    level = np.sqrt(np.mean(frames**2, 1))
    return int(np.flatnonzero(level > 0.05 * np.quantile(level, 0.95))[-1] + 1) * 240


@contextmanager
def microphone(parts: Sequence[np.ndarray]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "microphone.wav"
        soundfile.write(path, np.concatenate(parts), RATE, subtype="PCM_16")
        yield path


def spread(name: str, values: Sequence[float]) -> str:
    if not values:
        return f"| {name} | - | - | 0 |"
    middle = statistics.median(values)
    return f"| {name} | {middle:.0f} | {min(values):.0f}-{max(values):.0f} | {len(values)} |"


def listen(page: Any) -> None:
    """Start as with headphones: the browser's processing would shift soft beginnings."""
    page.locator(".head").evaluate("input => input.click()")
    page.click(".go")


# ---- how long until the answer sounds -------------------------------------------------------


def answers(address: str, spoken: Sequence[np.ndarray]) -> Iterator[str]:
    parts = [quiet(LEAD_S)]
    for one in spoken:
        parts += [one, quiet(REPLY_S)]
    with microphone(parts) as path, chromium(microphone=path) as visit:
        page = opened(visit, address)
        listen(page)
        seconds = sum(map(len, parts)) / RATE
        until(page, "player.started", len(spoken), timeout=int(1000 * seconds) + 30_000)
        page.wait_for_timeout(500)
        out, heard = tapped(page, "out"), tapped(page, "mic")
        starts, latencies = told(page, "player.started"), told(page, "latency")
    whole, detection, rest = [], [], []
    silences = [entry["silence"] for entry in latencies]
    models = [entry["model"] for entry in latencies]
    for start, latency in zip(starts, latencies, strict=False):
        first = int(start["frame"])
        first += int(np.flatnonzero(np.abs(out[first:]) > 1e-3)[0])
        end = last_sound_before(heard, first)
        whole.append((first - end) * 1000 / RATE)
        known = latency["silence"] + latency["model"]
        detection.append(whole[-1] - start["after"] - (first - start["frame"]) * 1000 / RATE)
        rest.append(start["after"] - known)
    yield spread("last sound of speech -> first audible sample", whole)
    yield spread("... until the detector's last window of speech", detection)
    yield spread("... silence until the turn ended", silences)
    yield spread("... model, after that", models)
    yield spread("... network and buffer", rest)


def last_sound_before(heard: np.ndarray, frame: int) -> int:
    frames = heard[: frame // 240 * 240].reshape(-1, 240)
    level = np.sqrt(np.mean(frames**2, 1))
    return int(np.flatnonzero(level > 0.05 * np.quantile(level[level > 0.01], 0.95))[-1] + 1) * 240


def model_parts(speech: Speech, spoken: Sequence[np.ndarray]) -> Iterator[str]:
    """What is hidden in the silence, in this process."""
    times: dict[str, list[float]] = {"mel": [], "ears": [], "prefill": [], "first frame": []}

    def clocked(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = work()
        times[name].append((time.perf_counter() - start) * 1000)
        return made

    for samples in spoken:
        said = Audio(samples, RATE)
        mel = clocked("mel", lambda said=said: speech.hear(said))
        with torch.inference_mode():
            clocked("ears", lambda mel=mel: speech.model.ears.hear(mel))
        conversation = speech.converse()
        reply = conversation.reply(mel)
        memory = Memory(speech.model, conversation.history.copy())
        clocked("prefill", memory.hidden)
        times["prefill"][-1] -= times["ears"][-1]  # which is part of it
        begin = time.perf_counter()
        for event in reply:
            if isinstance(event, AudioChunk):
                break
        whole = (time.perf_counter() - begin) * 1000
        times["first frame"].append(whole - times["prefill"][-1] - times["ears"][-1])
        reply.close()
    for name, values in times.items():
        yield spread(f"model: {name}", values[1:])


# ---- how long until it stops ----------------------------------------------------------------


def interruptions(address: str, spoken: Sequence[np.ndarray]) -> list[float]:
    """Onset of speech to silence, ms. Onsets are those of the recordings, laid on the page's clock
    by the first of them."""
    parts, onsets = [quiet(LEAD_S)], []
    for order in spoken:
        parts += [spoken[0], quiet(INTO_S)]
        onsets.append(sum(map(len, parts)) + first_sound(order))
        parts += [order, quiet(REPLY_S)]
    found = []
    with microphone(parts) as path, chromium(microphone=path) as visit:
        page = opened(visit, address)
        listen(page)
        page.wait_for_timeout(int(1000 * sum(map(len, parts)) / RATE))
        out, heard = tapped(page, "out"), tapped(page, "mic")
        flushes = [int(flushed["frame"]) for flushed in told(page, "player.flushed")]
    shift = first_sound(heard) - first_sound(np.concatenate(parts))
    for onset in onsets:
        frame = onset + shift
        end = next((flush for flush in flushes if flush > frame), None)
        if end is None or np.abs(out[frame - 240 : frame]).max() < 1e-3:
            continue  # nothing sounded when the speaker began
        silent = int(np.flatnonzero(np.abs(out[: end + 256]) > 3e-3)[-1])
        found.append((silent - frame) * 1000 / RATE)
    return found


def first_sound(samples: np.ndarray) -> int:
    """Where the first 10 ms louder than 0.01 begin."""
    frames = samples[: len(samples) // 240 * 240].reshape(-1, 240)
    return int(np.flatnonzero(np.sqrt(np.mean(frames**2, 1)) > 0.01)[0]) * 240


# ---- gaps -----------------------------------------------------------------------------------


def gaps(name: str, folder: Path, disturb: Callable[[Any], Any], replies: int = 3) -> str:
    """Tones without an end, and silences of 5 ms in them."""
    speech = talker(folder, steps=150)
    counted, longest, ended, late = 0, 0.0, 0, 0
    with serving(speech, page=True) as address, chromium() as visit:
        page = opened(visit, f"{address}talk/")
        for number in range(replies):
            page.fill(".live-host input[name=text]", "Hello?")
            page.click(".live-host form button")
            until(page, "player.started", number + 1)
            stop = disturb(page)
            until(page, "player.ended", number + 1, timeout=120_000)
            if callable(stop):
                stop()
        out = tapped(page, "out")
        last = told(page, "player.gap")
        for start, end in zip(
            told(page, "player.started"), told(page, "player.ended"), strict=True
        ):
            sound = np.flatnonzero(np.abs(out[int(start["frame"]) : int(end["frame"])]) > 1e-3)
            holes = np.diff(sound)
            holes = holes[holes > 0.005 * RATE] / RATE * 1000
            counted += len(holes)
            longest = max([longest, *holes])
            ended += 1
            late += any(g["frame"] > end["frame"] - RATE for g in last if g["item"] == end["item"])
    return f"| {name} | {counted} | {longest:.0f} | {ended} of {replies} | {late} |"


def spin() -> None:
    while True:
        pass


def starve(page: Any) -> Callable[[], None]:
    """A busy process on every core while a reply sounds."""
    found = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for process in found:
        process.start()

    def stop() -> None:
        for process in found:
            process.kill()

    return stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nano-audio")
    parser.add_argument("--turns", type=int, default=6)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load of {os.cpu_count()} cores before: {load:.1f}\n")
    speech = audio.open(args.model, device="cpu")
    spoken = clips(args.data, args.turns)
    print("| part | median, ms | least-most | turns |\n|---|---|---|---|")
    with serving(speech, page=True, warm=True) as address:
        for line in answers(f"{address}talk/", spoken):
            print(line, flush=True)
        found = interruptions(f"{address}talk/", spoken)
        print(spread("interruption: onset of speech -> silence", found), flush=True)
    for line in model_parts(speech, spoken):
        print(line, flush=True)
    print(
        "\n| replies of tones | gaps | longest, ms | played to the end | gaps in the last second |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        disturbances: dict[str, Callable[[Any], Any]] = {
            "undisturbed": lambda page: None,
            "main thread blocked 150 of 500 ms": lambda page: page.evaluate(BUSY_MAIN) and None,
            "a busy process on each core": starve,
        }
        for number, (name, disturb) in enumerate(disturbances.items()):
            print(gaps(name, Path(folder) / str(number), disturb), flush=True)


if __name__ == "__main__":
    main()
