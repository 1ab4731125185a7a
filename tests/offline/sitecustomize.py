"""Refuses every connection that leaves this machine. Python imports this file when it starts.

tests/conftest.py puts the folder on PYTHONPATH, so programs that a test starts are held back too. A
refusal is also written to a file, so that a test fails even where the code swallows the error.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

LOG = "LFM2_MM_TEST_REFUSED"  # environment variable: the file that refusals are written to
EVENTS = {  # audit event -> position of the address among its arguments
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}


class Refused(OSError):
    """A test wanted to reach another machine."""


def stays_here(address: Any) -> bool:
    """Whether an address (host, (host, port, ...), path of a Unix socket) is on this machine."""
    host = address[0] if isinstance(address, tuple) else address
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    if isinstance(host, bytes):
        host = host.decode("latin-1")
    if not isinstance(address, tuple) and ("/" in host or host.startswith("\0")):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    place = EVENTS.get(event)
    if place is None or stays_here(arguments[place]):
        return
    refusal = f"{event} {arguments[place]!r}"
    if os.environ.get(LOG):
        with open(os.environ[LOG], "a", encoding="utf-8") as log:
            log.write(f"{refusal} by {' '.join(sys.argv)}\n")
    raise Refused(f"the test suite is offline: {refusal}")


sys.addaudithook(watch)
