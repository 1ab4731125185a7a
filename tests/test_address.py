"""Addresses and keys are refused before anything is sent."""

from __future__ import annotations

import pytest

from lfm2_mm.address import checked_key, checked_url
from lfm2_mm.errors import BadInput


@pytest.mark.parametrize(
    "url",
    ["", "x", "localhost:8080", "ftp://x", "http://", "http://[bad", "http://h:99999", "http://h:0",
     "http://h:x/v1", "http://a b", "http://h\n", "http://caf\udce9", f"http://{'a' * 70}"],
)  # fmt: skip
def test_what_is_no_address_is_told_with_one_that_is(url: str) -> None:
    with pytest.raises(BadInput, match="it is like http://127.0.0.1:7860/v1"):
        checked_url(url)


def test_an_address_loses_its_end() -> None:
    assert checked_url("http://127.0.0.1:8080/v1/#model") == "http://127.0.0.1:8080/v1"
    assert checked_url("https://[::1]:8080") == "https://[::1]:8080"


@pytest.mark.parametrize("key", ["", " ", " a", "a\nb", "ä", "\udce9"])
def test_what_no_header_carries_is_no_key(key: str) -> None:
    with pytest.raises(BadInput, match="ASCII characters"):
        checked_key(key)


def test_a_key_and_none() -> None:
    assert (checked_key("sk-a b"), checked_key(None)) == ("sk-a b", None)
