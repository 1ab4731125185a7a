"""Choosing a token: greedy, cut and penalised as transformers does it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lfm2_mm.sampling import penalise, pick
from lfm2_mm.types import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0, 1.9])


def drawn(sampling: Sampling, draws: int = 4000, seen: tuple[int, ...] = ()) -> Counter[int]:
    generator = torch.Generator().manual_seed(0)
    return Counter(pick(LOGITS, sampling, seen, generator) for _ in range(draws))


def expected(sampling: Sampling, seen: tuple[int, ...]) -> torch.Tensor:
    """The chances under transformers' own processors, in its order."""
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return steps(torch.tensor([seen or (0,)]), LOGITS[None].clone())[0].softmax(-1)


@pytest.mark.parametrize(
    ("sampling", "seen"),
    [
        (Sampling(temperature=1.0), ()),
        (Sampling(temperature=0.7, top_k=3), ()),
        (Sampling(temperature=1.5, min_p=0.3), ()),
        (Sampling(temperature=0.5, top_k=4, min_p=0.1, repetition_penalty=1.3), (0, 3, 3)),
        (Sampling(temperature=1.0, top_k=1), (0,)),
        (Sampling(temperature=1.0, top_p=0.8), ()),
        (Sampling(temperature=1.3, top_k=5, top_p=0.6, min_p=0.1), ()),
        (Sampling(temperature=1.0, top_p=0.0), ()),
    ],
)
def test_chances_are_those_of_transformers(sampling: Sampling, seen: tuple[int, ...]) -> None:
    counts = drawn(sampling, seen=seen)
    for token, chance in enumerate(expected(sampling, seen).tolist()):
        # 4,000 draws: five standard deviations of a fair coin are .04
        assert counts[token] / 4000 == pytest.approx(chance, abs=0.04)
        assert (counts[token] == 0) if chance == 0 else True


def test_temperature_zero_takes_the_likeliest_without_chance() -> None:
    assert drawn(Sampling(temperature=0.0), draws=20) == {0: 20}


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300])
def test_the_coldest_takes_the_likeliest(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, min_p=0.1, repetition_penalty=100)
    assert drawn(sampling, 20) == {0: 20}


def test_a_penalty_can_change_the_greedy_choice() -> None:
    assert pick(LOGITS, Sampling(temperature=0.0, repetition_penalty=1.2), (0, 0)) == 5


def test_penalty_divides_likely_and_multiplies_unlikely() -> None:
    scores = penalise(LOGITS, (0, 4, 4), 2.0)
    assert scores.tolist() == pytest.approx([1.0, 1.0, 0.5, -1.0, -6.0, 1.9])


def test_the_same_seed_gives_the_same_tokens() -> None:
    sampling = Sampling(temperature=2.0)
    assert drawn(sampling, draws=50) == drawn(sampling, draws=50)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"min_p": 1.5}, {"top_k": -1}, {"max_tokens": 0}]
)
def test_values_out_of_bounds_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
