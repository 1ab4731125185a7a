"""Conversations with pictures: tower and backbone of one checkpoint behind the native engine.

Knows which tokens a picture takes and what a budget allows; knows no pixels and no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from lfm2_mm.backbone import Backbone
from lfm2_mm.checkpoint import locate
from lfm2_mm.engines.native import Native, advice_of, context_of, row_of
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.prompt import ChatTokenizer
from lfm2_mm.types import Audio, Image, Message, Sampling, Slot
from vision.encoder import VisionEncoder
from vision.rule import ImageRule, Size
from vision.settings import read_rule
from vision.tiling import IMAGE, PRESETS, TilePlan, TokenBudget, plan_all

DEFAULT = "balanced"


class Pictures:
    """A checkpoint's PartEncoder for pictures: plans them by rule and budget, then encodes them."""

    accepts: type[Image] | type[Audio] = Image
    kind = "image"
    marker = IMAGE

    def __init__(
        self, encoder: VisionEncoder, tokenizer: ChatTokenizer, rule: ImageRule, budget: TokenBudget
    ) -> None:
        """Raises CheckpointDamaged where configuration and vocabulary name different ids."""
        self.encoder, self.rule, self.budget = encoder, rule, budget
        self._tokenizer = tokenizer
        self._marker = tokenizer.id_of(IMAGE)
        told = encoder.model.config.image_token_id
        if told != self._marker:
            raise CheckpointDamaged(
                f"config.json says image tokens are {told}, the tokenizer says {self._marker}"
            )

    def plan(self, parts: Sequence[Image]) -> list[Slot]:
        """Slots of the pictures of one prompt; `slot.plan` is a TilePlan. Raises OverBudget."""
        plans = plan_all([Size(p.height, p.width) for p in parts], self.budget, self.rule)
        return [self._slot(part, plan) for part, plan in zip(parts, plans, strict=True)]

    def encode(self, part: Image, slot: Slot) -> Iterator[Tensor]:
        """The picture's rows (n, hidden), some crops at a time. Raises BadPicture."""
        return self.encoder.pieces(part, slot.plan)

    def under(self, budget: TokenBudget, *, remember: bool = True) -> Pictures:
        """The same encoder under another budget; without `remember`, one that knows no picture."""
        encoder = self.encoder if remember else VisionEncoder(self.encoder.model, cache_bytes=0)
        return Pictures(encoder, self._tokenizer, self.rule, budget)

    def _slot(self, image: Image, plan: TilePlan) -> Slot:
        ids: list[int] = []
        for part in plan.layout():
            ids += [self._marker] * part if isinstance(part, int) else [self._tokenizer.id_of(part)]
        return Slot(tuple(ids), self._marker, f"{image.key} {plan}", plan)


class Chat(Native):
    """The native engine of a vision checkpoint: messages hold text and pictures."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        tokenizer: ChatTokenizer,
        context: int,
        advice: Sampling,
        pictures: Pictures,
    ) -> None:
        super().__init__(name, backbone, tokenizer, context, advice, pictures)
        self.pictures = pictures

    @property
    def budget(self) -> TokenBudget:
        """What the pictures of a prompt may cost."""
        return self.pictures.budget

    def at(self, budget: TokenBudget | int, *, remember: bool = True) -> Chat:
        """The same checkpoint under another budget, with a conversation of its own.

        Weights are shared, and encoded pictures; without `remember` every picture is encoded anew,
        each time, as a measurement wants it.
        """
        pictures = self.pictures.under(budget_of(budget, None), remember=remember)
        return Chat(self.name, self._backbone, self._tokenizer, self.context, self.advice, pictures)

    def plans(self, messages: Sequence[Message]) -> list[TilePlan]:
        """The plan of every picture of a conversation, in order; nothing is computed.

        Raises OverBudget, ContextExceeded and what else `prompt` raises.
        """
        return [place.slot.plan for place in self.prompt(messages).places]


def open(
    name_or_path: str | Path,
    *,
    budget: TokenBudget | int | None = None,
    preset: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> Chat:
    """Open a vision checkpoint by name, hub id or folder.

    budget: the most image tokens for each picture, or a TokenBudget; or a preset by name
    ("reference", "fast", "balanced", "quality"; balanced is the default). Raises BadInput for both
    or an unknown one, and what loading a checkpoint raises.
    """
    allowed = budget_of(budget, preset)
    known = row_of(name_or_path)
    if known is not None and known.kind != "vision":
        raise BadInput(f"{known.name} is a {known.kind} checkpoint; pictures need a vision one")
    folder = locate(name_or_path, offline=offline)
    encoder = VisionEncoder.open(folder, device=device, dtype=dtype)
    backbone = Backbone.open(folder, device=device, dtype=dtype)
    tokenizer = ChatTokenizer(folder)
    return Chat(
        known.name if known else str(name_or_path),
        backbone,
        tokenizer,
        context_of(known, backbone),
        advice_of(folder, known.sampling if known else None),
        Pictures(encoder, tokenizer, read_rule(folder), allowed),
    )


def budget_of(budget: TokenBudget | int | None, preset: str | None) -> TokenBudget:
    """The budget that is asked, in whichever way. Raises BadInput."""
    if preset is not None and budget is not None:
        raise BadInput(f"a budget and the preset {preset!r} were given; give one of them")
    if isinstance(budget, TokenBudget):
        return budget
    if budget is not None:
        return TokenBudget(budget)
    if (preset or DEFAULT) not in PRESETS:
        raise BadInput(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS[preset or DEFAULT]
