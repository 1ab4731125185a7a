"""The suite cannot reach another machine, nor can what it starts, and says so when code tries."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.offline.sitecustomize import Refused, stays_here

ELSEWHERE = "192.0.2.1"  # reserved for documentation, nobody answers


def expect(refused: Path, part: str) -> None:
    """`part` was refused and noted; the note is taken away, as it was wanted."""
    assert part in refused.read_text()
    refused.write_text("")


def test_connections_to_elsewhere_are_refused(refused: Path) -> None:
    for call in (
        lambda s: s.connect((ELSEWHERE, 80)),
        lambda s: s.connect_ex((ELSEWHERE, 80)),
        lambda s: socket.create_connection((ELSEWHERE, 80)),
        lambda s: socket.getaddrinfo("example.invalid", 443),
        lambda s: socket.gethostbyname("example.invalid"),
    ):
        with socket.socket() as s, pytest.raises(Refused):
            call(s)
    with socket.socket(socket.AF_INET6) as s, pytest.raises(Refused):
        s.connect(("2001:db8::1", 80))
    with socket.socket(type=socket.SOCK_DGRAM) as s, pytest.raises(Refused):
        s.sendto(b"x", (ELSEWHERE, 53))
    assert len(refused.read_text().splitlines()) == 7
    expect(refused, ELSEWHERE)


def test_a_swallowed_refusal_is_still_noted(refused: Path) -> None:
    with pytest.raises(OSError):  # what careless code would catch
        socket.create_connection((ELSEWHERE, 80), timeout=1)
    expect(refused, ELSEWHERE)


def test_child_processes_are_held_back_too(refused: Path) -> None:
    code = f"import socket; socket.create_connection(({ELSEWHERE!r}, 80))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 1 and "the test suite is offline" in child.stderr
    expect(refused, ELSEWHERE)


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"here"))
        thread.start()
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=10) as s:
            assert s.recv(4) == b"here"
        thread.join()


@pytest.mark.parametrize(
    ("address", "here"),
    [
        (("127.0.0.1", 80), True),
        (("127.8.9.1", 80), True),
        (("::1", 80, 0, 0), True),
        ("/run/some.socket", True),
        ("\0abstract", True),
        (None, True),
        (("10.0.0.1", 80), False),
        (("example.invalid", 80), False),
        (("0x7f.evil.invalid", 80), False),
        (("127.0.0.1.evil.invalid", 80), False),
    ],
)
def test_which_addresses_are_here(address: object, here: bool) -> None:
    assert stays_here(address) is here


def test_libraries_are_told_to_stay_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
