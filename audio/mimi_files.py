"""Mimi's published file -> our decoder, or transformers' whole model. Knows names, no arithmetic.

The file carries Kyutai's names, in two spellings of the attention's matrices. Its encoding half is
only read for `transformers_mimi`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from audio.mimi import MimiConfig, MimiDecoder
from audio.mimi_compiled import CompiledMimi, compilable
from lfm2_mm.device import Choice
from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.loading import check
from lfm2_mm.weights import read_file

SPELLINGS = (("in_projs.0.weight", "in_proj_weight"), ("out_projs.0.weight", "out_proj.weight"))
ENCODING = ("encoder.", "encoder_transformer.", "downsample.")  # what decoding does not need
SMALLEST = 1e-5  # a code that was never used counts as used this often
UPSAMPLE = "upsample.convtr.convtr.convtr.weight"


def open_mimi(
    path: Path, choice: Choice, config: MimiConfig | None = None
) -> MimiDecoder | CompiledMimi:
    """The decoder in a published file, compiled where that can be. Raises CheckpointDamaged.

    Arithmetic is float32; compiled and not asked for float32, most weights are kept in bfloat16.
    """
    config = config or MimiConfig()
    needed = shapes(config)
    found: dict[str, Tensor] = {}
    for key, tensor in read_file(path, lambda key: not unused(key, config)):
        for other, usual in SPELLINGS:
            key = key.replace(other, usual)
        check(key, tensor, torch.Size(needed[key]) if key in needed else None)
        found[key] = tensor.float()
    missing = sorted(needed.keys() - found.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointDamaged(f"{path} lacks {', '.join(missing[:3])}{more}")
    if choice.device == "cpu" and compilable(config):
        parameters = {name: tensor.contiguous() for name, tensor in ours(config, found)}
        return CompiledMimi(config, parameters, half=choice.weights != "fp32")
    with torch.device("meta"):
        decoder = MimiDecoder(config)
    for name, tensor in ours(config, found):
        owner, _, leaf = name.rpartition(".")
        value = nn.Parameter(tensor.contiguous().to(choice.device), requires_grad=False)
        setattr(decoder.get_submodule(owner), leaf, value)
    return decoder.eval()


def unused(key: str, config: MimiConfig) -> bool:
    """Whether decoding with this number of codebooks leaves the tensor out."""
    if key.startswith(ENCODING) or key.endswith((".input_proj.weight", "._initialized")):
        return True
    place = key.rpartition(".vq.layers.")[2].partition(".")[0]
    return key.startswith("quantizer.rvq_rest.vq.") and int(place) >= config.codebooks - 1


def shapes(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that decoding needs, by its published name in the older spelling."""
    width, code, kernel = config.width, config.codebook_width, config.residual_kernel
    out: dict[str, tuple[int, ...]] = {UPSAMPLE: (width, 1, 2 * config.steps)}
    for part in ("first", "rest"):
        out[f"quantizer.rvq_{part}.output_proj.weight"] = (width, code, 1)
    for book in range(config.codebooks):
        out |= {f"{codebook(book)}cluster_usage": (config.codebook_size,)}
        out |= {f"{codebook(book)}embedding_sum": (config.codebook_size, code)}
    for layer in range(config.layers):
        out |= {layer_at(layer) + name: shape for name, shape in layer_shapes(config).items()}
    channels = config.filters << len(config.ratios)
    convolutions = {"0.conv.conv": (channels, width, config.kernel)}
    for place, ratio in enumerate(config.ratios):
        up, residual, half = 2 + 3 * place, 3 + 3 * place, channels // 2
        convolutions[f"{up}.convtr.convtr"] = (channels, half, 2 * ratio)
        convolutions[f"{residual}.block.1.conv.conv"] = (half // 2, half, kernel)
        convolutions[f"{residual}.block.3.conv.conv"] = (half, half // 2, 1)
        channels = half
    convolutions[f"{last_place(config)}.conv.conv"] = (1, channels, config.last_kernel)
    for name, shape in convolutions.items():
        outputs = shape[1] if "convtr" in name else shape[0]
        out |= {f"decoder.model.{name}.weight": shape, f"decoder.model.{name}.bias": (outputs,)}
    return out


def layer_shapes(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    width = config.width
    norms = {f"norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
    scales = {f"layer_scale_{n}.scale": (width,) for n in (1, 2)}
    return norms | scales | {
        "self_attn.in_proj_weight": (3 * width, width),
        "self_attn.out_proj.weight": (width, width),
        "linear1.weight": (config.feed_forward, width),
        "linear2.weight": (width, config.feed_forward),
    }  # fmt: skip


def ours(config: MimiConfig, found: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(our parameter, tensor), from published tensors."""
    yield "table", torch.cat([codes(found, book) for book in range(config.codebooks)])
    # (width, 1, 4) taps -> [this frame's, the last one's] (2, 2, width)
    yield "doubling", found[UPSAMPLE][:, 0].T.view(2, config.steps, -1)
    for layer in range(config.layers):
        at, to = layer_at(layer), f"layers.{layer}."
        qkv = found[at + "self_attn.in_proj_weight"]
        yield to + "qkv.weight", halved(qkv, config.heads)
        yield to + "out_proj.weight", found[at + "self_attn.out_proj.weight"]
        for n in ("1", "2"):
            yield f"{to}scale{n}", found[f"{at}layer_scale_{n}.scale"]
            yield f"{to}linear{n}.weight", found[f"{at}linear{n}.weight"]
            yield f"{to}norm{n}.weight", found[f"{at}norm{n}.weight"]
            yield f"{to}norm{n}.bias", found[f"{at}norm{n}.bias"]
    for place, name in enumerate(convolution_names(config)):
        weight, bias = found[f"{name}.weight"], found[f"{name}.bias"]
        to = f"convolutions.{place}.product."
        if name.endswith("convtr"):
            taps = weight.permute(2, 1, 0)  # (2 · ratio, outputs, inputs): this input's, then later
            now, later = taps.chunk(2)
            yield to + "weight", torch.cat((later, now), 2).flatten(0, 1)
            yield to + "bias", bias.repeat(len(now))
        else:
            yield to + "weight", weight.transpose(1, 2).flatten(1)
            yield to + "bias", bias


def codes(found: dict[str, Tensor], book: int) -> Tensor:
    """(codebook_size, width): what each code of a codebook adds, projected once and for all."""
    usage = found[f"{codebook(book)}cluster_usage"].clamp_min(SMALLEST)
    rows = found[f"{codebook(book)}embedding_sum"] / usage[:, None]
    part = "rest" if book else "first"
    return rows @ found[f"quantizer.rvq_{part}.output_proj.weight"][..., 0].T


def halved(qkv: Tensor, heads: int) -> Tensor:
    """Published rows of queries and keys rotate neighbours (2i, 2i + 1); ours rotate halves."""
    q, k, v = qkv.chunk(3)

    def turned(rows: Tensor) -> Tensor:
        return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)

    return torch.cat((turned(q), turned(k), v))


def codebook(book: int) -> str:
    part = f"rest.vq.layers.{book - 1}" if book else "first.vq.layers.0"
    return f"quantizer.rvq_{part}._codebook."


def layer_at(layer: int) -> str:
    return f"decoder_transformer.transformer.layers.{layer}."


def last_place(config: MimiConfig) -> int:
    return 2 + 3 * len(config.ratios)


def convolution_names(config: MimiConfig) -> list[str]:
    """In the order of `seanet`."""
    names = ["0.conv.conv"]
    for place in range(len(config.ratios)):
        up, residual = 2 + 3 * place, 3 + 3 * place
        names += [f"{up}.convtr.convtr", f"{residual}.block.1.conv.conv"]
        names.append(f"{residual}.block.3.conv.conv")
    return [f"decoder.model.{name}" for name in (*names, f"{last_place(config)}.conv.conv")]
