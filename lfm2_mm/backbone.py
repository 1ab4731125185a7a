"""LFM2 in process: embed, step, logits. Knows layers and state; knows nothing of text or files.

The arithmetic is that of transformers' Lfm2Model and Lfm2MoeModel (models/lfm2, models/lfm2_moe),
with projections fused, one state for attention and convolution, and padding that is never seen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_mm.config import BackboneConfig
from lfm2_mm.linear import Linear
from lfm2_mm.state import State, Store

if TYPE_CHECKING:
    from lfm2_mm.fused import Stack
    from lfm2_mm.many_rows import ManyRows


class View:
    """Where the new positions of one step lie, and what they may see. Made once a step.

    Rows are packed: real positions first, padding after them; `mask` is None without padding.
    """

    def __init__(self, past: tuple[int, ...], new: int, mask: Tensor | None, causal: bool) -> None:
        self.past, self.new, self.mask, self.causal = past, new, mask, causal
        self.even = len(set(past)) == 1
        self.end = max(past) + new

    def attention_mask(self, device: torch.device) -> Tensor | None:
        """(batch or 1, 1, new, end) bool, True where a query sees a key; None if all is plain."""
        if self.mask is None and self.even and (self.new == 1 or self.past[0] == 0):
            return None  # one token sees everything; a fresh pass is plainly causal
        keys = torch.arange(self.end, device=device)
        if not self.causal:
            return cast(Tensor, self.mask)[:, None, None, :].expand(-1, 1, self.new, -1)
        past = torch.tensor(self.past, device=device)[:, None]
        positions = past + torch.arange(self.new, device=device)  # (batch, new)
        sees = keys <= positions[..., None]
        if self.mask is not None:
            real = past + self.mask.sum(1, keepdim=True)
            sees &= keys < real[..., None]
            sees[..., 0] |= ~sees.any(-1)  # a row of nothing but padding must not become NaN
        return sees[:, None]

    def positions(self, device: torch.device) -> Tensor:
        """(batch or 1, new) int64: the place of each new position in its row."""
        past = torch.tensor(self.past[:1] if self.even else self.past, device=device)
        return past[:, None] + torch.arange(self.new, device=device)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class ShortConv(nn.Module):
    """Gated short convolution: y = C · conv(B · x) (report, section 2; Lfm2ShortConv)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.in_proj = Linear(size, 3 * size, bias=config.conv_bias)
        self.out_proj = Linear(size, size, bias=config.conv_bias)
        self.weight = nn.Parameter(torch.empty(config.kernel, size))  # taps first: (kernel, hidden)
        self.bias = nn.Parameter(torch.empty(size)) if config.conv_bias else None

    def forward(self, x: Tensor, view: View, inputs: Tensor | None, keep_padding: bool) -> Tensor:
        return self.out_proj(self.mix(self.in_proj(x), view, inputs, keep_padding))

    def mix(self, gates: Tensor, view: View, inputs: Tensor | None, keep_padding: bool) -> Tensor:
        """What lies between the projections: gates (batch, new, 3 * hidden) -> (…, hidden)."""
        if view.mask is not None and not keep_padding:
            gates = gates * view.mask[..., None].to(gates.dtype)
        before, after, x = gates.chunk(3, dim=-1)
        u = before * x
        return after * self.convolve(self.window(u, view, inputs))

    def window(self, u: Tensor, view: View, inputs: Tensor | None) -> Tensor:
        """(batch, kernel - 1 + new, hidden): the new inputs with those before them (or around)."""
        lead = self.weight.shape[0] - 1
        if inputs is None:
            left = lead if view.causal else self.weight.shape[0] // 2
            return F.pad(u, (0, 0, left, lead - left))
        if view.even:
            start = view.past[0]
            inputs[:, start + lead : start + lead + view.new] = u
            return inputs[:, start : start + lead + view.new]
        for row, start in enumerate(view.past):
            inputs[row, start + lead : start + lead + view.new] = u[row]
        rows = [inputs[r, s : s + lead + view.new] for r, s in enumerate(view.past)]
        return torch.stack(rows)

    def convolve(self, window: Tensor) -> Tensor:
        new = window.shape[1] - self.weight.shape[0] + 1
        y = window[:, :new] * self.weight[0]
        for tap in range(1, self.weight.shape[0]):
            y = torch.addcmul(y, window[:, tap : tap + new], self.weight[tap])
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """Grouped-query attention with RMS-normalised queries and keys, and rotary positions."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.heads, config.kv_heads, config.head_dim
        self.qkv_proj = Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.dim)
        self.out_proj = Linear(self.heads * self.dim, config.hidden_size)
        self.q_layernorm = RMSNorm(self.dim, config.norm_eps)
        self.k_layernorm = RMSNorm(self.dim, config.norm_eps)

    def forward(
        self, x: Tensor, view: View, rotary: Rotary, sees: Tensor | None, cache: KV | None
    ) -> Tensor:
        return self.out_proj(self.mix(self.qkv_proj(x), view, rotary, sees, cache))

    def mix(
        self, qkv: Tensor, view: View, rotary: Rotary, sees: Tensor | None, cache: KV | None
    ) -> Tensor:
        """What lies between the projections: queries, keys, values -> (…, heads * dim)."""
        batch, new, _ = qkv.shape
        dtype = qkv.dtype
        qkv = qkv.view(batch, new, -1, self.dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q = rotary.turn(self.q_layernorm(q)).transpose(1, 2)
        k = rotary.turn(self.k_layernorm(k)).transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(k, v, view)
            q = q.to(k.dtype)
        if new == 1 and sees is None:
            y = self.attend_one(q, k, v)
        else:
            causal = sees is None and view.causal
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=sees, is_causal=causal, enable_gqa=self.heads != self.kv_heads
            )
        return y.transpose(1, 2).reshape(batch, new, -1).to(dtype)

    def attend_one(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One query position: heads that share a key head become its rows; no mask is needed."""
        batch, _, _, dim = q.shape
        grouped = q.reshape(batch, self.kv_heads, self.heads // self.kv_heads, dim)
        return F.scaled_dot_product_attention(grouped, k, v).reshape(batch, self.heads, 1, dim)


class KV:
    """One attention layer's keys and values in the store."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def extend(self, k: Tensor, v: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Write the new positions; return all of them, (batch, kv_heads, end, dim)."""
        for cache, new in ((self.keys, k), (self.values, v)):
            if view.even:
                cache[:, :, view.past[0] : view.end] = new
            else:
                for row, start in enumerate(view.past):
                    cache[row, :, start : start + view.new] = new[row]
        return self.keys[:, :, : view.end], self.values[:, :, : view.end]


class Rotary:
    """Rotary position embedding of the positions of one step, halves rotated."""

    def __init__(self, positions: Tensor, dim: int, theta: float, dtype: torch.dtype) -> None:
        device = positions.device
        steps = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
        angles = positions[..., None].float() * (1.0 / theta**steps)
        self.cos = angles.cos().repeat(1, 1, 2)[:, :, None].to(dtype)  # (batch or 1, new, 1, dim)
        signs = angles.sin()
        self.sin = torch.cat((-signs, signs), -1)[:, :, None].to(dtype)

    def turn(self, x: Tensor) -> Tensor:
        """x (batch, new, heads, dim)."""
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x), with w1 and w3 in one product."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.w13 = Linear(size, 2 * width)
        self.w2 = Linear(width, size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)


class MixtureOfExperts(nn.Module):
    """Sigmoid-routed experts: the bias helps to choose, the score alone weighs (Lfm2Moe)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.settings = config.experts
        self.gate = Linear(config.hidden_size, config.experts.count)
        self.experts = nn.ModuleList(
            FeedForward(config.hidden_size, config.experts.width)
            for _ in range(config.experts.count)
        )
        # float32 at every dtype: bf16 rounds away what balances the experts
        self.expert_bias = nn.Parameter(torch.zeros(config.experts.count), requires_grad=False)

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows (n, hidden) -> chosen experts (n, active) and their weights."""
        scores = self.gate(rows).sigmoid()
        ranked = scores + self.expert_bias if self.settings.use_bias else scores
        chosen = ranked.topk(self.settings.active, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.settings.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        return chosen, weights * self.settings.scale

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        chosen, weights = self.route(rows)
        out = torch.zeros_like(rows)
        for expert in chosen.unique().tolist():
            row, place = (chosen == expert).nonzero(as_tuple=True)
            y = self.experts[expert](rows[row]) * weights[row, place, None]
            out = out.index_add(0, row, y.to(out.dtype))
        return out.view_as(x)


class Block(nn.Module):
    """Pre-normalised operator (convolution or attention) and feed-forward, each with a residual."""

    def __init__(self, config: BackboneConfig, layer: int) -> None:
        super().__init__()
        attends = config.layer_types[layer] == "full_attention"
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.conv = None if attends else ShortConv(config)
        self.self_attn = Attention(config) if attends else None
        self.feed_forward = (
            FeedForward(config.hidden_size, config.feed_forward)
            if config.is_dense(layer)
            else MixtureOfExperts(config)
        )


class Backbone(nn.Module):
    """The LFM2 stack. Its matrices are float parameters, or int8 or int4 when opened so
    (`packed`)."""

    def __init__(self, config: BackboneConfig, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.config = config
        self.bidirectional = bidirectional
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)  # published as embedding_norm
        # A tied head is the embedding itself; packed backbones have an int8 copy of it.
        self.head: nn.Module | None = None
        if not config.tied:
            self.head = Linear(config.hidden_size, config.vocab_size)
        self.packed = self.headless = False

    @classmethod
    def new(cls, config: BackboneConfig, *, seed: int = 0, bidirectional: bool = False) -> Backbone:
        """A backbone with random weights (normal, 0.02), ready to be trained."""
        backbone = cls(config, bidirectional=bidirectional)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.dim() > 1:
                    parameter.normal_(0.0, 0.02, generator=generator)
        return backbone

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        active_experts: int | None = None,
        bidirectional: bool = False,
        head: bool = True,
    ) -> Backbone:
        """Load a checkpoint folder for inference. Raises CheckpointDamaged, BadInput.

        head: False where hidden states are all that is wanted; packed ones then keep no copy.
        """
        from lfm2_mm.device import choose
        from lfm2_mm.loading import load_backbone

        choice = choose(device, dtype)
        return load_backbone(Path(folder), choice, active_experts, bidirectional, head)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of embeddings and hidden states."""
        return self.norm.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """ids (batch, new) int64 -> (batch, new, hidden)."""
        return F.embedding(ids, self.embedding).to(self.dtype)

    def start(self, batch: int = 1) -> State:
        """A state that has seen nothing, for `step`."""
        cache = cache_dtype() if self.packed else self.dtype
        return State.start(self.config, batch, cache, self.device)

    def forward(
        self, embeds: Tensor, mask: Tensor | None = None, *, convolve_padding: bool = False
    ) -> Tensor:
        """One pass without state, with gradients where they are on.

        embeds (batch, new, hidden); mask (batch, new) bool, False at padding, on either side or
        between. Returns hidden states (batch, new, hidden). `convolve_padding` lets padding flow
        through the convolutions, as LFM2.5-ColBERT's reference does for queries.
        """
        return self._run(embeds, None, mask, convolve_padding)[0]

    @torch.inference_mode()
    def step(
        self, embeds: Tensor, state: State | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Go on from `state` by any number of positions; returns hidden states and the next state.

        Shapes as in `forward`. Padded positions are not remembered, so rows of a batch may differ
        in length and each goes on as if it were alone. Causal backbones only. Nothing returned
        takes part in gradients: in training, use `forward`, or call `logits` without gradients.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional backbone has no state: use forward")
        state = state or self.start(embeds.shape[0])
        if len(state.lengths) != embeds.shape[0]:
            raise ValueError(f"{embeds.shape[0]} rows given, the state has {len(state.lengths)}")
        if embeds.shape[1] == 0:
            return embeds, state
        if embeds.shape[:2] == (1, 1) and mask is None and self.stack is not None:
            return self._step_compiled(embeds, state)
        hidden, next_state = self._run(embeds, state, mask, False)
        return hidden, cast(State, next_state)

    @functools.cached_property
    def stack(self) -> Stack | None:
        """All layers compiled for one row and one position, where there can be such a thing."""
        if not self.packed or self.bidirectional:
            return None
        from lfm2_mm.fused import stack_for

        blocks = cast("list[Block]", list(self.layers))
        return stack_for(blocks, self.config, cache_dtype(), self.norm.weight)

    def _step_compiled(self, embeds: Tensor, state: State) -> tuple[Tensor, State]:
        stack = cast("Stack", self.stack)
        with stack.lock:
            store = state.room_for(1)
            stack.bind(store.keys, store.values, store.inputs)
            hidden = stack.run(embeds.reshape(-1), state.length)
            store.lengths = (state.length + 1,)
        return hidden.view(1, 1, -1), State(store, store.lengths)

    @functools.cached_property
    def many_rows(self) -> ManyRows | None:
        """The layers in fewer passes over memory, where there can be that."""
        if not self.packed:
            return None
        from lfm2_mm.many_rows import many_rows_for

        return many_rows_for(self)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, hidden_size) -> (…, vocab_size)."""
        if self.headless:
            raise ValueError("this backbone was opened without a head")
        return F.linear(hidden, self.embedding) if self.head is None else self.head(hidden)

    def _run(
        self, embeds: Tensor, state: State | None, mask: Tensor | None, convolve_padding: bool
    ) -> tuple[Tensor, State | None]:
        if mask is not None and bool(mask.all()):
            mask = None
        order = None if mask is None else packing_order(mask)
        x = embeds
        if order is not None:
            mask = cast(Tensor, mask).gather(1, order)
            x = x.gather(1, order[..., None].expand_as(x))
        new = x.shape[1]
        past = state.lengths if state else (0,) * x.shape[0]
        view = View(past, new, mask, causal=not self.bidirectional)
        store = state.room_for(new) if state else None
        hidden = self._layers(x, view, store, convolve_padding)
        if order is not None:
            hidden = torch.empty_like(hidden).scatter(1, order[..., None].expand_as(hidden), hidden)
        if state is None or store is None:
            return hidden, None
        counts = [new] * len(past) if mask is None else mask.sum(1).tolist()
        store.lengths = tuple(p + c for p, c in zip(past, counts, strict=True))
        return hidden, State(store, store.lengths)

    def _layers(self, x: Tensor, view: View, store: Store | None, keep: bool) -> Tensor:
        sees = view.attention_mask(x.device)
        rotary = Rotary(
            view.positions(x.device), self.config.head_dim, self.config.rope_theta, x.dtype
        )
        return self.through(
            x, store_layers(store, self.config.layer_types), view, rotary, sees, keep
        )

    def through(
        self,
        x: Tensor,
        caches: Iterable[KV | Tensor | None],
        view: View,
        rotary: Rotary,
        sees: Tensor | None,
        keep: bool = False,
    ) -> Tensor:
        """x (batch, new, hidden) through all layers over these caches, with the last norm.

        A layer that attends takes a KV, a convolution its inputs (batch, kernel - 1 + positions,
        hidden), or either None. `keep` is `convolve_padding` of `forward`.
        """
        if self.many_rows is not None:
            return self.many_rows.run(x, caches, view, rotary, sees, keep)
        for block, cache in zip(cast("list[Block]", self.layers), caches, strict=True):
            normed = block.operator_norm(x)
            if block.self_attn is not None:
                x = x + block.self_attn(normed, view, rotary, sees, cast("KV | None", cache))
            else:
                conv = cast(ShortConv, block.conv)
                x = x + conv(normed, view, cast("Tensor | None", cache), keep)
            x = x + block.feed_forward(block.ffn_norm(x))
        return self.norm(x)

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights of a float backbone under the published names, without prefix, for saving."""
        from lfm2_mm.loading import published_tensors

        return published_tensors(self)

    def parameter_count(self) -> int:
        """Parameters, the router's balancing bias not counted (it is a buffer when published)."""
        return sum(p.numel() for n, p in self.named_parameters() if not n.endswith("expert_bias"))


def store_layers(store: Store | None, layer_types: tuple[str, ...]) -> Iterator[KV | Tensor | None]:
    """What the store keeps for each layer in turn."""
    if store is None:
        yield from [None] * len(layer_types)
        return
    pairs = zip(store.keys, store.values, strict=True)
    inputs = iter(store.inputs)
    for kind in layer_types:
        yield KV(*next(pairs)) if kind == "full_attention" else next(inputs)


def packing_order(mask: Tensor) -> Tensor | None:
    """(batch, new) int64 that brings real positions first, in order; None if they are already."""
    if bool((mask.int().diff(dim=1) <= 0).all()):
        return None
    return (~mask).int().argsort(dim=1, stable=True)


def cache_dtype() -> torch.dtype:
    """What packed backbones keep their state in: bf16 where the processor multiplies it."""
    from lfm2_mm.device import processor_features

    fast = processor_features() & {"avx512_bf16", "amx_bf16", "bf16"}
    return torch.bfloat16 if fast else torch.float32
