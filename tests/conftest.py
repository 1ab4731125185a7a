"""What every test stands on: no network, one number of threads, own caches, the data folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

OFFLINE = Path(__file__).parent / "offline"
SCRATCH = Path(tempfile.mkdtemp(prefix="lfm2-mm-tests-"))
REFUSED = SCRATCH / "refused.txt"

# Before torch, transformers, gradio and huggingface_hub are imported: each reads its own once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(SCRATCH / "hub"),  # the developer's own cache changes no result
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LFM2_MM_HOME": str(SCRATCH / "home"),
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_TEMP_DIR": str(SCRATCH / "gradio"),
    "TOKENIZERS_PARALLELISM": "false",
    "LFM2_MM_TEST_REFUSED": str(REFUSED),
    "PYTHONPATH": os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")])),
}
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
REFUSED.touch()
# A shell that starts tests in the background has them ignore Ctrl-C, and so would the children.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.offline import sitecustomize  # noqa: E402, F401  (starts watching)


def pytest_sessionfinish() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(autouse=True)
def refused() -> Iterator[Path]:
    """The file that lists connections refused during a test; one entry fails the test."""
    yield REFUSED
    attempts = REFUSED.read_text(encoding="utf-8")
    REFUSED.write_text("", encoding="utf-8")
    if attempts:
        pytest.fail(f"connections beyond this machine were tried:\n{attempts}")


Asked = Callable[..., Any]


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Asked:
    """Runs a verb with --json; returns the document. Nothing else may stand on stdout."""
    from apps import cli

    def ask(*argv: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert cli.main([*argv, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def failed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a verb that must fail with 1; returns the one line of the error."""
    from apps import cli

    def fail(*argv: str) -> str:
        capsys.readouterr()
        assert cli.main(list(argv)) == 1
        shown = capsys.readouterr()
        lines = shown.err.strip().splitlines()
        assert shown.out == "" and len(lines) == 1 and "Traceback" not in shown.err, shown
        assert "unexpected" not in lines[0], lines
        return lines[0]

    return fail


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of evaluation data; it is not part of the project."""
    folder = os.environ.get("LFM2_MM_DATA")
    if not folder:
        pytest.skip("no evaluation data here: LFM2_MM_DATA is not set")
    return Path(folder)
