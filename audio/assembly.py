"""A history -> the embeddings of its positions, each from where its flag says. Knows the model."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from audio.history import Flag, Heard, History, flag_of
from audio.model import SpeechModel


def assemble(model: SpeechModel, history: History, start: int = 0) -> Tensor:
    """Embeddings of the positions from `start` on, (1, len(history) - start, hidden).

    Takes part in gradients where they are on. Raises ValueError where nothing follows `start`, or
    where it lies inside of a recording.
    """
    if start >= len(history) or history.boundary(start) != start:
        raise ValueError(f"no embeddings from position {start} of {len(history)}")
    parts: list[Tensor] = []
    for flag, run in groupby(history.items[start:], flag_of):
        if flag is Flag.TEXT:
            ids = torch.tensor(list(run), device=model.device)
            parts.append(model.backbone.embed(ids))
        elif flag is Flag.SPOKEN:
            parts.append(model.frames(torch.tensor(list(run), device=model.device)))
        else:
            clips = [item.mel for item in run if isinstance(item, Heard) and not item.offset]
            parts += [model.ears(mel[None].to(model.device))[0][0] for mel in clips]
    return torch.cat([part.to(model.backbone.dtype) for part in parts])[None]
