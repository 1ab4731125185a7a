"""Where a server is and which key it wants, checked before anything is sent. Sends nothing."""

from __future__ import annotations

from urllib.parse import urlsplit

from lfm2_mm.errors import BadInput


def checked_url(url: str, such_as: str = "http://127.0.0.1:7860/v1") -> str:
    """An http or https address, without a fragment or a slash at its end. Raises BadInput."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # raises as asking for the port does
        known = parts.scheme in ("http", "https") and host and parts.port != 0
    except ValueError:
        known = False
    if not known or any(c.isspace() for c in url):
        raise BadInput(f"{url!r} is no server's address; it is like {such_as}")
    return url.partition("#")[0].rstrip("/")


def checked_key(key: str | None) -> str | None:
    """A key that a header can carry; None is none. Raises BadInput."""
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise BadInput(
            "an API key is made of ASCII characters without blanks around them, and of one at "
            "least: give such a key, or leave the flag out"
        )
    return key
