"""What training recipes share: schedule, optimiser, averaged weights, a state that survives a stop.

Knows parameters and losses; knows nothing of data. A recipe draws the batch of a step from seed and
step alone; then a run that was interrupted and resumed gives the numbers of one that was not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lfm2_mm.errors import BadInput, CheckpointDamaged

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's own names


@dataclass(frozen=True)
class Plan:
    """How to optimise. Rates are multiplied by the schedule: linear warm-up, then half a cosine."""

    rate: float = 1e-3
    table_rate: float = 5e-4  # of embedding tables, whose rows get few and uneven gradients
    final: float = 0.01  # the schedule's last value
    warm_up: float = 0.03  # part of the run
    decay: float = 0.01  # AdamW's, on matrices only
    clip: float = 1.0  # largest norm of the gradient
    average: float = 0.995  # of the averaged weights that are shipped


def schedule(progress: float, plan: Plan) -> float:
    """The factor of the learning rate after this part (0..1) of the run."""
    if progress < plan.warm_up:
        return progress / plan.warm_up
    rest = min(1.0, (progress - plan.warm_up) / (1 - plan.warm_up))
    return plan.final + (1 - plan.final) * 0.5 * (1 + math.cos(math.pi * rest))


class Training:
    """One model on its way: AdamW, schedule, averaged weights; `step` counts the updates made."""

    def __init__(self, model: nn.Module, plan: Plan, tables: Sequence[nn.Parameter] = ()) -> None:
        self.model, self.plan, self.step = model, plan, 0
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            list(groups(self.named.values(), plan, tables)), betas=(0.9, 0.98), eps=1e-8, fused=True
        )
        self.averages = {name: p.detach().clone() for name, p in self.named.items()}

    def update(
        self, loss: Tensor, progress: float,
        average: Callable[[Iterable[Tensor]], None] = lambda _: None,
    ) -> float:  # fmt: skip
        """One step down `loss` at this part (0..1) of the run; returns the gradient's norm.
        `average` makes gradients of these parameters the mean over all who train the model.

        Raises FloatingPointError, with the weights unchanged, when the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}")
        factor = schedule(progress, self.plan)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average(self.named.values())
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.plan.clip)
        self.optimiser.step()
        self.step += 1
        self._average()
        return float(norm)

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.plan.average, (1 + self.step) / (10 + self.step))  # short memory at first
        torch._foreach_lerp_(
            list(self.averages.values()), [p.detach() for p in self.named.values()], 1 - keep
        )

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the averaged weights into the model: the end of a run."""
        for name, parameter in self.named.items():
            parameter.copy_(self.averages[name])

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Everything a resumed run needs, as one safetensors file; a crash leaves the old one."""
        tensors = {f"average/{name}": t for name, t in self.averages.items()}
        for name, parameter in self.named.items():
            tensors[f"weight/{name}"] = parameter.detach()
            for moment in MOMENTS:
                state = self.optimiser.state.get(parameter)
                if state:
                    tensors[f"{moment}/{name}"] = state[moment]
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".part")
        save_file(
            {key: t.contiguous().cpu() for key, t in tensors.items()},
            fresh,
            metadata={"step": str(self.step), **(notes or {})},
        )
        os.replace(fresh, path)

    def load(self, path: Path) -> dict[str, str]:
        """Go on from `save`; returns its notes. Raises CheckpointDamaged when it does not fit."""
        try:
            with safe_open(path, framework="pt") as file:
                notes = dict(file.metadata())
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self._restore(tensors, int(notes.pop("step")))
        except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointDamaged(
                f"{path} is not a state of this training ({error}); delete it to start anew"
            ) from error
        return notes

    @torch.no_grad()
    def _restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(tensors[f"weight/{name}"])
            self.averages[name].copy_(tensors[f"average/{name}"])
            if step:
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(step), device=parameter.device)
                } | {moment: tensors[f"{moment}/{name}"].to(parameter.device) for moment in MOMENTS}
        self.step = step


def groups(
    parameters: Iterable[nn.Parameter], plan: Plan, tables: Sequence[nn.Parameter]
) -> Iterable[dict[str, Any]]:
    """AdamW's groups: matrices decay, vectors do not, tables have a rate of their own."""
    parameters = list(parameters)
    in_tables = {id(p) for p in tables}
    matrices = [p for p in parameters if p.dim() > 1 and id(p) not in in_tables]
    vectors = [p for p in parameters if p.dim() <= 1 and id(p) not in in_tables]
    yield {"params": matrices, "peak": plan.rate, "weight_decay": plan.decay}
    yield {"params": vectors, "peak": plan.rate, "weight_decay": 0.0}
    if tables:
        yield {"params": list(tables), "peak": plan.table_rate, "weight_decay": 0.0}


def settle(folder: Path, settings: Mapping[str, object]) -> None:
    """Note a run's settings in its folder, or refuse to go on with other ones: raises BadInput."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {key: str(value) for key, value in settings.items()}
    path = folder / "run.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != told:
        raise BadInput(f"{folder} holds a run with other settings ({path}); choose another --out")
    path.write_text(json.dumps(told, indent=1), encoding="utf-8")
