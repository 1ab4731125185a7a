"""The index folder: manifest, lock, and vectors as they were written or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfm2_mm.errors import BadInput, IndexBusy, IndexDamaged, IndexMismatch, IndexMissing
from retrieval import storage
from retrieval.scoring import maxsim
from retrieval.segments import (
    CODECS,
    SUM_BYTES,
    Exact,
    Segment,
    SegmentWriter,
    sweep,
    verify,
)
from retrieval.storage import Entry, Manifest, Part, Stamp

DIM = 16


def unit(tokens: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((tokens, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def written(folder: Path, lengths: list[int], first: int = 1, number: int = 1) -> Entry:
    writer = SegmentWriter(folder, number, DIM, CODECS["float16"])
    for chunk, tokens in enumerate(lengths, first):
        writer.add(chunk, unit(tokens, chunk))
    return writer.finish()


FULL = Manifest(
    generation=3,
    stamp=Stamp("nano-colbert", "ab" * 32, 64, "int8", 1),
    documents=2,
    chunks=5,
    tokens=90,
    next_id=9,
    next_segment=2,
    segments=(Entry("000001", "float16", 1, 8, 8, 120, {"a": Part(1, "x")}, ((2, 4), (6, 7))),),
)


@pytest.mark.parametrize("manifest", [Manifest(), replace(Manifest(), generation=1), FULL])
def test_a_manifest_comes_back_as_it_was_published(tmp_path: Path, manifest: Manifest) -> None:
    storage.publish(tmp_path, manifest)
    assert storage.load(tmp_path) == manifest


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    storage.publish(tmp_path, FULL)
    path = tmp_path / storage.MANIFEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = storage.load(tmp_path)
        except (IndexDamaged, IndexMismatch):
            continue  # a flip can turn version 1 into one that a newer program wrote
        assert found == FULL, f"byte {place} changed what was read"  # a blank became another blank


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_truncated_manifest_is_damaged(tmp_path: Path, cut: int) -> None:
    storage.publish(tmp_path, FULL)
    path = tmp_path / storage.MANIFEST
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IndexDamaged, match=r"manifest\.json"):
        storage.load(tmp_path)


def test_a_newer_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    storage.publish(tmp_path, FULL)
    path = tmp_path / storage.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(IndexMismatch, match=r"format 99.*upgrade"):
        storage.load(tmp_path)


def test_which_folders_may_become_an_index(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing, match="lfm2-mm index"):
        storage.require(tmp_path / "none", create=False)
    storage.require(tmp_path / "none", create=True)
    storage.require(tmp_path, create=False)  # empty: nothing was ever published
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="no index"):
        storage.require(tmp_path, create=True)
    with pytest.raises(IndexMissing, match="no index"):
        storage.require(tmp_path, create=False)
    with pytest.raises(BadInput):
        storage.require(tmp_path / "letter.txt", create=True)


HOLD = """
import sys
from pathlib import Path
from retrieval import storage
with storage.writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(IndexBusy, match="another process"), storage.writing(tmp_path):
            pass
        child.kill()
    with storage.writing(tmp_path):
        pass


LENGTHS = [[1], [5, 1, 300, 2], [0, 4, 0], [512] * 20]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_stored_vectors_score_as_those_given(tmp_path: Path, lengths: list[int]) -> None:
    segment = Segment(tmp_path, written(tmp_path, lengths), DIM)
    query = unit(6, 99)
    rows = np.arange(len(lengths))
    exact = maxsim(query, [unit(n, chunk) for chunk, n in enumerate(lengths, 1)])
    # six products, each off by at most float16's half unit, 2^-11, of components that add up to 1
    np.testing.assert_allclose(segment.scores(query, rows), exact, atol=6 * 2**-11)
    for row in rows:
        np.testing.assert_allclose(segment.vectors(row), unit(lengths[row], row + 1), atol=2**-11)


def test_any_selection_scores_as_in_the_whole(tmp_path: Path) -> None:
    lengths = np.random.default_rng(3).integers(0, 60, 300).tolist()
    segment = Segment(tmp_path, written(tmp_path, lengths), DIM)
    query = unit(4, 99)
    whole = segment.scores(query, np.arange(300))
    for rows in ([], [0], [299], [0, 299], list(range(10, 200)), list(range(0, 300, 7))):
        chosen = np.array(rows, dtype=np.int64)
        np.testing.assert_allclose(segment.scores(query, chosen), whole[chosen], atol=1e-5)


def test_candidates_over_segments_leave_out_the_dead_and_the_not_allowed(tmp_path: Path) -> None:
    one = written(tmp_path, [3, 4, 5]).without([(2, 3)])
    two = written(tmp_path, [6, 7], first=10, number=2)
    exact = Exact([Segment(tmp_path, entry, DIM) for entry in (one, two)])
    query = unit(3, 99)
    expected = {c: maxsim(query, [unit(n, c)])[0] for c, n in [(1, 3), (3, 5), (10, 6), (11, 7)]}
    ids, scores = exact.candidates(query, 100)
    assert ids.tolist() == sorted(expected, key=expected.__getitem__, reverse=True)
    np.testing.assert_allclose(scores, [expected[i] for i in ids.tolist()], atol=3 * 2**-11)
    assert exact.candidates(query, 2)[0].tolist() == ids.tolist()[:2]
    assert sorted(exact.candidates(query, 9, np.array([2, 3, 7, 11]))[0].tolist()) == [3, 11]
    assert exact.candidates(query, 9, np.array([], np.int64))[0].tolist() == []
    by_id = exact.scores(query, np.array([11, 2, 1, 999]))
    np.testing.assert_allclose(by_id[[0, 2]], [expected[11], expected[1]], atol=3 * 2**-11)
    assert (by_id[[1, 3]] == -np.inf).all()


def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, 1, DIM, CODECS["float16"])
    for chunk in (4, 7, 9):
        writer.add(chunk, unit(5, 0))
    exact = Exact([Segment(tmp_path, writer.finish(), DIM)])
    assert exact.candidates(unit(2, 1), 3)[0].tolist() == [4, 7, 9]


def test_deleting_twice_counts_once() -> None:
    entry = Entry("000001", "float16", 1, 10, 10, 99, {})
    assert entry.without([(2, 5)]).without([(5, 6), (3, 4)]).dead == ((2, 6),)
    assert entry.without([(2, 5), (8, 11)]).live == 4


@pytest.mark.parametrize(
    "vectors",
    [np.zeros((2, DIM + 1)), np.zeros(DIM), np.full((1, DIM), np.nan), np.full((1, DIM), np.inf)],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    writer = SegmentWriter(tmp_path, 1, DIM, CODECS["float16"])
    with pytest.raises(BadInput, match="passage 1"):
        writer.add(1, vectors.astype(np.float32))
    writer.add(1, unit(2, 1))
    assert writer.finish().tokens == 2


def test_a_segment_cut_back_equals_one_that_never_had_more(tmp_path: Path) -> None:
    plain = written(tmp_path, [3, 4])
    writer = SegmentWriter(tmp_path, 2, DIM, CODECS["float16"])
    for chunk, tokens in enumerate([3, 4, 5, 6], 1):
        writer.add(chunk, unit(tokens, chunk))
    writer.cut(2)
    cut = writer.finish()
    assert [p.sha256 for p in cut.parts.values()] == [p.sha256 for p in plain.parts.values()]


@pytest.mark.parametrize("suffix", ["vectors", "rows", "sums"])
@pytest.mark.parametrize("harm", ["flip", "shorten", "remove"])
def test_harm_to_a_segment_is_named(tmp_path: Path, suffix: str, harm: str) -> None:
    entry = written(tmp_path, [3, 4])
    assert list(verify(tmp_path, entry)) == []
    path = tmp_path / "segments" / f"000001.{suffix}"
    whole = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "shorten":
        path.write_bytes(whole[:-1])
    else:
        path.write_bytes(bytes([whole[0] ^ 4]) + whole[1:])
    assert [damage.file for damage in verify(tmp_path, entry)] == [f"segments/000001.{suffix}"]
    if harm != "remove":
        with pytest.raises(IndexDamaged, match=path.name):
            Segment(tmp_path, entry, DIM).scores(unit(2, 9), np.arange(2))


def test_a_flipped_bit_is_served_to_nobody_and_the_other_blocks_stay_of_use(tmp_path: Path) -> None:
    entry = written(tmp_path, [512] * 20)  # five blocks of 64 KiB, four passages in each
    path = tmp_path / "segments" / "000001.vectors"
    whole = bytearray(path.read_bytes())
    whole[2 * SUM_BYTES + 77] ^= 1
    path.write_bytes(whole)
    segment = Segment(tmp_path, entry, DIM)
    query, sound = unit(3, 99), np.array([*range(8), *range(12, 20)])
    exact = maxsim(query, [unit(512, row + 1) for row in sound])
    np.testing.assert_allclose(segment.scores(query, sound), exact, atol=3 * 2**-11)
    assert segment.damaged().tolist() == [8, 9, 10, 11]
    for row in (8, 11):
        with pytest.raises(IndexDamaged, match=r"000001\.vectors.*at byte 131,072"):
            segment.vectors(row)
    with pytest.raises(IndexDamaged):
        segment.scores(query, np.arange(20))


def test_passages_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = Segment(tmp_path, written(tmp_path, [3, 0, 5, 70]), DIM)
    writer = SegmentWriter(tmp_path, 2, DIM, CODECS["float16"])
    writer.copy(source, np.array([1, 3]))
    copied = Segment(tmp_path, writer.finish(), DIM)
    assert copied.ids.tolist() == [2, 4]
    for row, original in enumerate([1, 3]):
        np.testing.assert_array_equal(copied.stored(row), source.stored(original))


def test_sweeping_removes_what_no_manifest_names(tmp_path: Path) -> None:
    kept = written(tmp_path, [3])
    written(tmp_path, [4], number=2)
    sweep(tmp_path, [kept])
    assert {path.name for path in (tmp_path / "segments").iterdir()} == set(kept.parts)
