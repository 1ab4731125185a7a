"""LFM2.5's detokenizer: codes -> spectrum by a small LFM2 -> waveform. Knows the published names.

Every layer looks back a little: a convolution two steps, an attention layer 29. Keeping just that
makes frame by frame exact, at six new steps a frame, without recomputing any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from audio.codec import checked, wave_of
from audio.recent import Recent, within
from lfm2_mm.backbone import Backbone, Rotary, View
from lfm2_mm.config import BackboneConfig
from lfm2_mm.device import Choice
from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.loading import build, check
from lfm2_mm.weights import read_json, read_tensors

STEPS = 6  # of the network in each frame
RATE = 24_000  # Hz
OVERLAP = 4  # spectra that share a sample
AT_ONCE = 32  # frames computed together: memory does not grow with the length
Layers = tuple[tuple[Tensor, ...], ...]  # of each layer: inputs (1, 2, hidden), or keys and values
WORDS = "lfm.embed_tokens.weight"  # stored, and never used


@dataclass(frozen=True)
class DetokenizerConfig:
    """Sizes, from audio_detokenizer/config.json; codebooks are ours, with published defaults."""

    backbone: BackboneConfig
    window: int = 30  # steps that attention sees, its own one among them
    codebooks: int = 8
    codebook_size: int = 2048
    bins: int = 641

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> DetokenizerConfig:
        """Raises CheckpointDamaged for missing keys and impossible sizes."""
        kinds = raw.get("layer_types")
        if kinds:
            kinds = [str(k).replace("sliding_attention", "full_attention") for k in kinds]
        backbone = BackboneConfig.from_json(raw | {"layer_types": kinds, "vocab_size": 1})
        config = cls(
            backbone,
            raw.get("sliding_window", 30),
            raw.get("codebooks", 8),
            raw.get("codebook_size", 2048),
            raw.get("output_size", 1282) // 2,
        )
        sizes = (config.window, config.codebooks, config.codebook_size, config.bins - 1)
        if not all(isinstance(size, int) and size > 0 for size in sizes) or config.size % OVERLAP:
            raise CheckpointDamaged(f"config.json of {raw.get('architectures')}: {config}")
        return config

    @property
    def size(self) -> int:
        """Samples of one spectrum."""
        return 2 * (self.bins - 1)

    @property
    def hop(self) -> int:
        return self.size // OVERLAP


@dataclass(frozen=True, eq=False)
class Remembered:
    """What the next frame needs: layer by layer, and the sound that later spectra still add to."""

    layers: Layers
    sound: Tensor  # (OVERLAP - 1, hop)
    weight: Tensor  # (OVERLAP - 1, hop): squared windows that went into `sound`
    steps: int = 0


class Detokenizer:
    """Weights of a detokenizer, behind the Codec protocol."""

    rate = RATE

    def __init__(
        self, config: DetokenizerConfig, backbone: Backbone, tensors: dict[str, Tensor]
    ) -> None:
        """`tensors`: emb.emb.weight, lin.weight, lin.bias, istft.window as published."""
        self.config, self.backbone = config, backbone
        self.codebooks, self.codebook_size = config.codebooks, config.codebook_size
        self.samples_per_frame = STEPS * config.hop
        self.embedding = tensors["emb.emb.weight"]
        self.linear = tensors["lin.weight"], tensors["lin.bias"]
        self.window = tensors["istft.window"]
        self.square = self.window.square().view(OVERLAP, config.hop)

    def start(self) -> Remembered:
        config = self.config.backbone
        device, dtype = self.backbone.device, self.backbone.dtype
        inputs = torch.zeros(1, config.kernel - 1, config.hidden_size, device=device, dtype=dtype)
        empty = torch.zeros(1, config.kv_heads, 0, config.head_dim, device=device, dtype=dtype)
        layers = tuple((inputs,) if k == "conv" else (empty, empty) for k in config.layer_types)
        silence = torch.zeros(OVERLAP - 1, self.config.hop, device=device)
        return Remembered(layers, silence, silence)

    @torch.inference_mode()
    def decode(self, codes: Tensor, state: Remembered) -> tuple[Tensor, Remembered]:
        """codes (codebooks, n) -> 1,920 n samples, but 480 fewer at the stream's beginning.

        Those 480 come later: three further spectra reach into them. Raises BadInput.
        """
        codes = checked(codes, self.codebooks, self.codebook_size).to(self.backbone.device)
        parts = [torch.zeros(0)]
        for piece in codes.split(AT_ONCE, 1):
            if piece.shape[1]:
                samples, state = self._advance(piece, state)
                parts.append(samples)
        return torch.cat(parts), state

    @torch.inference_mode()
    def finish(self, state: Remembered) -> Tensor:
        """The last 480 samples, made of the spectra that there are."""
        if state.steps == 0:
            return torch.zeros(0)
        rest = self._divided(state.sound, state.weight)
        return rest[: len(rest) - self._beside].cpu()

    def wave(self, codes: Tensor) -> Tensor:
        """codes (codebooks, n) -> (1,920 n,) float32 samples; memory grows with those alone."""
        return wave_of(self, codes)

    @property
    def _beside(self) -> int:
        """Samples of the first and last spectrum that lie outside of the sound ("same")."""
        return (self.config.size - self.config.hop) // 2

    def _advance(self, codes: Tensor, state: Remembered) -> tuple[Tensor, Remembered]:
        hidden, layers = self._network(self._embedded(codes), state)
        log, phase = F.linear(hidden[0].float(), *self.linear).chunk(2, -1)
        spectra = torch.polar(log.exp(), phase)
        waves = torch.fft.irfft(spectra, self.config.size) * self.window
        sound, rest = overlapped(waves.view(-1, OVERLAP, self.config.hop), state.sound)
        squares = self.square.expand(len(waves), -1, -1)
        weight, rest_weight = overlapped(squares, state.weight)
        late = max(0, self._beside - state.steps * self.config.hop)
        samples = self._divided(sound, weight)[late:]
        steps = state.steps + len(waves)
        return samples.cpu(), Remembered(layers, rest, rest_weight, steps)

    def _embedded(self, codes: Tensor) -> Tensor:
        """(codebooks, n) -> (1, 6 n, hidden): the mean over the codebooks, each six times."""
        rows = (
            codes + self.codebook_size * torch.arange(self.codebooks, device=codes.device)[:, None]
        )
        mean = F.embedding(rows, self.embedding).float().mean(0)
        return mean.repeat_interleave(STEPS, 0)[None].to(self.backbone.dtype)

    def _network(self, x: Tensor, state: Remembered) -> tuple[Tensor, Layers]:
        """The LFM2 layers, with each layer's own memory. Returns hidden states and memories."""
        new, config = x.shape[1], self.config.backbone
        past = min(state.steps, self.config.window - 1)
        positions = torch.arange(state.steps, state.steps + new, device=x.device)[None]
        rotary = Rotary(positions, config.head_dim, config.rope_theta, x.dtype)
        view = View((past,), new, None, True)
        sees = within(past, new, self.config.window, x.device)
        caches = [
            Recent(*memory) if len(memory) == 2 else behind(past, memory[0], new)
            for memory in state.layers
        ]
        hidden = self.backbone.through(x, caches, view, rotary, sees)
        return hidden, tuple(self._kept(cache) for cache in caches)

    def _kept(self, cache: Recent | Tensor) -> tuple[Tensor, ...]:
        """What a layer remembers of its cache."""
        if isinstance(cache, Recent):
            return cache.last(self.config.window - 1)
        return (cache[:, cache.shape[1] - (self.config.backbone.kernel - 1) :].clone(),)

    def _divided(self, sound: Tensor, weight: Tensor) -> Tensor:
        return (sound / weight.clamp_min(1e-11)).flatten()


def behind(past: int, before: Tensor, new: int) -> Tensor:
    """Inputs of a convolution (1, past + kernel - 1 + new, hidden): the last ones before position
    `past`, and room for the new."""
    lead = before.shape[1]
    inputs = before.new_zeros(1, past + lead + new, before.shape[2])
    inputs[:, past : past + lead] = before
    return inputs


def overlapped(waves: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """waves (n, OVERLAP, hop), each a hop after the last, added to what is there already.

    Returns the n hops that are complete and the OVERLAP - 1 that are not, (…, hop) each.
    """
    total = F.pad(before, (0, 0, 0, len(waves)))
    for part in range(OVERLAP):
        total[part : part + len(waves)] += waves[:, part]
    return total[: len(waves)], total[len(waves) :].clone()


def open_detokenizer(folder: Path, choice: Choice) -> Detokenizer:
    """Load audio_detokenizer/ for inference; what follows the network stays float32.

    Raises CheckpointDamaged.
    """
    config = DetokenizerConfig.from_json(read_json(folder / "config.json"))
    own: dict[str, Tensor] = {}
    backbone = build(config.backbone, _network_tensors(folder, config, own), choice.for_many_rows(),
                     head=False)  # fmt: skip
    width, hidden = 2 * config.bins, config.backbone.hidden_size
    shapes = {
        "emb.emb.weight": (config.codebooks * config.codebook_size, hidden),
        "lin.weight": (width, hidden),
        "lin.bias": (width,),
        "istft.window": (config.size,),
    }
    for key, shape in shapes.items():
        if key not in own:
            raise CheckpointDamaged(f"{folder} lacks {key}; fetch or save the checkpoint again")
        check(key, own[key], torch.Size(shape))
    if own.keys() != shapes.keys():
        check(min(own.keys() - shapes.keys()), own[min(own.keys() - shapes.keys())], None)
    # The table stays as stored: only looked up.
    tensors = {k: t if k == "emb.emb.weight" else t.float() for k, t in own.items()}
    return Detokenizer(config, backbone, {k: t.to(backbone.device) for k, t in tensors.items()})


def _network_tensors(
    folder: Path, config: DetokenizerConfig, own: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The LFM2's tensors; the others go into `own`. The words' table is stored but never used: one
    row stands for it, so that it takes no memory."""
    yield "embed_tokens.weight", torch.zeros(1, config.backbone.hidden_size)
    for key, tensor in read_tensors(folder):
        if not key.startswith("lfm."):
            own[key] = tensor
        elif key != WORDS:
            yield key.removeprefix("lfm."), tensor
