"""LFM2 as functions without memory, to be traced: the state goes in and the next one comes out.

One graph reads a whole prompt, a portion of one, or one token. Knows the backbone's parts; no file
format. All experts are computed and weighed, by zero where they are not chosen: a graph cannot skip
what only its input decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_mm.backbone import Attention, Backbone, Block, MixtureOfExperts, Rotary, ShortConv

Mix = Callable[[Block, Tensor, Rotary], Tensor]  # a layer's operator, without its projections' norm
Extend = Callable[[Tensor, Tensor], Tensor]  # keys or values before, and new ones -> all


@dataclass(frozen=True)
class Slot:
    """One tensor of the state as it is before anything was read; `grows` is the axis that will."""

    name: str
    shape: tuple[int, ...]
    grows: int | None = None

    def start(self) -> Tensor:
        return torch.zeros(self.shape)


def slots(backbone: Backbone, capacity: int = 0) -> list[Slot]:
    """The state in the order of a graph's inputs and outputs.

    capacity: positions of caches of a fixed size; 0: caches grow with what is read.
    """
    config = backbone.config
    found: list[Slot] = []
    for layer, kind in enumerate(config.layer_types):
        if kind == "conv":
            found.append(Slot(f"conv.{layer}", (1, config.kernel - 1, config.hidden_size)))
        else:
            shape = (1, config.kv_heads, capacity, config.head_dim)
            grows = None if capacity else 2
            found += [Slot(f"{what}.{layer}", shape, grows) for what in ("keys", "values")]
    return found


class Step(nn.Module):
    """ids (1, new) and a state -> logits (1, vocabulary) after the last id, and the next state."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        grow = [slot.grows is not None for slot in slots(backbone)]
        self.measured = grow.index(True)  # where to see how much was read

    def forward(self, ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        past = state[self.measured].shape[2]
        positions = past + torch.arange(ids.shape[1])
        sees = torch.arange(past + ids.shape[1]) <= positions[:, None]
        return step(self.backbone, ids, positions, sees, state, lambda a, b: torch.cat((a, b), 2))


class FixedStep(nn.Module):
    """The same with caches of a fixed size, of which `position` (1,) int64 positions are filled."""

    def __init__(self, backbone: Backbone, capacity: int) -> None:
        super().__init__()
        self.backbone, self.capacity = backbone, capacity

    def forward(self, ids: Tensor, position: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        new = ids.shape[1]
        places = torch.arange(self.capacity)
        positions = position + torch.arange(new)
        source = (places - position).clamp(0, new - 1)
        filled = ((places >= position) & (places < position + new))[:, None]

        def put(cache: Tensor, rows: Tensor) -> Tensor:
            taken = rows.transpose(1, 2).index_select(1, source).transpose(1, 2)
            return torch.where(filled, taken, cache)

        sees = places <= positions[:, None]
        return step(self.backbone, ids, positions, sees, state, put)


class Encode(nn.Module):
    """A late-interaction encoder: ids (texts, tokens) -> vectors (texts, tokens, dim) of length 1.

    attended (texts, tokens) bool is False at what nobody looks at, padding and a query's expansion,
    which stand at the end of a row; convolved, of bidirectional models, what convolutions see.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, ids: Tensor, attended: Tensor, convolved: Tensor | None = None) -> Tensor:
        positions = torch.arange(ids.shape[1])
        sees = attended[:, None, :]
        if not self.backbone.bidirectional:
            sees = sees & (positions <= positions[:, None])
        flows = (attended if convolved is None else convolved)[..., None]

        def mix(block: Block, x: Tensor, rotary: Rotary) -> Tensor:
            if block.conv is None:
                attention = cast(Attention, block.self_attn)
                return attend(attention, *heads_of(attention, x, rotary), sees[:, None])
            gates = block.conv.in_proj(x) * flows
            lead = block.conv.weight.shape[0] - 1
            left = block.conv.weight.shape[0] // 2 if self.backbone.bidirectional else lead
            y, _ = convolve(block.conv, gates, lambda u: F.pad(u, (0, 0, left, lead - left)))
            return y

        hidden = layers(self.backbone, ids, positions, mix)
        return F.normalize(self.head(hidden), dim=-1)


def step(
    backbone: Backbone,
    ids: Tensor,
    positions: Tensor,
    sees: Tensor,
    state: tuple[Tensor, ...],
    extend: Extend,
) -> tuple[Tensor, ...]:
    """sees (new, all) bool: which positions a new one looks at. Returns logits and the state."""
    before: Iterator[Tensor] = iter(state)
    after: list[Tensor] = []

    def mix(block: Block, x: Tensor, rotary: Rotary) -> Tensor:
        if block.conv is not None:
            inputs = next(before)
            gates = block.conv.in_proj(x)
            y, window = convolve(block.conv, gates, lambda u: torch.cat((inputs, u), 1))
            after.append(window[:, window.shape[1] - inputs.shape[1] :])
            return y
        attention = cast(Attention, block.self_attn)
        q, k, v = heads_of(attention, x, rotary)
        k, v = extend(next(before), k), extend(next(before), v)
        after.extend((k, v))
        return attend(attention, q, k, v, sees)

    hidden = layers(backbone, ids, positions, mix)
    return (backbone.logits(hidden[:, -1]), *after)


def layers(backbone: Backbone, ids: Tensor, positions: Tensor, mix: Mix) -> Tensor:
    """ids (rows, new) at `positions` (new,) -> hidden states (rows, new, hidden)."""
    config = backbone.config
    rotary = Rotary(positions[None], config.head_dim, config.rope_theta, torch.float32)
    x = F.embedding(ids, backbone.embedding)
    for block in cast("list[Block]", list(backbone.layers)):
        x = x + mix(block, block.operator_norm(x), rotary)
        x = x + feed_forward(block, block.ffn_norm(x))
    return cast(Tensor, backbone.norm(x))


def convolve(
    conv: ShortConv, gates: Tensor, widen: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """gates (rows, new, 3 * hidden) -> the layer's output, and the window it was taken from."""
    before, after, x = gates.chunk(3, dim=-1)
    window = widen(before * x)
    return conv.out_proj(after * conv.convolve(window)), window


def heads_of(attention: Attention, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values (rows, heads, new, dim), the first two turned to their positions."""
    rows, new, _ = x.shape
    whole = attention.qkv_proj(x).view(rows, new, -1, attention.dim)
    q, k, v = whole.split((attention.heads, attention.kv_heads, attention.kv_heads), dim=2)
    q, k = turn(attention.q_layernorm(q), rotary), turn(attention.k_layernorm(k), rotary)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def turn(x: Tensor, rotary: Rotary) -> Tensor:
    """As Rotary.turn, in operations that every runtime has."""
    low, high = x.chunk(2, dim=-1)
    return x * rotary.cos + torch.cat((high, low), -1) * rotary.sin


def attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """sees (new, all), or (rows, 1, new, all): who looks at whom."""
    rows, heads, new, dim = q.shape
    k, v = (for_heads(cache, heads // attention.kv_heads) for cache in (k, v))
    scores = q @ k.transpose(-1, -2) * dim**-0.5
    mixed = scores.masked_fill(~sees, -1e9).softmax(-1) @ v
    return cast(Tensor, attention.out_proj(mixed.transpose(1, 2).reshape(rows, new, heads * dim)))


def for_heads(cache: Tensor, share: int) -> Tensor:
    """Keys or values, once for each of the `share` heads that look at them."""
    # Picked, not expanded: of the view that is, a tracer asks whether it is contiguous.
    return cache.index_select(1, torch.arange(cache.shape[1] * share) // share)


def feed_forward(block: Block, x: Tensor) -> Tensor:
    """The dense network, or all experts with their weights."""
    network = block.feed_forward
    if not isinstance(network, MixtureOfExperts):
        return cast(Tensor, network(x))
    chosen, weights = network.route(x.reshape(-1, x.shape[-1]))
    count = network.settings.count
    spread = torch.zeros(chosen.shape[0], count).scatter(1, chosen, weights)
    spread = spread.view(*x.shape[:-1], count)
    out = network.experts[0](x) * spread[..., :1]
    for number in range(1, count):
        out = out + network.experts[number](x) * spread[..., number : number + 1]
    return cast(Tensor, out)
