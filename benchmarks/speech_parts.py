"""Ears and voices at the published shapes, random weights, beside transformers' modules.

    python -m benchmarks.speech_parts

Prints one table: milliseconds, median (and least) of some runs in turn. Ears hear 4 s of sound;
voices make one frame (80 ms) at a time, but for transformers' Mimi, which is right only for whole
clips: there it is the 4 s divided by their frames.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from audio.codec import Codec
from audio.config import AudioConfig, EncoderConfig
from audio.encoder import AudioEncoder, load_encoder, published_encoder
from audio.mel import log_mel
from audio.mimi import MimiConfig
from audio.mimi_compiled import CompiledMimi, compilable
from audio.shapes import random_codec, random_mimi
from lfm2_mm.device import choose
from lfm2_mm.shapes import find_shape

SECONDS = 4
FRAMES = SECONDS * 25 // 2


def ears() -> dict[str, Callable[[], object]]:
    config = AudioConfig(backbone=find_shape("LFM2-1.2B"), encoder=EncoderConfig())
    torch.manual_seed(0)
    tensors = published_encoder(AudioEncoder(config))
    sound = 0.1 * torch.randn(16_000 * SECONDS)
    mel = log_mel(sound, config.mel)
    runs: dict[str, Callable[[], object]] = {"log-mel": lambda: log_mel(sound, config.mel)}
    for dtype in ("fp32", "bf16", "int8"):
        encoder = load_encoder(config, tensors.items(), choose("cpu", dtype))
        runs[f"conformer and adapter, {dtype}"] = lambda encoder=encoder: encoder.hear(mel)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        theirs = parakeet(config.encoder).to(dtype)
        given = mel[None].to(dtype)
        runs[f"transformers' conformer alone, {name}"] = lambda m=theirs, x=given: m(x)
    return runs


def parakeet(config: EncoderConfig) -> nn.Module:
    from transformers import ParakeetEncoder, ParakeetEncoderConfig

    made = ParakeetEncoderConfig(
        hidden_size=config.width, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=config.feed_forward,
        num_mel_bins=config.features, subsampling_conv_channels=config.channels,
        scale_input=False,
    )  # fmt: skip
    made._attn_implementation = "sdpa"
    return ParakeetEncoder(made).eval()


def voices() -> dict[str, Callable[[], object]]:
    from transformers import MimiConfig as TheirConfig
    from transformers import MimiModel

    codes = torch.randint(0, 2048, (8, FRAMES), generator=torch.Generator().manual_seed(0))
    theirs = MimiModel(TheirConfig()).eval()
    return {
        "Mimi by torch, a frame": Stream(random_mimi(MimiConfig()), codes),
        **{f"Mimi compiled, weights in {n}, a frame": Stream(c, codes) for n, c in compiled()},
        "detokenizer in the dtype chosen, a frame": Stream(
            random_codec("detokenizer", choose("cpu")), codes
        ),
        "transformers' Mimi, whole, a frame": lambda: theirs.decode(codes[None]),
    }


class Stream:
    """One further frame of an endless stream at each call, past the length of every window."""

    def __init__(self, codec: Codec, codes: Tensor) -> None:
        self.codec, self.codes, self.place = codec, codes, 0
        self.state = codec.start()
        for _ in range(3):
            _, self.state = codec.decode(codes, self.state)

    def __call__(self) -> None:
        self.place = (self.place + 1) % self.codes.shape[1]
        _, self.state = self.codec.decode(self.codes[:, self.place, None], self.state)


def compiled() -> Iterator[tuple[str, Codec]]:
    if compilable(MimiConfig()):
        for name, half in (("fp32", False), ("bf16", True)):
            yield name, _compiled(half)


def _detokenizer() -> Codec:
    return random_codec("detokenizer", choose("cpu"))


def _compiled(half: bool) -> CompiledMimi:
    weights = random_mimi(MimiConfig()).state_dict()
    return CompiledMimi(MimiConfig(), dict(weights), half=half)


@torch.inference_mode()
def measure(runs: dict[str, Callable[[], object]], rounds: int) -> None:
    """Each in turn, several rounds, so that a busy moment hurts all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first is for caches
                times[name].append(1000 * (time.perf_counter() - start))
    for name, took in times.items():
        parts = FRAMES if "whole" in name else 1
        median, least = statistics.median(took) / parts, min(took) / parts
        print(f"{name:40} {median:8.1f} ({least:.1f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"{choose('cpu').reason}\n{'ms':>51}")
    measure(ears(), args.rounds)
    measure(voices(), args.rounds)


if __name__ == "__main__":
    main()
