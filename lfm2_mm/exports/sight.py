"""What of a vision checkpoint lies before its language model: what is exported of it, and checked.

The reference is our engine's own way of a picture, from its pixels to the first token's
log-probabilities. Knows no tower, only who runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lfm2_mm.backbone import Backbone
from lfm2_mm.engines.native import lay
from lfm2_mm.exports import mmproj_file
from lfm2_mm.exports.checks import Check, Limits, compare, judged
from lfm2_mm.exports.mmproj_file import TowerSizes
from lfm2_mm.prompt import ChatTokenizer
from lfm2_mm.types import Image, Message, PartEncoder

BEFORE, QUESTION = "Look:", "What is this?"


@dataclass(frozen=True)
class Sight:
    """Tower and projector in float, with the pictures by which a runtime is judged."""

    sizes: TowerSizes
    tensors: dict[str, Tensor] = field(repr=False)  # by published key from `tower.`, `projector.`
    encoder: PartEncoder  # shows pictures as the reference does
    tokenizer: ChatTokenizer
    rebuilt: Callable[[Iterable[tuple[str, Tensor]]], PartEncoder]  # the same of other weights
    pictures: tuple[Image, ...]
    tokens: tuple[int, int]  # the fewest and the most of a picture in one crop
    remarks: tuple[str, ...] = ()

    def rounded(self, kind: str) -> Sight:
        """The same with its weights as a file of `kind` has them."""
        if kind == "f32":
            return self
        weights = mmproj_file.rounded(self.tensors, self.sizes, kind)
        return replace(self, encoder=self.rebuilt(weights))

    @torch.inference_mode()
    def answer(self, backbone: Backbone, messages: Sequence[Message]) -> tuple[int, np.ndarray]:
        """Tokens of the prompt, and (vocabulary,) float64 log-probabilities after it."""
        prompt = self.tokenizer.render(messages, self.encoder)
        embeds = backbone.embed(torch.tensor([prompt.ids]))
        for place in prompt.places:
            lay(torch.cat(list(self.encoder.encode(place.part, place.slot))), place, embeds[0], 0)
        logits = backbone.logits(backbone(embeds)[0, -1])
        return len(prompt), logits.double().log_softmax(-1).numpy()


class Seeing(Protocol):
    """A runtime that takes pictures."""

    def see(self, messages: Sequence[Message]) -> tuple[int, np.ndarray]:
        """As Sight.answer."""
        ...


def check_pictures(
    sight: Sight,
    backbone: Backbone,
    judge: tuple[Sight, Backbone],
    runtime: Seeing,
    limits: Limits,
) -> Iterator[Check]:
    """Each picture in a conversation; `judge`: our engine with the weights of the files."""
    for picture in sight.pictures:
        messages = [Message.user(BEFORE, picture, QUESTION)]
        count, ours = sight.answer(backbone, messages)
        _, same_weights = judge[0].answer(judge[1], messages)
        read, theirs = runtime.see(messages)
        found, against = (compare(one[None], theirs[None]) for one in (ours, same_weights))
        yield judged(
            count, f"picture of {picture.width} x {picture.height}", read == count, found, against,
            limits, limits.logits * float(same_weights.std()),
        )  # fmt: skip
