"""Pictures of the pages for the documentation, from the pages themselves.

    python -m tests.screenshots docs --order ORDER.wav [--models nano-vl,nano-audio]

Starts `lfm2-mm demo` (or `serve`, without search), uses each page once in a headless Chromium, and
writes search.webp, see.webp, talk.webp and recording.webp. ORDER is what the talk page hears.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import soundfile
from PIL import Image as Picture

from apps.demos.site import free_port
from lfm2_mm.types import Audio
from tests.browser import chromium

SIZE = {"width": 1280, "height": 860}


def shoot(page: Any, path: Path) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    picture = Picture.open(io.BytesIO(page.screenshot()))
    picture.save(path, "WEBP", quality=82, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def search(page: Any, address: str, folder: Path) -> None:
    page.goto(f"{address}search/")
    page.wait_for_function("document.querySelectorAll('#documents li').length > 3", timeout=300_000)
    page.fill("#query textarea, #query input", "what happens when a process is killed")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit", timeout=120_000)
    page.locator(".hit .open").first.click()
    page.wait_for_selector("#source .passage")
    page.wait_for_timeout(1000)
    shoot(page, folder / "search.webp")


def see(page: Any, address: str, folder: Path) -> None:
    page.goto(f"{address}see/")
    page.wait_for_selector("#box")
    page.locator(".gallery-item, .gallery button, [id*=component] table tbody tr").first.click()
    page.wait_for_selector("#seen figure", timeout=60_000)
    page.click("#box textarea")
    page.keyboard.press("Enter")
    page.wait_for_selector("#told:has-text('tokens a second')", timeout=300_000)
    page.wait_for_timeout(1000)
    shoot(page, folder / "see.webp")


def talk(page: Any, address: str, folder: Path, order: Path) -> None:
    page.goto(f"{address}talk/")
    page.wait_for_selector(".live-host .go")
    page.click(".go")
    page.wait_for_selector(".talk li.it small:text('after')", timeout=120_000)
    page.wait_for_selector(".talk li.you p:not(:text-is('…'))", timeout=120_000)
    page.wait_for_selector(".state b:text('Listening')", timeout=120_000)
    page.wait_for_timeout(500)
    shoot(page, folder / "talk.webp")
    page.click(".go")
    page.get_by_role("tab", name="A recording").click()
    page.click("#recording button[aria-label='Upload file']")
    page.set_input_files("#recording input[type=file]", order)
    page.wait_for_selector("#recording input[type=file]", state="detached")
    page.click("#answer")
    page.wait_for_selector("#told:has-text('of real time')", timeout=120_000)
    page.wait_for_timeout(1500)
    shoot(page, folder / "recording.webp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--order", type=Path, required=True)
    parser.add_argument("--models", default="")
    parser.add_argument("--only", default="search,see,talk")
    args = parser.parse_args()
    port = free_port("127.0.0.1", 0)
    address = f"http://127.0.0.1:{port}/"
    # Without its library the page for searching is empty; to make it takes a while of all cores.
    verb = ["demo", "--no-browser"] if "search" in args.only else ["serve"]
    command = [sys.executable, "-m", "apps.cli", *verb, "--port", str(port)]
    with tempfile.TemporaryDirectory() as scratch:
        heard = Path(scratch) / "microphone.wav"
        said = Audio.open(args.order)
        quiet = 1e-3 * np.random.RandomState(0).standard_normal(said.rate * 2)
        sound = np.concatenate((quiet, said.samples, quiet, quiet, quiet))
        soundfile.write(heard, sound, said.rate, subtype="PCM_16")
        server = subprocess.Popen([*command, "--models", args.models])
        try:
            await_server(address)
            with chromium(microphone=heard) as visit:
                visit.page.set_viewport_size(SIZE)
                if "search" in args.only:
                    search(visit.page, address, args.folder)
                if "see" in args.only:
                    see(visit.page, address, args.folder)
                if "talk" in args.only:
                    talk(visit.page, address, args.folder, args.order)
        finally:
            server.terminate()
            server.wait(30)


def await_server(address: str) -> None:
    for _ in range(600):
        try:
            urlopen(f"{address}health").close()
            return
        except URLError:
            time.sleep(0.5)
    raise TimeoutError(f"{address} does not answer")


if __name__ == "__main__":
    main()
