"""Positions of a conversation: growing, cutting, and the reference's parts of it."""

from __future__ import annotations

import pytest
import torch

from audio.history import Flag, History

CLIP, OTHER = torch.zeros(17, 4), torch.ones(8, 4)  # 3 positions and 1


def conversation() -> History:
    history = History()
    history.add_text([1, 6, 5])
    history.add_heard(CLIP)
    history.add_heard(OTHER)
    history.add_text([7])
    history.add_spoken((4, 5))
    history.add_text([9])
    return history


def test_flags_and_parts() -> None:
    history = conversation()
    assert "".join(str(int(flag)) for flag in history.flags) == "1112222131"
    assert history.text == [1, 6, 5, 7, 9]
    assert history.spoken == [(4, 5)]
    assert [id(mel) for mel in history.heard] == [id(CLIP), id(OTHER)]


@pytest.mark.parametrize(
    ("frames", "positions"), [(1, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3), (101, 13)]
)
def test_a_recording_takes_an_eighth_of_its_frames(frames: int, positions: int) -> None:
    history = History()
    history.add_heard(torch.zeros(frames, 4))
    assert len(history) == positions


@pytest.mark.parametrize("length", [0, 1, 3, 6, 7, 8, 9, 10])
def test_cut_leaves_what_was_there_at_that_length(length: int) -> None:
    history = conversation()
    wanted = history.items[:length]
    history.cut(length)
    assert history.items == wanted


@pytest.mark.parametrize("length", [4, 5])
def test_a_recording_is_not_cut_in_two(length: int) -> None:
    history = conversation()
    with pytest.raises(ValueError, match="inside of a recording"):
        history.cut(length)
    assert len(history) == 10
    assert history.boundary(length) == 3


def test_boundaries_elsewhere_are_where_they_are_asked() -> None:
    history = conversation()
    assert [history.boundary(i) for i in (0, 3, 6, 7, 9, 10)] == [0, 3, 6, 7, 9, 10]


@pytest.mark.parametrize("length", [-1, 11])
def test_cuts_beyond_the_ends_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="10 positions"):
        conversation().cut(length)


def test_a_copy_grows_alone() -> None:
    history = conversation()
    copy = history.copy()
    copy.add_text([1])
    history.cut(2)
    assert (len(history), len(copy)) == (2, 11)
    assert copy.flags[-1] is Flag.TEXT
