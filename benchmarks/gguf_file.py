"""Dense LFM2 weights as a GGUF file that llama.cpp runs, for benchmarks and tests. No real tokens.

The vocabulary is a dummy of the right size, so prompts are token ids. Every matrix has the type
asked; norms and convolution taps stay F32, as in published files.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gguf
from torch import Tensor

from lfm2_mm.config import BackboneConfig


def write_gguf(
    path: Path,
    config: BackboneConfig,
    tensors: Iterable[tuple[str, Tensor]],
    kind: str,
    *,
    template: str | None = None,
) -> None:
    """Write (published key without `model.`, tensor) pairs as `kind`: F32, BF16, Q8_0 or Q4_0.

    template: of chats, where there shall be some.
    """
    writer = gguf.GGUFWriter(path, "lfm2")
    add_sizes(writer, config)
    add_dummy_vocabulary(writer, config.vocab_size)
    if template is not None:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LFM2, config.num_layers)
    for key, tensor in tensors:
        stem, _, leaf = key.rpartition(".")
        name = names.get_name(f"model.{stem}")
        if name is None:
            raise ValueError(f"GGUF has no name for {key!r}")
        whole = tensor.float().numpy()
        if stem.endswith("conv.conv"):
            whole = whole.squeeze(1)  # (hidden, 1, kernel) -> (hidden, kernel)
        keep = whole.ndim == 1 or stem.endswith("conv.conv")
        kept = gguf.GGMLQuantizationType["F32" if keep else kind]
        writer.add_tensor(f"{name}.{leaf}", gguf.quantize(whole, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, config: BackboneConfig) -> None:
    """The configuration under GGUF's names."""
    attends = [kind == "full_attention" for kind in config.layer_types]
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv([config.kv_heads if here else 0 for here in attends])  # 0: convolution
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_shortconv_l_cache(config.kernel)
    writer.add_vocab_size(config.vocab_size)


def add_dummy_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """`size` tokens: numbered specials, the 256 bytes as byte-level BPE writes them, then names."""
    specials = [f"<|special_{i}|>" for i in range(8)]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    tokens = specials + letters
    tokens += [f"token{i}" for i in range(len(tokens), size)]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("lfm2")
    writer.add_token_list(tokens[:size])
    writer.add_token_types([control if i < len(specials) else normal for i in range(size)])
    writer.add_token_merges(["t o"])  # llama.cpp refuses a list of none
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(7)
    writer.add_pad_token_id(0)
