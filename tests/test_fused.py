"""The compiled step of a backbone against its modules: same states, same hidden states."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from lfm2_mm import backbone as backbones
from lfm2_mm import packed
from lfm2_mm.backbone import Backbone
from lfm2_mm.compiled import register_width
from lfm2_mm.config import BackboneConfig
from lfm2_mm.device import choose
from lfm2_mm.shapes import random_backbone
from lfm2_mm.state import State
from tests.shapes import opened, some_ids

pytestmark = pytest.mark.skipif(register_width() is None, reason="no byte product here")
CONV, ATTENTION = "conv", "full_attention"
MIXED = (CONV, ATTENTION, CONV, ATTENTION)
CONFIGS = {
    "mixed": BackboneConfig(512, 64, MIXED, 4, 2, 96, head_dim=16),
    "biased, long kernel": BackboneConfig(512, 128, MIXED, 2, 2, 96, kernel=4, conv_bias=True),
    "convolutions only": BackboneConfig(512, 48, (CONV, CONV), 4, 2, 80, head_dim=16, tied=False),
    "attention only": BackboneConfig(512, 64, (ATTENTION,) * 2, 8, 1, 96, head_dim=32),
}


@pytest.fixture(params=[*CONFIGS, "mixed, int4"])
def ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A packed backbone that keeps its state in float32, so that only sums differ."""
    monkeypatch.setattr(backbones, "cache_dtype", lambda: torch.float32)
    name, _, dtype = request.param.partition(", int")
    dtype = "int4" if dtype else "int8"
    made = random_backbone(CONFIGS[name], choose("cpu", dtype))
    torch.set_num_threads(1)
    assert made.stack is not None
    return made


def by_modules(backbone: Backbone, embeds: Tensor, state: State) -> tuple[Tensor, State]:
    with torch.inference_mode():
        hidden, after = backbone._run(embeds, state, None, False)
    assert after is not None
    return hidden, after


def test_a_step_equals_the_modules(ours: Backbone) -> None:
    """Each from one state: sums in another order move a number over the edge between two int8
    levels now and then, which is worth up to a level of that product (1 / 127) and mostly nothing.
    """
    ids = some_ids(1, 40)
    _, state = ours.step(ours.embed(ids[:, :20]))
    errors = []
    for token in ids[:, 20:].split(1, dim=1):
        expected, other = by_modules(ours, ours.embed(token), state.copy())
        hidden, state = ours.step(ours.embed(token), state)
        errors.append(((hidden - expected).norm() / expected.norm()).item())
        assert state.lengths == other.lengths
        for mine, theirs in zip(buffers(state), buffers(other), strict=True):
            now, then = mine[..., : state.length, :], theirs[..., : state.length, :]
            assert (now - then).abs().max() <= 0.05 * then.abs().max()
    assert max(errors) < 0.02 and sorted(errors)[len(errors) // 2] < 0.005


def buffers(state: State) -> tuple[Tensor, ...]:
    return (*state.store.keys, *state.store.values, *state.store.inputs)


def test_states_go_from_one_to_the_other(ours: Backbone) -> None:
    """What one wrote the other reads: steps compiled, then a chunk by the modules, and back."""
    ids = some_ids(1, 30)
    expected, _ = ours.step(ours.embed(ids))
    state, parts = ours.start(), []
    for size in (1, 1, 7, 1, 1, 1, 9, 1, 8):
        seen = state.length
        hidden, state = ours.step(ours.embed(ids[:, seen : seen + size]), state)
        parts.append(hidden)
    error = (torch.cat(parts, 1) - expected).norm() / expected.norm()
    assert state.length == 30 and error < 0.02


def test_states_are_values(ours: Backbone) -> None:
    """Bit for bit: cut, fork and copy change nothing, past a growth of the buffers too."""
    ids, other = some_ids(1, 270), some_ids(1, 1, seed=1)
    _, early = ours.step(ours.embed(ids[:, :250]))
    expected, _ = ours.step(ours.embed(other), early)
    late = early
    for token in ids[:, 250:].split(1, dim=1):
        _, late = ours.step(ours.embed(token), late)
    assert late.store.capacity > 256
    for state in (late.cut(250), early, early.copy(), late.copy().cut(250)):
        assert torch.equal(ours.step(ours.embed(other), state)[0], expected)


def test_two_threads_of_one_backbone(ours: Backbone) -> None:
    ids = some_ids(2, 30)
    expected = [alone(ours, row[None]) for row in ids]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: alone(ours, ids[i : i + 1])}))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(2))


def alone(backbone: Backbone, ids: Tensor) -> Tensor:
    state, parts = backbone.start(), []
    for token in ids.split(1, dim=1):
        hidden, state = backbone.step(backbone.embed(token), state)
        parts.append(hidden)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", ["moe", "attention_only"])
def test_what_it_cannot_do_the_modules_do(name: str) -> None:
    """Experts, and heads of 24: no whole lanes."""
    backbone = opened(name, dtype="int8")
    assert backbone.stack is None
    hidden, _ = backbone.step(backbone.embed(some_ids(1, 1)))
    assert hidden.isfinite().all()


def test_without_knowing_the_layout_all_goes_through_onednn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed, "known_layout", lambda outputs, inputs: None)
    there = random_backbone(CONFIGS["mixed"], choose("cpu", "int8"))
    assert there.stack is None
    monkeypatch.undo()
    here = random_backbone(CONFIGS["mixed"], choose("cpu", "int8"))
    assert here.stack is not None
    ids = some_ids(1, 9)
    torch.testing.assert_close(alone(there, ids), alone(here, ids), rtol=0.05, atol=0.1)
    assert torch.equal(there.step(there.embed(ids))[0], here.step(here.embed(ids))[0])


def test_a_chunk_of_nothing_and_wrong_widths() -> None:
    backbone = random_backbone(CONFIGS["mixed"], choose("cpu", "int8"))
    _, state = backbone.step(backbone.embed(some_ids(1, 3)))
    with pytest.raises((RuntimeError, ValueError)):
        backbone.step(torch.zeros(1, 1, 63), state)
    assert state.lengths == state.store.lengths == (3,)
