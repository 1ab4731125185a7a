"""Speech at the shape of LFM2-Audio-1.5B beside transformers' modules wired the same way.

    python -m benchmarks.speech                      # all, one after the other: some 10 minutes
    python -m benchmarks.speech --only int4,theirs-bf16 --contexts 128

Random weights, nothing is downloaded. `theirs`: Lfm2ForCausalLM with its cache, an Lfm2Model as
depth transformer (eight steps over a fresh cache), ParakeetEncoder with an adapter, and MimiModel
frame by frame with its cache, which is not exact. Rows are those of `lfm2-mm bench speech`.
"""

from __future__ import annotations

import argparse
import gc
from typing import Any

import torch
from torch import Tensor, nn

from apps.bench_speech import TOP_K, Ours, Parts, Row, rows_of
from audio.config import AudioConfig
from audio.mel import log_mel
from audio.shapes import find_shape as find_speech
from audio.shapes import random_codec, random_speech
from benchmarks.backbone_engines import load_random
from benchmarks.speech_parts import parakeet
from lfm2_mm.device import choose, set_threads
from lfm2_mm.sampling import pick
from lfm2_mm.types import Sampling

SHAPE = "LFM2-Audio-1.5B"
ENGINES = ("int8", "int4", "bf16", "int8-detokenizer", "int4-detokenizer", "theirs-bf16",
           "theirs-int8")  # fmt: skip
HEADS = ("what", "size", "ms", "best_ms", "limit_ms", "real_time_factor")


class Theirs:
    """transformers' modules in bf16, or under torch's dynamic int8 with float32 activations."""

    def __init__(self, config: AudioConfig, weights: str) -> None:
        from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2Model, MimiConfig, MimiModel

        self.name, self.config = f"transformers {weights}", config
        self.dtype = torch.bfloat16 if weights == "bf16" else torch.float32
        made = Lfm2ForCausalLM._from_config(
            Lfm2Config(**config.backbone.to_json()), dtype=torch.bfloat16
        )
        load_random(made, config.backbone)
        self.backbone = self._taken(made)
        depth = Lfm2Config(**config.depth.blocks().to_json() | {"vocab_size": 8})
        self.depth = self._taken(Lfm2Model(depth))
        hidden, width, codes = config.backbone.hidden_size, config.depth.width, config.codebook_size
        self.project = self._taken(nn.Linear(hidden, config.codebooks * width))
        self.heads = self._taken(
            nn.ModuleList(nn.Linear(width, codes + 1) for _ in range(config.codebooks))
        )
        self.ears = self._taken(parakeet(config.encoder))
        self.adapter = self._taken(nn.Sequential(
            nn.LayerNorm(config.encoder.width), nn.Linear(config.encoder.width, hidden), nn.GELU(),
            nn.Linear(hidden, hidden),
        ))  # fmt: skip
        self.table = torch.randn(config.codebooks, codes + 1, hidden, dtype=self.dtype)
        self.codes = torch.randn(config.codebooks, codes + 1, width, dtype=self.dtype)
        self.voice = MimiModel(MimiConfig()).eval()
        self.limits = dict.fromkeys(("backbone", "text head", "depth", "codec", "ears"), 0)
        self.cache: Any = None
        self.voice_cache: Any = None

    def _taken(self, module: nn.Module) -> Any:
        module = module.eval().requires_grad_(False)
        if self.dtype == torch.bfloat16:
            return module.bfloat16()
        torch.backends.quantized.engine = "onednn"
        return torch.ao.quantization.quantize_dynamic(
            module.float(), {nn.Linear}, dtype=torch.qint8, inplace=True
        )

    def mel(self, sound: Tensor) -> Tensor:
        return log_mel(sound, self.config.mel)

    def hear(self, mel: Tensor) -> Tensor:
        heard = self.ears(mel[None].to(self.dtype)).last_hidden_state
        return self.adapter(heard)  # type: ignore[no-any-return]

    def start(self, positions: int) -> None:
        self.cache = self.voice_cache = None
        if positions:
            self.step(self.read(torch.arange(positions) % 1000 + 50))

    def read(self, ids: Tensor) -> Tensor:
        return self.backbone.get_input_embeddings()(ids[None])  # type: ignore[no-any-return]

    def step(self, embeds: Tensor) -> Tensor:
        out = self.backbone.model(inputs_embeds=embeds, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.last_hidden_state[0, -1]  # type: ignore[no-any-return]

    def text(self, hidden: Tensor) -> int:
        return int(self.backbone.lm_head(hidden).argmax())

    def frame(self, hidden: Tensor) -> Tensor:
        slices = self.project(hidden[None]).view(self.config.codebooks, -1)
        sampling = Sampling(temperature=1.0, top_k=TOP_K)
        cache, codes, x = None, [], slices[0]
        for book, head in enumerate(self.heads):
            out = self.depth(inputs_embeds=x[None, None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = head(out.last_hidden_state[0])[0, : self.config.codebook_size]
            codes.append(pick(logits.float(), sampling, [], None))
            if book + 1 < len(self.heads):
                x = slices[book + 1] + self.codes[book, codes[-1]]
        return torch.tensor(codes)

    def embed(self, codes: Tensor) -> Tensor:
        return self.table[torch.arange(len(codes)), codes].sum(0)[None, None]

    def sound(self, codes: Tensor) -> Tensor:
        out = self.voice.decode(
            codes[None, :, None], decoder_past_key_values=self.voice_cache, return_dict=True
        )
        self.voice_cache = out.decoder_past_key_values
        return out.audio_values[0, 0]  # type: ignore[no-any-return]


def opened(engine: str) -> Parts:
    config, voice = find_speech(SHAPE)
    whose, _, rest = engine.partition("-")
    if whose == "theirs":
        set_threads(choose("cpu").threads)
        return Theirs(config, rest)
    choice = choose("cpu", whose)
    model, kind = random_speech(config, choice), rest or voice
    return Ours(f"ours {whose}, {kind}", model, random_codec(kind, choice))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--contexts", default="128,1024,4096")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    config, _ = find_speech(SHAPE)
    contexts = tuple(int(size) for size in args.contexts.split(","))
    print(f"{SHAPE}, random weights; {choose('cpu').threads} threads; ms")
    for engine in args.only.split(","):
        parts = opened(engine)
        print(f"\n{parts.name}\n" + "".join(f"{head:>32}"[-32 if not n else -18:]
                                             for n, head in enumerate(HEADS)))  # fmt: skip
        for row in rows_of(parts, config, contexts, args.rounds):
            print(line(row), flush=True)
        del parts
        gc.collect()


def line(row: Row) -> str:
    cells = [f"{row['what']:32}", f"{row['size']:18}"]
    figures = [f"{row[h]:18.2f}" if row.get(h) else f"{'-':>18}" for h in HEADS[2:]]
    return "".join([*cells, *figures])


if __name__ == "__main__":
    main()
