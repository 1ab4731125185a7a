"""Codes -> wave: trains nano-audio's detokenizer, in the format of LFM2.5's audio_detokenizer.

The target is `sound(units.frames(codes))`, 480 samples late: then all that a spectrum's window
reaches is fixed by codes already seen, and the causal network has nothing to guess.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano_audio_language import draw_reply, salad
from nano_audio_units import BOOKS, CODES, PAUSES, Units
from nano_audio_voice import FRAME, HOP, PARTS, SIZE, joined, silence, sound
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Lfm2Config, Lfm2Model

from audio.codec import DETOKENIZER
from lfm2_mm.train import Plan, Training

HIDDEN, FEED_FORWARD, WINDOW, KINDS = 192, 384, 30, "ccacca"
DELAY = (SIZE - HOP) // 2  # samples
BINS = SIZE // 2 + 1
LOUDNESS = 0.7  # a checkpoint's, of the voice it learned, whose loudest pulses reach beyond 1
CROP, LEAD, BATCH = 16, 3, 12  # frames; the first LEAD of a crop lack their past and are not judged
PLAN = Plan(rate=2e-3, table_rate=2e-3, average=0.998)


def settings() -> dict[str, Any]:
    """config.json of audio_detokenizer/, as LFM2.5's."""
    kinds = {"c": "conv", "a": "sliding_attention"}
    return {
        "architectures": ["Lfm25AudioTokenizer"], "model_type": "lfm2", "hidden_size": HIDDEN,
        "num_hidden_layers": len(KINDS), "layer_types": [kinds[k] for k in KINDS],
        "num_attention_heads": HIDDEN // 32, "num_key_value_heads": HIDDEN // 96,
        "intermediate_size": FEED_FORWARD, "block_ff_dim": FEED_FORWARD,
        "block_auto_adjust_ff_dim": False,
        "sliding_window": WINDOW, "rope_theta": 1000000.0, "norm_eps": 1e-5, "conv_L_cache": 3,
        "conv_bias": False, "vocab_size": 1, "output_size": 2 * BINS, "tie_embedding": True,
        "codebooks": BOOKS, "codebook_size": CODES, "max_position_embeddings": 128000,
    }  # fmt: skip


class Detokenizer(nn.Module):
    """The published network (formats: embedding mean, LFM2, spectrum), for training."""

    def __init__(self) -> None:
        super().__init__()
        given = settings()
        kinds = [kind.replace("sliding", "full") for kind in given["layer_types"]]
        config = Lfm2Config(**given | {"layer_types": kinds})
        config._attn_implementation = "sdpa"
        self.emb = nn.Embedding(BOOKS * CODES, HIDDEN)
        self.lfm = Lfm2Model(config)
        nn.init.zeros_(self.lfm.embed_tokens.weight.requires_grad_(False))  # published, never used
        self.lin = nn.Linear(HIDDEN, 2 * BINS)
        nn.init.normal_(self.emb.weight, std=1.0)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """codes (b, frames, books) -> log magnitude and phase (b, 6 * frames, 641)."""
        rows = codes + CODES * torch.arange(BOOKS)
        x = self.emb(rows).mean(2).repeat_interleave(PARTS, 1)
        place = torch.arange(x.shape[1])
        back = place[:, None] - place
        sees = ((back >= 0) & (back < WINDOW))[None, None].expand(len(x), -1, -1, -1)
        hidden = self.lfm(inputs_embeds=x, attention_mask=sees, use_cache=False).last_hidden_state
        return self.lin(hidden).float().split(BINS, -1)

    def published(self) -> dict[str, Tensor]:
        """Tensors by their published names."""
        lfm = {f"lfm.{k}": v for k, v in self.lfm.state_dict().items()}
        return {
            "emb.emb.weight": self.emb.weight.detach(), **lfm,
            "lin.weight": self.lin.weight.detach(), "lin.bias": self.lin.bias.detach(),
            "istft.window": torch.hann_window(SIZE),
        }  # fmt: skip

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """The other way."""
        renamed = {k.replace("emb.emb.", "emb."): t.float() for k, t in tensors.items()}
        del renamed["istft.window"]
        self.load_state_dict(renamed)


def wave(log: Tensor, phase: Tensor) -> Tensor:
    """(b, n, 641) twice -> (b, n * 320): inverse STFT, "same" padding."""
    spectrum = torch.polar(log.exp(), phase)
    window = torch.hann_window(SIZE)
    parts = torch.fft.irfft(spectrum, SIZE) * window
    length = (parts.shape[1] - 1) * HOP + SIZE

    def overlap(columns: Tensor) -> Tensor:
        return nn.functional.fold(
            columns.transpose(1, 2), (1, length), (1, SIZE), stride=(1, HOP)
        ).flatten(1)[:, DELAY:-DELAY]

    square = (window**2).expand(1, parts.shape[1], -1)
    return overlap(parts) / overlap(square)


def spectra(samples: Tensor) -> Tensor:
    """(b, n * 320 + 960) -> (b, n, 641) complex: what `wave` would turn back into samples."""
    return torch.fft.rfft(samples.unfold(-1, SIZE, HOP) * torch.hann_window(SIZE), dim=-1)


class Grains:
    """The wave of every frame that any word has, to be laid side by side: `sound`, but faster."""

    def __init__(self, units: Units) -> None:
        rows = np.unique(np.concatenate(list(units.codes.values())), axis=0)
        self.places = {tuple(row): n for n, row in enumerate(rows.tolist())}
        frames = units.frames(rows)
        gap = silence(1)
        self.waves = np.stack(
            [sound(joined([gap, frames[n : n + 1], gap])) for n in range(len(rows))]
        )

    def sound(self, codes: np.ndarray) -> np.ndarray:
        """codes (n, 4) -> (n + 2) * 1920 samples: a frame before and one after, for what rings."""
        out = np.zeros((len(codes) + 2) * FRAME, np.float32)
        for n, row in enumerate(codes.tolist()):
            out[n * FRAME : (n + 3) * FRAME] += self.waves[self.places[tuple(row)]]
        return out


def draw_batch(units: Units, grains: Grains, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """codes (12, 16, 4) and the wave they stand for, late by 480 samples, (12, 16 * 1920 + 960):
    480 samples before and after the crop are there, too."""
    draw = random.Random(f"{seed}/{step}")
    words = [w for w in units.codes if w not in PAUSES]
    codes, waves = [], []
    for _ in range(BATCH):
        text = salad(draw, words) if draw.random() < 0.6 else draw_reply(draw)
        said = units.say(text)
        while len(said) < CROP + 2:
            said = np.concatenate([said, units.say(salad(draw, words))])
        begin = draw.randrange(len(said) - CROP)
        lead = max(0, begin - 1)  # one frame before, for the sound that reaches over
        made = grains.sound(said[lead : begin + CROP])
        first = (1 + begin - lead) * FRAME - 2 * DELAY
        codes.append(said[begin : begin + CROP])
        waves.append(made[first : first + CROP * FRAME + 2 * DELAY])
    return torch.from_numpy(np.stack(codes)), torch.from_numpy(np.stack(waves))


def loss_of(log: Tensor, phase: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Magnitude and compressed complex spectrum, over what comes after the lead."""
    log, phase, target = (x[:, LEAD * PARTS :] for x in (log, phase, target))
    size = target.abs()
    magnitude = (log - (size + 0.01).log()).abs().mean()
    small = torch.polar((0.3 * log).exp(), phase)
    wanted = torch.polar((size + 1e-7) ** 0.3, target.angle())
    complex_ = (small - wanted).abs().mean()
    return {"magnitude": magnitude, "complex": complex_}


@torch.no_grad()
def phase_match(log: Tensor, phase: Tensor, target: Tensor) -> float:
    """Cosine of the phase error, weighted by magnitude: 1 is perfect, 0 is chance."""
    size = target.abs()
    return float((torch.cos(phase - target.angle()) * size).sum() / size.sum())


def finished(folder: Path) -> Detokenizer:
    """That of a checkpoint, as it was trained."""
    model = Detokenizer()
    model.load_published(load_file(folder / DETOKENIZER / "model.safetensors"))
    with torch.no_grad():
        model.lin.bias[:BINS] -= math.log(LOUDNESS)
    return model


def train(
    units: Units, folder: Path, steps: int, seed: int, older: Path | None = None
) -> Detokenizer:
    """Train, or go on, to `steps`; the state is kept in `folder` every 200. It begins with the
    detokenizer of the checkpoint `older`."""
    torch.manual_seed(seed)
    model, grains = finished(older) if older else Detokenizer(), Grains(units)
    training = Training(model, PLAN)
    state = folder / "detokenizer.safetensors"
    if state.exists():
        training.load(state)
    start, first = time.process_time(), training.step
    while training.step < steps:
        codes, samples = draw_batch(units, grains, seed, training.step)
        with torch.autocast("cpu", torch.bfloat16):
            log, phase = model(codes)
        target = spectra(samples)
        losses = loss_of(log, phase, target)
        training.update(losses["magnitude"] + 2 * losses["complex"], training.step / steps)
        if training.step % 20 == 0:
            told = " ".join(f"{k} {v.item():.3f}" for k, v in losses.items())
            rate = (time.process_time() - start) / (training.step - first)
            match = phase_match(log, phase, target)
            print(f"{training.step} {told} phase {match:.3f} {rate:.2f} s/step", flush=True)
        if training.step % 200 == 0:
            training.save(state)
    training.save(state)
    training.use_averages()
    return model


def save(model: Detokenizer, folder: Path) -> None:
    """audio_detokenizer/ in the published layout, bf16."""
    from lfm2_mm.weights import write

    tensors: Mapping[str, Tensor] = {
        name: t.float() if name == "istft.window" else t.bfloat16()
        for name, t in model.published().items()
    }
    write(folder, dict(tensors), settings())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begin", type=Path, help="a checkpoint's folder to go on from")
    args = parser.parse_args()
    units = Units.load(args.run / "units.npz")
    model = train(units, args.run, args.steps, args.seed, args.begin)
    save(model, args.run / "audio_detokenizer")


if __name__ == "__main__":
    main()
