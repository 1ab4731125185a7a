"""Logits -> token. Pure; knows no model and no text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lfm2_mm.types import Sampling

COLDEST = 1e-6  # temperature; below it the best one is chosen anyway, and scores overflow


def pick(
    logits: Tensor,
    sampling: Sampling,
    seen: Sequence[int],
    generator: torch.Generator | None = None,
) -> int:
    """Choose the next token.

    logits (vocab,) of any float dtype; `seen` are the ids so far, for the repetition penalty.
    Order as in transformers: penalty, temperature, top_k, top_p, min_p. Temperature 0 is greedy.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0:
        scores = penalise(scores, seen, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return int(scores.argmax())
    scores = scores / max(sampling.temperature, COLDEST)
    if 0 < sampling.top_k < scores.numel():
        least = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < least, -torch.inf)
    chances = scores.softmax(-1)
    if sampling.top_p < 1.0:
        chances = nucleus(chances, sampling.top_p)
    if sampling.min_p > 0.0:
        chances = chances.masked_fill(chances < sampling.min_p * chances.max(), 0.0)
    return int(torch.multinomial(chances, 1, generator=generator))


def nucleus(chances: Tensor, share: float) -> Tensor:
    """The likeliest ids that make up `share` together, at least one; the others' chance is 0."""
    ordered, ids = chances.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # the likeliest has 0 before it and always stays
    beyond = before >= share
    beyond[0] = False
    return chances.index_fill(0, ids[beyond], 0.0)


def penalise(scores: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Make every id in `seen` less likely: positive scores divided, negative ones multiplied."""
    ids = torch.tensor(sorted(set(seen)), device=scores.device, dtype=torch.int64)
    old = scores[ids]
    return scores.index_copy(0, ids, torch.where(old > 0, old / penalty, old * penalty))
