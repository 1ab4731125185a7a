"""The run of nano-vl's weights: Muon for hidden matrices, AdamW for the rest, a state to resume.

Knows parameters and losses; knows nothing of pictures. Muon is Jordan's (2024): the momentum of a
matrix is made orthogonal by five Newton-Schulz steps before it is taken.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from nano_vl_model import hidden_matrices
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lfm2_mm.errors import CheckpointDamaged

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's own names
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Training:
    """A model on its way; `step` counts updates. Rates are given at each update, in 0..1."""

    def __init__(
        self, model: nn.Module, rate: float = 4e-3, rest_rate: float = 2e-3, clip: float = 1.0,
        average: float = 0.998,
    ) -> None:  # fmt: skip
        self.model, self.rate, self.clip, self.average, self.step = model, rate, clip, average, 0
        self.rest_rate = rest_rate
        self.named = dict(model.named_parameters())
        hidden = hidden_matrices(list(self.named))
        self.momentum = {name: torch.zeros_like(self.named[name]) for name in hidden}
        rest = {name: p for name, p in self.named.items() if name not in self.momentum}
        self.adam = torch.optim.AdamW(
            [
                {
                    "params": [
                        p for name, p in rest.items()
                        if is_late(name) == late and (p.dim() > 1) == matrix
                    ],
                    "weight_decay": 0.01 if matrix else 0.0, "late": late,
                }
                for late in (False, True) for matrix in (False, True)
            ],
            lr=rest_rate, betas=(0.9, 0.98), eps=1e-8, fused=True,
        )  # fmt: skip
        self.averages = {name: p.detach().clone() for name, p in self.named.items()}

    def update(self, factor: float, late: float) -> float:
        """One step down the gradients that are there, which are then cleared; their norm.

        The rate's factor of what is trained from the beginning, and of what is trained later.
        """
        given = [p for p in self.named.values() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(given, self.clip))
        for group in self.adam.param_groups:
            group["lr"] = self.rest_rate * (late if group["late"] else factor)
        self.adam.step()
        self._muon({
            name: self.rate * (late if is_late(name) else factor)
            for name in self.momentum if self.named[name].grad is not None
        })  # fmt: skip
        for parameter in given:
            parameter.grad = None
        self.step += 1
        self._average()
        return norm

    @torch.no_grad()
    def _muon(self, rates: Mapping[str, float]) -> None:
        if not rates:
            return
        gradients = [cast(Tensor, self.named[name].grad) for name in rates]
        momenta = [self.momentum[name] for name in rates]
        torch._foreach_lerp_(momenta, gradients, 0.05)
        looked_ahead = torch._foreach_lerp(momenta, gradients, 0.05)
        turned = directions(looked_ahead)
        for (name, rate), direction in zip(rates.items(), turned, strict=True):
            self.named[name].mul_(1 - rate * 0.01).sub_(direction, alpha=rate)

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.average, (1 + self.step) / (10 + self.step))  # short memory at first
        torch._foreach_lerp_(
            list(self.averages.values()), [p.detach() for p in self.named.values()], 1 - keep
        )

    @torch.no_grad()
    def use_averages(self) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(self.averages[name])

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Everything a resumed run needs; a crash leaves the old file."""
        tensors = {f"average/{name}": t for name, t in self.averages.items()}
        tensors |= {f"momentum/{name}": t for name, t in self.momentum.items()}
        for name, parameter in self.named.items():
            tensors[f"weight/{name}"] = parameter.detach()
            state = self.adam.state.get(parameter)
            if state:
                tensors |= {f"{moment}/{name}": state[moment] for moment in MOMENTS}
                tensors[f"steps/{name}"] = state["step"]
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".part")
        plain = {key: t.contiguous().cpu() for key, t in tensors.items()}
        save_file(plain, fresh, metadata={"step": str(self.step), **notes})
        os.replace(fresh, path)

    @torch.no_grad()
    def load(self, path: Path) -> dict[str, str]:
        """Go on from `save`; returns its notes. Raises CheckpointDamaged when it does not fit."""
        try:
            with safe_open(path, framework="pt") as file:
                notes = dict(file.metadata())
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.step = int(notes.pop("step"))
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"weight/{name}"])
                self.averages[name].copy_(tensors[f"average/{name}"])
                if name in self.momentum:
                    self.momentum[name].copy_(tensors[f"momentum/{name}"])
                elif f"steps/{name}" in tensors:
                    self.adam.state[parameter] = {"step": tensors[f"steps/{name}"]} | {
                        moment: tensors[f"{moment}/{name}"].to(parameter.device)
                        for moment in MOMENTS
                    }
        except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointDamaged(
                f"{path} is not a state of this training ({error}); delete it to start anew"
            ) from error
        return notes


def is_late(name: str) -> bool:
    """Whether this is trained by answers alone, after the tower's warm-up."""
    return name.startswith(("backbone.", "vision.projector."))


def directions(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix made orthogonal in its square blocks, scaled to the size of AdamW's steps.

    Projections that lie in one matrix (queries, keys, values; gates) are so turned apart, and
    blocks of one size in one product.
    """
    pieces: dict[tuple[int, int], list[Tensor]] = {}
    places = []
    for matrix in matrices:
        high, wide = matrix.shape
        side = min(high, wide)
        size = (side, side) if high % side == wide % side == 0 else (high, wide)
        blocks = matrix.unfold(0, size[0], size[0]).unfold(1, size[1], size[1]).flatten(0, 1)
        found = pieces.setdefault(size, [])
        places.append((matrix.shape, size, len(found), len(blocks)))
        found.extend(blocks)
    turned = {
        size: orthogonal(torch.stack(found)) * (0.2 * max(size) ** 0.5)
        for size, found in pieces.items()
    }
    return [
        joined(turned[size][start : start + count], shape) for shape, size, start, count in places
    ]


def joined(blocks: Tensor, shape: torch.Size) -> Tensor:
    """(n, a, b) blocks, row by row -> the matrix of this shape."""
    _, high, wide = blocks.shape
    return (
        blocks.view(shape[0] // high, shape[1] // wide, high, wide).transpose(1, 2).reshape(shape)
    )


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, a, b) -> the nearest matrices with all singular values near 1, in bfloat16 products."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
