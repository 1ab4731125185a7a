"""States: any split, any fork, any cut and any padding equal one pass over what each row saw."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from lfm2_mm.backbone import Backbone
from lfm2_mm.state import State
from tests.shapes import NAMES, assert_close, full, opened, padded, pair, some_ids

SPLITS = [
    [11],
    [1] * 11,
    [1, 10],
    [10, 1],
    [2, 9],
    [1, 1, 9],
    [3, 1, 7],
    [4, 4, 3],
    [5, 0, 6],
    [0, 2, 2, 2, 2, 2, 1],
]


@pytest.fixture(params=NAMES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return pair(request.param).ours


def step(backbone: Backbone, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    return backbone.step(backbone.embed(ids), state)


class TestSplits:
    @pytest.mark.parametrize("split", SPLITS, ids=str)
    def test_any_split_equals_one_pass(self, backbone: Backbone, split: list[int]) -> None:
        ids = some_ids(2, sum(split))
        parts, state = [], None
        for chunk in ids.split(split, dim=1):
            hidden, state = step(backbone, chunk, state)
            parts.append(hidden)
        expected = full(backbone, ids)
        assert_close(torch.cat(parts, 1), expected)
        assert_close(backbone.logits(torch.cat(parts, 1)), backbone.logits(expected))
        assert state is not None and state.lengths == (11, 11) and state.length == 11

    def test_start_equals_no_state(self, backbone: Backbone) -> None:
        ids = some_ids(2, 5)
        hidden, _ = step(backbone, ids, backbone.start(2))
        assert torch.equal(hidden, step(backbone, ids)[0])

    def test_the_state_matters(self, backbone: Backbone) -> None:
        ids = some_ids(1, 6)
        _, state = step(backbone, ids[:, :5])
        hidden, _ = step(backbone, ids[:, 5:], state)
        assert (hidden - step(backbone, ids[:, 5:])[0]).abs().max() > 0.1


class TestCutAndCopy:
    @pytest.mark.parametrize("length", range(10))
    def test_cut_equals_never_having_gone_further(self, backbone: Backbone, length: int) -> None:
        ids, other = some_ids(2, 9), some_ids(2, 4, seed=1)
        _, state = step(backbone, ids[:, :4])
        _, state = step(backbone, ids[:, 4:], state)
        cut = state.cut(length)
        assert cut.length == length
        whole = full(backbone, torch.cat([ids[:, :length], other], 1))[:, length:]
        assert_close(step(backbone, other, cut)[0], whole)
        one_by_one = []
        for token in other.split(1, dim=1):
            hidden, cut = step(backbone, token, cut)
            one_by_one.append(hidden)
        assert_close(torch.cat(one_by_one, 1), whole)

    def test_the_longer_state_survives_its_cut(self, backbone: Backbone) -> None:
        ids, other = some_ids(1, 8), some_ids(1, 3, seed=1)
        _, longer = step(backbone, ids[:, :7])
        _, cut = step(backbone, other, longer.cut(4))
        step(backbone, other, cut.cut(2))
        assert_close(step(backbone, ids[:, 7:], longer)[0], full(backbone, ids)[:, 7:])

    def test_a_cut_row_by_row(self, backbone: Backbone) -> None:
        """Rows that are shorter than the cut stay as they are."""
        rows = [some_ids(5), some_ids(2, seed=1)]
        ids, mask = padded(rows, [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
        _, state = backbone.step(backbone.embed(ids), mask=mask)
        assert state.cut(3).lengths == (3, 2) and state.cut(1).lengths == (1, 1)
        other = some_ids(2, 2, seed=2)
        hidden, _ = step(backbone, other, state.cut(3))
        for row, seen, new, length in zip(hidden, rows, other, (3, 2), strict=True):
            alone = full(backbone, torch.cat([seen[:length], new])[None])[0]
            assert_close(row, alone[length:])

    @pytest.mark.parametrize("length", [-1, 6])
    def test_cut_out_of_range(self, length: int) -> None:
        ours = pair("dense").ours
        _, state = step(ours, some_ids(1, 5))
        with pytest.raises(ValueError, match=f"cut to {length}.*5 positions"):
            state.cut(length)

    def test_copy_has_buffers_of_its_own(self, backbone: Backbone) -> None:
        ids = some_ids(1, 6)
        _, state = step(backbone, ids[:, :5])
        copy = state.copy()
        for mine in (*state.store.keys, *state.store.values, *state.store.inputs):
            with torch.inference_mode():
                mine.fill_(float("nan"))
        assert_close(step(backbone, ids[:, 5:], copy)[0], full(backbone, ids)[:, 5:])

    def test_copy_of_nothing(self, backbone: Backbone) -> None:
        ids = some_ids(1, 3)
        assert torch.equal(step(backbone, ids, backbone.start().copy())[0], step(backbone, ids)[0])


@pytest.mark.parametrize("name", ["dense", "attention_first", "conv_only"])
@pytest.mark.parametrize("seed", range(4))
def test_states_are_values(name: str, seed: int) -> None:
    """Any state ever made can be gone on from, cut and copied, in any order, ragged rows included.

    Three rows; each state carries what its rows have seen, and every hidden state must be that of
    one pass over it. Padding is laid at random, rows of nothing but padding among them.
    """
    backbone, dice = pair(name).ours, random.Random(seed)
    nothing = [torch.zeros(0, dtype=torch.int64)] * 3
    made: list[tuple[State, list[Tensor]]] = [(backbone.start(3), nothing)]
    for turn in range(25):
        state, seen = dice.choice(made)
        action = dice.choice(["go on", "go on", "go on", "cut", "copy"])
        if action == "copy":
            made.append((state.copy(), seen))
        elif action == "cut":
            length = dice.randint(0, state.length)
            made.append((state.cut(length), [row[:length] for row in seen]))
        else:
            width = dice.choice([1, 1, 2, 5])
            masks = [[dice.random() < 0.7 for _ in range(width)] for _ in seen]
            rows = [some_ids(sum(m), seed=100 * turn + i) for i, m in enumerate(masks)]
            made.append(go_on(backbone, state, seen, rows, masks))
        assert made[-1][0].lengths == tuple(len(row) for row in made[-1][1])


def go_on(
    backbone: Backbone,
    state: State,
    seen: list[Tensor],
    rows: list[Tensor],
    masks: list[list[bool]],
) -> tuple[State, list[Tensor]]:
    """Step, compare with one pass over each row alone; the next state and what it has seen."""
    ids, mask = padded(rows, masks)
    hidden, next_state = backbone.step(backbone.embed(ids), state, mask)
    seen = [torch.cat([old, new]) for old, new in zip(seen, rows, strict=True)]
    for row, real, new, whole in zip(hidden, mask, rows, seen, strict=True):
        if len(new):
            assert_close(row[real], full(backbone, whole[None])[0, -len(new) :])
    assert hidden.isfinite().all()
    return next_state, seen


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_ragged_batch_decodes_as_each_row_alone(backbone: Backbone, side: str) -> None:
    rows = [some_ids(n, seed=n) for n in (5, 1, 3)]
    masks = [[1] * len(row) + [0] * (5 - len(row)) for row in rows]
    if side == "left":
        masks = [mask[::-1] for mask in masks]
    ids, mask = padded(rows, masks)
    _, state = backbone.step(backbone.embed(ids), mask=mask)
    for turn in range(4):
        new = some_ids(3, 1, seed=50 + turn)
        hidden, state = step(backbone, new, state)
        rows = [torch.cat([old, one]) for old, one in zip(rows, new, strict=True)]
        for row, whole in zip(hidden, rows, strict=True):
            assert_close(row[0], full(backbone, whole[None])[0, -1])
    assert state.lengths == (9, 5, 7)


def test_a_fork_where_only_the_shorter_row_has_gone_on(backbone: Backbone) -> None:
    """Both branches are as long as the longest row, which says nothing of who wrote last."""
    rows = [some_ids(3), some_ids(6, seed=1)]
    ids, mask = padded(rows, [[1, 1, 1, 0, 0, 0], [1] * 6])
    _, start = backbone.step(backbone.embed(ids), mask=mask)
    only_first = [[True], [False]]
    branch, seen = go_on(backbone, start, rows, [some_ids(1, seed=2), rows[1][:0]], only_first)
    go_on(backbone, start, rows, [some_ids(1, seed=3), rows[1][:0]], only_first)
    go_on(backbone, branch, seen, [some_ids(1, seed=4)] * 2, [[True], [True]])


class TestGrowth:
    """Buffers grow at 256 and by a quarter; nothing is lost where they do."""

    LENGTH = 330

    def whole(self) -> tuple[Backbone, Tensor, Tensor]:
        ours = pair("kernel_two").ours
        ids = some_ids(1, self.LENGTH)
        return ours, ids, full(ours, ids)

    def test_token_by_token(self) -> None:
        ours, ids, expected = self.whole()
        parts, capacities, state = [], set(), None
        for token in ids.split(1, dim=1):
            hidden, state = step(ours, token, state)
            parts.append(hidden)
            capacities.add(state.store.capacity)
        assert_close(torch.cat(parts, 1), expected)
        assert len(capacities) >= 3, "the length must pass two growths for this test to mean much"

    @pytest.mark.parametrize("first", [1, 254, 255, 256, 257, 319, 320, 321])
    @pytest.mark.parametrize("old", [False, True], ids=["one state", "beside an older one"])
    def test_chunks_around_the_boundaries(self, first: int, old: bool) -> None:
        ours, ids, expected = self.whole()
        _, start = step(ours, ids[:, :1])
        _, state = step(ours, ids[:, 1:first], start) if first > 1 else (None, start)
        _, further = step(ours, some_ids(1, 2, seed=8), state)
        going_on = state if old else further.cut(first)
        parts = []
        for token in ids[:, first:].split([1, 1, self.LENGTH - first - 2], dim=1):
            hidden, going_on = step(ours, token, going_on)
            parts.append(hidden)
        assert_close(torch.cat(parts, 1), expected[:, first:])
        again, _ = step(ours, ids[:, first:], state)
        assert_close(again, expected[:, first:])

    def test_memory_is_bounded_by_length(self) -> None:
        """A state keeps at most a quarter more positions than it has seen, or 256."""
        ours, state = pair("dense").ours, None
        for _ in range(40):
            _, state = step(ours, some_ids(1, 25), state)
            assert state.store.capacity <= max(256, 1.25 * state.length + 1)
        position = 2 * 2 * 2 * 16 * 4 + 4 * 64 * 4  # bytes: attention, then convolution layers
        assert state.bytes == position * state.store.capacity + 4 * 2 * 64 * 4

    def test_a_line_of_states_shares_its_buffers(self) -> None:
        """Going on from the newest state copies nothing; only a fork does."""
        ours = pair("dense").ours
        _, first = step(ours, some_ids(1, 5))
        _, second = step(ours, some_ids(1, 1), first)
        assert second.store is first.store
        _, fork = step(ours, some_ids(1, 1), first)
        assert fork.store is not first.store


class TestRefusals:
    def test_another_number_of_rows(self) -> None:
        ours = pair("dense").ours
        _, state = step(ours, some_ids(2, 3))
        with pytest.raises(ValueError, match="3 rows given, the state has 2"):
            step(ours, some_ids(3, 1), state)

    def test_a_failed_step_leaves_the_state_as_it_was(self) -> None:
        ours = pair("dense").ours
        ids = some_ids(1, 6)
        _, state = step(ours, ids[:, :5])
        with pytest.raises(RuntimeError):
            ours.step(torch.zeros(1, 2, 63), state)
        assert_close(step(ours, ids[:, 5:], state)[0], full(ours, ids)[:, 5:])


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_values_at_other_dtypes(dtype: str) -> None:
    """Cut, fork and raggedness are exact at every dtype; chunking itself is not (see backbone)."""
    ours = opened("dense", dtype=dtype)
    ids, other = some_ids(1, 9), some_ids(1, 1, seed=1)
    _, five = step(ours, ids[:, :5])
    expected, _ = step(ours, other, five)
    _, nine = step(ours, ids[:, 5:], five)
    assert torch.equal(step(ours, other, nine.cut(5))[0], expected)
    assert torch.equal(step(ours, other, five)[0], expected)
    assert torch.equal(step(ours, other, five.copy())[0], expected)
