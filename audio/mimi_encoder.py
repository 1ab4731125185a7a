"""Sound -> Mimi's codes, by transformers' MimiModel. Knows how the published names map to its own.

Encoding is for preparing data; nothing live needs it, so it takes whole clips and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio.mimi import MimiConfig
from audio.mimi_files import SPELLINGS, halved
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.weights import read_file

STORED = 32  # codebooks in the published file
RENAMED = (
    (r"\.model\.(\d+)\.", r".layers.\1."),
    (r"\.conv\.conv\.conv\.|\.convtr\.convtr\.convtr\.", ".conv."),
    (r"\.conv\.conv\.|\.convtr\.convtr\.", ".conv."),
    (r"_transformer\.transformer\.layers", "_transformer.layers"),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.out_proj\.", ".o_proj."),
    (r"quantizer\.rvq_first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"quantizer\.rvq_rest\.", "quantizer.acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.", ".layers."),
    (r"\._codebook\._", ".codebook."),
    (r"\._codebook\.", ".codebook."),
    (r"\.embedding_sum", ".embed_sum"),
)
NEWER = (  # transformers 5.2x: prefixes of the same tree, taken where the model has them
    (r"^(en|de)coder\.", r"\1coder.\1coder_seanet."),
    (r"^(en|de)coder_transformer\.", r"\1coder.\1coder_transformer."),
    (r"^downsample\.", "encoder.downsample."),
    (r"^upsample\.", "decoder.upsample."),
)


class MimiEncoder:
    """transformers' whole Mimi, loaded from the published file."""

    def __init__(self, path: Path, config: MimiConfig | None = None, stored: int = STORED) -> None:
        """`stored`: codebooks in the file. Raises CheckpointDamaged."""
        self.config = config or MimiConfig()
        self.model = _model(self.config, stored)
        wanted = {key: t.shape for key, t in self.model.state_dict().items()}
        found = dict(_renamed(path, self.config, set(wanted)))
        odd = wanted.keys() ^ found.keys()
        odd |= {key for key in found.keys() - odd if found[key].shape != wanted[key]}
        if odd:
            raise CheckpointDamaged(
                f"{path} is not the published Mimi: {', '.join(sorted(odd)[:3])} too much, too "
                "little, or of another shape; fetch the checkpoint again"
            )
        self.model.load_state_dict(found)

    @torch.inference_mode()
    def encode(self, samples: np.ndarray) -> Tensor:
        """(n,) float32 at 24 kHz -> codes (codebooks, ⌈n / 1920⌉) int64. Raises BadInput."""
        if not len(samples):
            raise BadInput("there is no sound to encode: no samples were given")
        wave = torch.from_numpy(samples)[None, None]
        return self.model.encode(wave, num_quantizers=self.config.codebooks).audio_codes[0]


def _model(config: MimiConfig, stored: int) -> Any:
    from transformers import MimiConfig as TheirConfig
    from transformers import MimiModel

    return MimiModel(
        TheirConfig(
            sampling_rate=config.rate,
            hidden_size=config.width,
            num_filters=config.filters,
            upsampling_ratios=list(config.ratios),
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_width,
            vector_quantization_hidden_dimension=config.codebook_width,
            num_quantizers=stored,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.width // config.heads,
            intermediate_size=config.feed_forward,
            sliding_window=config.window,
            upsample_groups=config.width,
        )
    ).eval()


def _renamed(path: Path, config: MimiConfig, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    """(transformers' name, tensor) of every tensor in the file."""
    newer = not any(key.startswith("encoder.layers.") for key in wanted)
    for key, tensor in read_file(path, lambda _: True):
        for other, usual in SPELLINGS:
            key = key.replace(other, usual)
        for pattern, name in (*RENAMED, *(NEWER if newer else ())):
            key = re.sub(pattern, name, key)
        if key.endswith("self_attn.in_proj_weight"):
            at = key.removesuffix("in_proj_weight")
            parts = halved(tensor, config.heads).chunk(3)
            yield from ((f"{at}{n}_proj.weight", t) for n, t in zip("qkv", parts, strict=True))
        else:
            yield key, tensor
