"""What a stream of limited sight remembers: the last keys and values. Knows tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from lfm2_mm.backbone import KV, View


class Recent(KV):
    """Keys and values (1, heads, past, dim). New ones go into copies: the old stay as they are."""

    def extend(self, k: Tensor, v: Tensor, view: View) -> tuple[Tensor, Tensor]:
        self.keys, self.values = torch.cat((self.keys, k), 2), torch.cat((self.values, v), 2)
        return self.keys, self.values

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """What the next step may see."""
        past = max(0, self.keys.shape[2] - count)
        return self.keys[:, :, past:], self.values[:, :, past:]


def within(past: int, new: int, window: int, device: torch.device) -> Tensor:
    """(1, 1, new, past + new) bool: which of the last `window` positions each new one sees."""
    queries = torch.arange(past, past + new, device=device)[:, None]
    back = queries - torch.arange(past + new, device=device)
    return ((back >= 0) & (back < window))[None, None]
