"""The verb `see`: answers, keys, exit codes, and one line for every kind of bad picture."""

from __future__ import annotations

import io
import json
import signal
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from apps import cli
from tests import tiny_vision
from tests.test_cli import Keyboard, start

Ask = Callable[..., Any]
GREEDY = ("--max-tokens", "6", "--temperature", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_vision.vl_folder(tmp_path_factory.mktemp("see") / "tiny-vl"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """300 x 200: 2 x 3 tiles and a thumbnail by the tiny checkpoint's settings."""
    return drawn(tmp_path / "photo.jpg", height=200, width=300)


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    return drawn(tmp_path / "chart.png", height=90, width=60)


def drawn(path: Path, height: int, width: int, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Pil.fromarray(noise).save(path)
    return path


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str], model: str) -> Ask:
    """Runs `see --json`; returns the document. Nothing else may stand on stdout."""

    def ask(*argv: object, code: int = 0) -> Any:
        capsys.readouterr()
        line = ["see", *map(str, argv), "--model", model, "--json"]
        assert cli.main(line) == code
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], model: str) -> Ask:
    """Runs `see`, which must end with `code` and say so in one line; returns the line."""

    def refuse(*argv: object, code: int = 1, prompt: bool = True) -> str:
        capsys.readouterr()
        asks = ["--prompt", "What?"] if prompt else []
        assert cli.main(["see", *map(str, argv), "--model", model, *asks]) == code
        shown = capsys.readouterr()
        assert shown.out == "" and "Traceback" not in shown.err and "unexpected" not in shown.err
        last = shown.err.strip().splitlines()[-1]
        assert code == 2 or shown.err.count("\n") == 1, shown.err
        return last

    return refuse


# ---- answers --------------------------------------------------------------------------------


def test_every_promised_key(asked: Ask, photo: Path, chart: Path) -> None:
    line = (photo, chart, "--prompt", "Compare", *GREEDY)
    told, again = asked(*line), asked(*line)
    assert told["text"] == again["text"] and told["finish_reason"] in {"stop", "length"}
    assert told["usage"]["completion_tokens"] <= 6
    assert told["timings"]["first_token_s"] > told["timings"]["vision_s"] > 0
    assert told["timings"]["tokens_per_s"] >= 0
    first, second = told["images"]
    assert {k: first[k] for k in ("width", "height", "rows", "cols", "tile", "thumbnail")} == {
        "width": 300, "height": 200, "rows": 2, "cols": 3, "tile": 64, "thumbnail": True,
    }  # fmt: skip
    assert (second["width"], second["height"], second["thumbnail"]) == (60, 90, False)
    assert told["usage"]["image_tokens"] == first["tokens"] + second["tokens"]
    assert told["usage"]["prompt_tokens"] > told["usage"]["image_tokens"]


def test_the_answer_costs_what_the_plan_says(asked: Ask, photo: Path, chart: Path) -> None:
    for flags in ([], ["--image-tokens", 17], ["--tiles", 2], ["--preset", "reference"]):
        plan = asked(photo, chart, "--plan", *flags)
        told = asked(photo, chart, "--prompt", "?", *GREEDY, *flags)
        assert told["usage"]["image_tokens"] == plan["total_tokens"]
        shapes = [[(i["rows"], i["cols"], i["tokens"]) for i in d["images"]] for d in (plan, told)]
        assert shapes[0] == shapes[1]


def test_budgets_are_kept_each_and_shared(asked: Ask, photo: Path, chart: Path) -> None:
    shown = (photo, chart, photo, "--prompt", "?", *GREEDY)
    each = asked(*shown, "--image-tokens", 18)
    assert all(image["tokens"] <= 18 for image in each["images"])
    shared = asked(*shown, "--image-tokens", 18, "--shared")
    assert sum(image["tokens"] for image in shared["images"]) <= 18
    assert shared["usage"]["image_tokens"] < each["usage"]["image_tokens"]


def test_the_picture_matters(asked: Ask, tmp_path: Path) -> None:
    shown = [tmp_path / f"{colour}.png" for colour in ("black", "white", "red", "blue")]
    for path in shown:
        Pil.new("RGB", (64, 64), path.stem).save(path)
    texts = {asked(one, "--prompt", "?", *GREEDY)["text"] for one in shown}
    assert len(texts) > 1


def test_text_goes_to_stdout_and_remarks_to_stderr(
    capsys: pytest.CaptureFixture[str], photo: Path, model: str
) -> None:
    line = ["see", str(photo), "--model", model, "--prompt", "?", *GREEDY]
    assert cli.main([*line, "--image-tokens", "1000000"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() and "of 1000000 image tokens" in shown.err
    assert cli.main(line) == 0
    assert capsys.readouterr().out == shown.out


def test_a_prompt_may_be_piped(asked: Ask, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = asked(photo, "--prompt", "What is it?", *GREEDY)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\n"))
    assert asked(photo, *GREEDY)["text"] == said["text"]


def test_a_session_shows_the_pictures_once_and_anew_after_new(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, photo: Path, model: str
) -> None:
    from lfm2_mm.types import Image
    from vision import Chat

    heard: list[list[Any]] = []
    stream = Chat.stream

    def listen(self: Chat, messages: Any, sampling: Any = None) -> Any:
        heard.append([sum(isinstance(p, Image) for p in m.parts) for m in messages])
        return stream(self, messages, sampling)

    monkeypatch.setattr(Chat, "stream", listen)
    monkeypatch.setattr(sys, "stdin", Keyboard("one?\ntwo?\n/new\nthree?\n/exit\n"))
    assert cli.main(["see", str(photo), "--model", model, *GREEDY]) == 0
    assert heard == [[1], [1, 0, 0], [1]]
    shown = capsys.readouterr()
    assert shown.out.strip() and "image tokens" in shown.err and "/exit" in shown.err


# ---- the table of bad input -----------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A PNG header that promises so many pixels, and next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


BAD = {
    "empty.jpg": (b"", "nothing is in it"),
    "words.png": (b"these are words\n" * 99, "no picture"),
    "bomb.png": (png_of(60_000, 60_000), "million"),
    "cut.png": (png_of(50, 50), "damaged|cut off|bad"),
    "page.pdf": (b"%PDF-1.7\n%....", "PDF"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_picture_that_cannot_be_read(
    refused: Ask, tmp_path: Path, photo: Path, name: str
) -> None:
    content, why = BAD[name]
    (tmp_path / name).write_bytes(content)
    told = refused(photo, tmp_path / name)
    assert name in told and any(word in told for word in why.split("|"))
    assert name in refused(tmp_path / name, "--plan", prompt=False)


def test_a_jpeg_that_was_cut_off(refused: Ask, tmp_path: Path, photo: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:-3000])
    assert "cut.jpg" in refused(photo, cut)


def test_a_path_that_is_not_there_or_a_folder(refused: Ask, tmp_path: Path) -> None:
    assert "is not there" in refused(tmp_path / "nothing.png")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize(
    ("flags", "valid"),
    [
        (("--image-tokens", "0"), "from 1 up"),
        (("--image-tokens", "-5"), "from 1 up"),
        (("--image-tokens", "many"), "from 1 up"),
        (("--tiles", "0"), "from 1 up"),
        (("--image-tokens", "9" * 30), "from 1 to"),
        (("--preset", "best"), "'reference', 'fast', 'balanced', 'quality'"),
        (("--tokens", "5"), "--tokens"),
        (("--max-tokens", "0"), "from 1"),
        (("--temperature", "-1"), "from 0"),
        (("--shared",), "--image-tokens"),
    ],
)
def test_wrong_usage_names_what_would_be_valid(
    refused: Ask, photo: Path, flags: tuple[str, ...], valid: str
) -> None:
    told = refused(photo, *flags, code=2)
    assert valid.replace("'", "") in told.replace("'", "")


def test_an_empty_prompt_or_json_without_one_is_wrong_usage(
    refused: Ask, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("  \n"))
    assert "empty" in refused(photo, code=2, prompt=False)
    monkeypatch.setattr(sys, "stdin", Keyboard(""))
    assert "--json needs a prompt" in refused(photo, "--json", code=2, prompt=False)


def test_a_budget_of_one_is_kept_or_the_least_is_named(
    asked: Ask, refused: Ask, photo: Path, tmp_path: Path
) -> None:
    told = refused(photo, "--image-tokens", "1")
    least = int(told.rsplit(" ", 1)[1])
    assert (
        asked(photo, "--prompt", "?", "--image-tokens", least, *GREEDY)["images"][0]["tokens"]
        == least
    )
    assert str(least) in refused(photo, "--image-tokens", least - 1)


def test_a_conversation_beyond_the_context_tells_both_lengths(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_vision.vl_folder(tmp_path / "short", max_position_embeddings=48)
    line = ["see", str(photo), "--model", str(folder), "--prompt", "What is this? " * 4]
    assert cli.main([*line, "--preset", "quality"]) == 1
    told = capsys.readouterr().err
    assert "tokens long" in told and "at most 47" in told and "lower their budget" in told
    assert cli.main([*line, "--image-tokens", "4", "--max-tokens", "1"]) in (0, 1)


def test_without_a_checkpoint_it_is_said_what_to_fetch(
    monkeypatch: pytest.MonkeyPatch, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lfm2_mm import registry

    rows = tuple(row for row in registry.TABLE if not (row.kind == "vision" and row.bundled))
    monkeypatch.setattr(registry, "TABLE", rows)
    assert cli.main(["see", str(photo), "--prompt", "?", "--offline"]) == 1
    told = capsys.readouterr().err
    assert "lfm2-mm fetch LFM2-VL-450M" in told and "see --plan" in told


@pytest.mark.parametrize("name", ["nano-colbert", "LFM2-350M"])
def test_a_checkpoint_that_does_not_see_is_refused(
    name: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["see", str(photo), "--prompt", "?", "--model", name, "--offline"]) == 1
    assert "pictures need a vision one" in capsys.readouterr().err


def test_a_plan_takes_its_settings_from_what_sees(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["see", str(photo), "--plan", "--model", "nano-colbert"]) == 1
    assert "nano-colbert does not see" in capsys.readouterr().err


def test_ctrl_c_is_130_while_it_answers(photo: Path, model: str) -> None:
    running = start("see", str(photo), "--model", model, "--prompt", "?", "--max-tokens", "900")
    assert running.stdout is not None
    assert running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in told


def test_planning_imports_no_torch(photo: Path) -> None:
    code = (
        "import sys; from apps.cli import main\n"
        f"assert main(['see', {str(photo)!r}, '--plan', '--json']) == 0\n"
        "heavy = {'torch', 'transformers', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    import subprocess

    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr


# ---- real photographs and scans -------------------------------------------------------------


def test_real_photographs_and_scans(asked: Ask, data: Path) -> None:
    shown = sorted((data / "vision" / "fixtures").glob("*.jpg"))
    assert len(shown) >= 6
    for path in shown:
        with Pil.open(path) as picture:
            size = picture.size
        told = asked(path, "--prompt", "What is this?", "--max-tokens", 2, "--image-tokens", 40)
        (image,) = told["images"]
        assert (image["width"], image["height"]) == size and image["tokens"] <= 40
