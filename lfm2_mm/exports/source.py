"""What is exported, and what it answers here: the reference that every artefact is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.loading import published_tensors
from lfm2_mm.state import State
from lfm2_mm.weights import read_json

if TYPE_CHECKING:
    from lfm2_mm.exports.sight import Sight

BLIND = (
    "the language model alone: its vision tower and projector are not exported, so the file "
    "answers text and sees no pictures"
)


@dataclass(frozen=True)
class Source:
    """A checkpoint in float: a language model, or with a `head` a late-interaction encoder."""

    name: str
    folder: Path
    backbone: Backbone = field(repr=False)
    encode: Callable[[str], list[int]]  # ids as the checkpoint reads a text
    head: nn.Module | None = None  # (…, hidden) -> (…, dim), before vectors get length 1
    longest: int = 0  # tokens of the longest text that an encoder reads
    left_out: str = ""  # what of the checkpoint has no place beside a language model, for a person
    sight: Sight | None = None  # that, where llama.cpp takes it in a file of its own

    @property
    def config(self) -> BackboneConfig:
        return self.backbone.config

    @property
    def kind(self) -> Literal["chat", "colbert"]:
        return "chat" if self.head is None else "colbert"

    def tensors(self) -> dict[str, Tensor]:
        """The weights under their published names; views, no copies."""
        return published_tensors(self.backbone)

    def projection(self) -> Tensor | None:
        """The head as one matrix (dim, hidden). Raises BadInput where it is more than one."""
        if self.head is None:
            return None
        with torch.inference_mode():
            origin = self.head(torch.zeros(1, self.config.hidden_size))
            matrix = self.head(torch.eye(self.config.hidden_size)) - origin
            probe = torch.randn(4, self.config.hidden_size)
            plain = torch.allclose(self.head(probe), probe @ matrix, atol=1e-4, rtol=1e-4)
        if origin.any() or not plain:
            raise BadInput(
                f"{self.name}'s projection has a bias or an activation; GGUF keeps one matrix"
            )
        return matrix.T.contiguous()

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], last: int) -> np.ndarray:
        """(last, vocabulary) float64 log-probabilities after each of the last ids."""
        hidden = self.backbone(self.backbone.embed(torch.tensor([list(ids)])))[0, -last:]
        return self.backbone.logits(hidden).double().log_softmax(-1).numpy()

    @torch.inference_mode()
    def vectors(self, ids: Sequence[int], attended: int, convolved: int) -> np.ndarray:
        """(tokens, dim) float64 of length 1; only the first `attended` ids are looked at."""
        assert self.head is not None
        real = torch.arange(len(ids))[None] < attended
        embeds = self.backbone.embed(torch.tensor([list(ids)]))
        hidden = self.backbone(embeds, real, convolve_padding=convolved > attended)
        return nn.functional.normalize(self.head(hidden)[0].double(), dim=-1).numpy()

    def reader(self) -> Reading:
        return Reading(self.backbone)


class Reading:
    """Our own engine at work, to be timed: one token after another."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.state: State | None = None

    def read(self, ids: Sequence[int]) -> Any:
        embeds = self.backbone.embed(torch.tensor([list(ids)]))
        hidden, self.state = self.backbone.step(embeds, self.state)
        return self.backbone.logits(hidden[:, -1])


def open_source(folder: Path, name: str, dtype: str = "auto") -> Source:
    """A text checkpoint; of a vision one the language model. Raises BadInput, CheckpointDamaged."""
    backbone = Backbone.open(folder, device="cpu", dtype=float_dtype(dtype))
    tokenizer = read_tokenizer(folder)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    sees = "vision_config" in read_json(folder / "config.json")
    return Source(name, folder, backbone, encode, left_out=BLIND if sees else "")


def float_dtype(dtype: str) -> str:
    """fp32, or bf16 where the memory asks for it; rounded weights cannot be taken out again."""
    if dtype not in ("auto", "fp32", "bf16"):
        raise BadInput(f"export reads weights as fp32 or bf16, not {dtype}; --type rounds them")
    return "fp32" if dtype == "auto" else dtype


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer, without truncation or padding. Raises CheckpointDamaged."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointDamaged(f"{folder} has no tokenizer.json; fetch or save it again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower for a malformed file
        raise CheckpointDamaged(f"{path} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
