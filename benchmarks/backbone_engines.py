"""The engines that benchmarks/backbone.py sets side by side. Each reads and writes; none prints.

An engine opened is a function (size, count) -> Timing: read a prompt of `size` random tokens into a
fresh state, then write `count` tokens greedily, one by one. Batch 1, and weights from one source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lfm2_mm.config import BackboneConfig


class Timing(NamedTuple):
    prefill: float  # seconds for the whole prompt
    decode: float  # seconds for all the tokens written


class Opened(NamedTuple):
    measure: Callable[[int, int], Timing]
    note: str  # what it runs on, as it says itself


@dataclass(frozen=True)
class Setting:
    """What every engine is opened with."""

    config: BackboneConfig
    threads: int
    context: int  # positions it must hold
    folder: Path  # where GGUF files lie


@dataclass(frozen=True)
class Engine:
    family: str
    weights: str
    bits: float  # a weight takes in memory, block scales included
    needs: tuple[str, ...]
    open: Callable[[Setting, str], Opened]

    @property
    def name(self) -> str:
        return f"{self.family}-{self.weights}"

    def missing(self) -> list[str]:
        """Packages it needs that are not installed."""
        return [package for package in self.needs if find_spec(package) is None]


def open_ours(setting: Setting, weights: str) -> Opened:
    from apps.bench import BackboneRun, timed
    from lfm2_mm.device import choose
    from lfm2_mm.shapes import random_backbone

    choice = replace(choose("cpu", weights), threads=setting.threads)
    run = BackboneRun(random_backbone(setting.config, choice))

    def measure(size: int, count: int) -> Timing:
        return Timing(timed(partial(run.prefill, size)), timed(partial(run.decode, count)))

    return Opened(measure, torch_kernels())


def torch_kernels() -> str:
    """The instructions torch's own kernels use; oneDNN finds its own."""
    import torch

    return f"torch with {torch.backends.cpu.get_cpu_capability()}"


def open_transformers(setting: Setting, weights: str) -> Opened:
    """The class that published checkpoints name, as `from_pretrained` opens it; eager, its cache.

    int8 is torch's own dynamic quantisation of every linear layer, with float32 activations.
    """
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.set_num_threads(setting.threads)
    config = Lfm2Config(**setting.config.to_json())
    model = Lfm2ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    load_random(model, setting.config)
    note = f"{torch_kernels()}, attention {config._attn_implementation}"
    if weights == "int8":
        torch.backends.quantized.engine = "onednn"
        model = torch.ao.quantization.quantize_dynamic(
            model.float(), {torch.nn.Linear}, dtype=torch.qint8, inplace=True
        )
        note += ", torch.ao quantize_dynamic, engine onednn"
    ids = torch.randint(0, setting.config.vocab_size, (1, setting.context))
    return Opened(partial(measure_transformers, model, ids), note)


def load_random(model: Any, config: BackboneConfig) -> None:
    """Give transformers' model the weights that ours has."""
    from lfm2_mm.shapes import random_tensors

    tensors = {f"model.{key}": tensor for key, tensor in random_tensors(config)}
    left = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if config.tied else set()
    if left.unexpected_keys or set(left.missing_keys) - tied:
        raise ValueError(f"transformers' model does not take our weights: {left}")


def measure_transformers(model: Any, ids: Any, size: int, count: int) -> Timing:
    import torch

    from apps.bench import timed

    out: Any = None

    def feed(tokens: Any) -> None:
        nonlocal out
        past = out and out.past_key_values
        out = model(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        for _ in range(count):
            feed(out.logits[:, -1].argmax(-1, keepdim=True))

    with torch.inference_mode():
        return Timing(timed(partial(feed, ids[:, :size])), timed(decode))


def open_llama(setting: Setting, weights: str) -> Opened:
    """llama.cpp's server inside this process; it times reading and writing itself."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_path(setting, weights))
    params.n_ctx = setting.context
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setting.threads
    params.fit_params = False
    # What a server does for later requests would cost time in this one:
    params.n_ctx_checkpoints = params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    features = xllamacpp.get_system_info().replace(" = 1", "").strip(" |\n")
    note = f"xllamacpp's build of llama.cpp: {features}"
    return Opened(partial(measure_llama, server, setting.config.vocab_size), note)


def measure_llama(server: Any, vocab_size: int, size: int, count: int) -> Timing:
    import numpy as np

    answer = server.handle_completions(
        {
            "prompt": np.random.default_rng(0).integers(0, vocab_size, size).tolist(),
            "max_tokens": count + 1,  # the first is chosen from the prompt's logits, without a step
            "ignore_eos": True,
            "cache_prompt": False,
            "samplers": ["temperature"],  # nothing but the likeliest: no sorting of the vocabulary
            "temperature": 0,
        }
    )
    if "error" in answer:
        raise ValueError(f"llama.cpp refused: {answer['error']['message']}")
    took = answer["timings"]
    if (took["prompt_n"], took["predicted_n"]) != (size, count + 1):
        raise ValueError(f"llama.cpp read or wrote another number of tokens than asked: {took}")
    return Timing(took["prompt_ms"] / 1e3, took["predicted_ms"] / 1e3)


def write_random(setting: Setting, weights: str) -> None:
    """Random weights for llama.cpp, every matrix of the type asked. Prompts are token ids."""
    from lfm2_mm.exports.gguf_file import write_gguf
    from lfm2_mm.exports.vocabulary import dummy_vocabulary
    from lfm2_mm.shapes import random_tensors

    path, tensors = gguf_path(setting, weights), dict(random_tensors(setting.config))
    words = dummy_vocabulary(setting.config.vocab_size)
    write_gguf(path, setting.config, tensors.__getitem__, weights.lower(), words)


def gguf_path(setting: Setting, weights: str) -> Path:
    return setting.folder / f"{weights}.gguf"


def bandwidth(threads: int) -> float:
    """GB/s that `threads` read from memory."""
    import torch

    from apps.bench import read_speed

    torch.set_num_threads(threads)
    return read_speed() / 1e9


LLAMA = ("xllamacpp", "gguf")
ENGINES = (
    Engine("ours", "fp32", 32, (), open_ours),
    Engine("ours", "bf16", 16, (), open_ours),
    Engine("ours", "int8", 8, (), open_ours),
    Engine("ours", "int4", 5.2, (), open_ours),  # 4.5, but for the head; 4.9 at 1.2B
    Engine("transformers", "bf16", 16, ("transformers",), open_transformers),
    Engine("transformers", "int8", 8, ("transformers",), open_transformers),
    Engine("llama", "Q8_0", 8.5, LLAMA, open_llama),
    Engine("llama", "Q4_0", 5.3, LLAMA, open_llama),
)
