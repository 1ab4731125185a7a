"""Schedule, averages, and that a resumed run is the run that was never interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.train import Plan, Training, groups, schedule

PLAN = Plan(rate=0.05, table_rate=0.01, average=0.9)


class Tiny(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 2)

    def loss(self, step: int) -> torch.Tensor:
        """Of a batch drawn from the step alone."""
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(5, (4,), generator=generator)
        return F.cross_entropy(self.linear(self.table(ids)), ids % 2)


@torch.no_grad()
def mean_loss(run: Training) -> float:
    losses = [run.model.loss(step) for step in range(20)]  # type: ignore[operator]
    return float(torch.stack(losses).mean())


def training(seed: int = 0) -> Training:
    model = Tiny(seed)
    return Training(model, PLAN, [model.table.weight])


def advance(run: Training, until: int, total: int = 10) -> None:
    while run.step < until:
        run.update(run.model.loss(run.step), run.step / total)  # type: ignore[operator]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_rate_rises_then_falls_to_its_last_value() -> None:
    plan = Plan(warm_up=0.1, final=0.01)
    factors = [schedule(step / 100, plan) for step in range(101)]
    assert factors[0] == 0 and max(factors) == factors[10] == 1
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == schedule(1.5, plan) == pytest.approx(0.01)


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path, stop: int) -> None:
    whole = training()
    advance(whole, 9)
    first = training()
    advance(first, stop)
    first.save(tmp_path / "state.safetensors", {"seconds": "1.5"})
    second = training(seed=1)  # other first weights: everything must come from the file
    assert second.load(tmp_path / "state.safetensors") == {"seconds": "1.5"}
    assert second.step == stop
    advance(second, 9)
    assert same(whole.model.state_dict(), second.model.state_dict())
    assert same(whole.averages, second.averages)
    assert not list(tmp_path.glob("*.part"))


def test_training_lowers_the_loss() -> None:
    run = training()
    before = mean_loss(run)
    advance(run, 60, total=60)
    assert mean_loss(run) < before / 2


def test_averages_follow_the_weights_and_replace_them_at_the_end() -> None:
    run = training()
    expected = run.model.table.weight.detach().clone()  # type: ignore[union-attr]
    for step in range(1, 6):
        advance(run, step)
        keep = min(PLAN.average, (1 + step) / (10 + step))
        weight = run.model.table.weight.detach()  # type: ignore[union-attr]
        expected = keep * expected + (1 - keep) * weight
    torch.testing.assert_close(run.averages["table.weight"], expected)
    run.use_averages()
    assert same(dict(run.named), run.averages)


def test_matrices_decay_vectors_do_not_and_tables_have_their_own_rate() -> None:
    model = Tiny()
    made = list(groups(model.parameters(), PLAN, [model.table.weight]))
    by_id = {id(p): g for g in made for p in g["params"]}
    assert len(by_id) == sum(len(g["params"]) for g in made) == 3
    assert by_id[id(model.linear.weight)]["weight_decay"] == PLAN.decay
    assert by_id[id(model.linear.bias)]["weight_decay"] == 0
    assert by_id[id(model.table.weight)]["peak"] == PLAN.table_rate


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(bad: float) -> None:
    run = training()
    advance(run, 2)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="step 2"):
        run.update(run.model.loss(2) * bad, 0.2)  # type: ignore[operator]
    assert run.step == 2 and same(before, run.model.state_dict())


def test_a_state_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    run, path = training(), tmp_path / "state.safetensors"
    advance(run, 2)
    run.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointDamaged, match="state.safetensors"):
        training().load(path)
    path.write_bytes(whole)
    other = nn.Linear(3, 2)
    with pytest.raises(CheckpointDamaged, match="delete it"):
        Training(other, PLAN).load(path)
    with pytest.raises(CheckpointDamaged, match="missing"):
        training().load(tmp_path / "missing")
