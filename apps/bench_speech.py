"""How fast speech is here: one record a row, random weights of a published shape.

A conversation in the published order, 6 text tokens and 12 frames of 80 ms in turn, by the parts
that answer in `lfm2-mm talk`. Knows what is measured, not how it is shown.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from apps.bench import Row, read_speed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from audio.codec import Codec
    from audio.config import AudioConfig
    from audio.model import SpeechModel

DEFAULT = "LFM2.5-Audio-1.5B"
FRAME_MS = 80.0
HEARD_S = 4
AROUND = 24  # tokens of the prompt around a recording
TOP_K = 4  # published for conversations
T = TypeVar("T")


class Parts(Protocol):
    """What hears, thinks and speaks; the clock is looked at between the calls."""

    name: str
    limits: dict[str, int]  # bytes of weights that each stage reads

    def mel(self, sound: Tensor) -> Tensor: ...
    def hear(self, mel: Tensor) -> Tensor:
        """-> (1, positions, hidden)."""

    def start(self, positions: int) -> None:
        """A conversation that is so long."""

    def read(self, ids: Tensor) -> Tensor:
        """ids (n,) -> their embeddings (1, n, hidden)."""

    def step(self, embeds: Tensor) -> Tensor:
        """-> the hidden state (hidden,) after the last position."""

    def text(self, hidden: Tensor) -> int: ...
    def frame(self, hidden: Tensor) -> Tensor:
        """-> (codebooks,)."""

    def embed(self, codes: Tensor) -> Tensor:
        """-> (1, 1, hidden)."""

    def sound(self, codes: Tensor) -> Tensor:
        """-> samples."""


class Clock:
    """Milliseconds of named calls."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, call: Callable[..., T], *given: Any) -> T:
        start = time.perf_counter()
        result = call(*given)
        self.times[name].append(1e3 * (time.perf_counter() - start))
        return result


def bench_speech(
    shape: str = DEFAULT,
    *,
    device: str = "auto",
    dtype: str = "auto",
    contexts: tuple[int, ...] = (128, 1024, 4096),
    rounds: int = 3,
) -> Iterator[Row]:
    """From the end of 4 s of speech to the first sample, and continuous speech at some lengths of
    the conversation; see `rows_of`."""
    from audio.shapes import find_shape, random_codec, random_speech
    from lfm2_mm.device import choose

    (config, voice), choice = find_shape(shape), choose(device, dtype)
    parts = Ours(f"{shape} {choice.weights}", random_speech(config, choice),
                 random_codec(voice, choice))  # fmt: skip
    yield from rows_of(parts, config, contexts, rounds)


def rows_of(
    parts: Parts, config: AudioConfig, contexts: tuple[int, ...], rounds: int
) -> Iterator[Row]:
    """One record a row: what, model, size (positions of the conversation), ms (median), best_ms,
    limit_ms (bytes of weights over the memory's speed; ears and prompts rather wait for
    arithmetic), real_time_factor (of a frame's 80 ms)."""
    import torch

    with torch.inference_mode():
        speed = read_speed()
        yield from _first_sample(parts, config, rounds, speed)
        for context in contexts:
            yield from _continuous(parts, config, context, rounds, speed)


def _first_sample(parts: Parts, config: AudioConfig, rounds: int, speed: float) -> Iterator[Row]:
    import torch

    sound = 0.1 * torch.randn(HEARD_S * config.mel.sample_rate)
    clock, sums = Clock(), []
    for number in range(rounds + 1):
        parts.start(0)
        once = Clock()
        heard = once("ears", parts.hear, once("mel", parts.mel, sound))
        around = parts.read(torch.arange(AROUND) + 100)
        prompt = torch.cat((around[:, : AROUND // 2], heard, around[:, AROUND // 2 :]), 1)
        hidden = once("prompt", parts.step, prompt)
        for _ in range(config.n_text):
            token = once("text", parts.text, hidden)
            hidden = once("text", parts.step, parts.read(torch.tensor([token])))
        codes = once("frame", parts.frame, hidden)
        once("frame", parts.sound, codes)
        if number:  # the first is for caches
            sums.append(sum(map(sum, once.times.values())))
            for name, times in once.times.items():
                clock.times[name].append(sum(times))
    names = {"mel": f"mel of {HEARD_S} s", "ears": f"conformer and adapter of {HEARD_S} s",
             "prompt": "reading the prompt", "text": f"{config.n_text} text tokens",
             "frame": "first frame to sound"}  # fmt: skip
    size, b = prompt.shape[1], parts.limits
    read = {"mel": 0, "ears": b["ears"], "prompt": b["backbone"],
            "text": config.n_text * (b["text head"] + b["backbone"]),
            "frame": b["depth"] + b["codec"]}  # fmt: skip
    for name, what in names.items():
        yield _row(what, parts, size, clock.times[name], 1e3 * read[name] / speed)
    whole = 1e3 * sum(read.values()) / speed
    yield _row("end of speech to first sample", parts, size, sums, whole)


def _continuous(
    parts: Parts, config: AudioConfig, context: int, rounds: int, speed: float
) -> Iterator[Row]:
    """Rounds of text tokens and frames; what they cost for each frame, by stage."""
    import torch

    parts.start(context)
    hidden = parts.step(parts.read(torch.tensor([100])))
    share = config.n_text / config.n_audio  # text tokens a frame
    clock = Clock()
    for number in range(rounds + 1):
        clock = Clock() if number == 1 else clock
        for _ in range(config.n_text):
            token = clock("text head", parts.text, hidden)
            hidden = clock("text step", parts.step, parts.read(torch.tensor([token])))
        for _ in range(config.n_audio):
            codes = clock("depth", parts.frame, hidden)
            clock("codec", parts.sound, codes)
            hidden = clock("backbone", parts.step, parts.embed(codes))
    times, limits = clock.times, {k: 1e3 * b / speed for k, b in parts.limits.items()}
    times["text"] = [share * sum(pair) for pair in zip(times["text head"], times["text step"],
                                                       strict=True)]  # fmt: skip
    limits["text"] = share * (limits["text head"] + limits["backbone"])
    stages = ("backbone", "depth", "text", "codec")
    for stage in stages:
        what = "text between frames" if stage == "text" else stage
        yield _row(f"frame: {what}", parts, context, times[stage], limits[stage])
    whole = _row("frame", parts, context, [0.0], sum(limits[stage] for stage in stages))
    whole["ms"] = sum(statistics.median(times[stage]) for stage in stages)
    whole["best_ms"] = sum(min(times[stage]) for stage in stages)
    yield whole | {"real_time_factor": whole["ms"] / FRAME_MS}


def _row(what: str, parts: Parts, size: int, times: list[float], limit: float) -> Row:
    return {"what": what, "model": parts.name, "size": size, "ms": statistics.median(times),
            "best_ms": min(times), "limit_ms": limit}  # fmt: skip


class Ours:
    """The parts of `audio`, as a conversation drives them."""

    def __init__(self, name: str, model: SpeechModel, codec: Codec) -> None:
        from audio.generation import Chooser
        from lfm2_mm.types import Sampling

        self.name, self.model, self.codec = name, model, codec
        config = model.config
        greedy = Sampling(temperature=0.0)
        self._token = Chooser(greedy, None, size=config.backbone.vocab_size)
        # The code that ends the sound is left out: speech goes on.
        self._code = Chooser(Sampling(temperature=1.0, top_k=TOP_K), None,
                             size=config.codebook_size)  # fmt: skip
        self.limits = limits_of(model, codec)
        self.start(0)

    def mel(self, sound: Tensor) -> Tensor:
        from audio.mel import log_mel

        return log_mel(sound, self.model.config.mel)

    def hear(self, mel: Tensor) -> Tensor:
        return self.model.ears.hear(mel)[None].to(self.model.backbone.dtype)

    def start(self, positions: int) -> None:
        from audio.memory import PREFILL

        self.state, self.voice = self.model.backbone.start(), self.codec.start()
        for first in range(0, positions, PREFILL):
            self.step(self.read(_some_ids(min(PREFILL, positions - first))))

    def read(self, ids: Tensor) -> Tensor:
        return self.model.backbone.embed(ids[None])

    def step(self, embeds: Tensor) -> Tensor:
        hidden, self.state = self.model.backbone.step(embeds, self.state)
        return hidden[0, -1]

    def text(self, hidden: Tensor) -> int:
        return self._token(self.model.logits(hidden))

    def frame(self, hidden: Tensor) -> Tensor:
        import torch

        return torch.tensor(self.model.depth.frame(hidden, self._code))

    def embed(self, codes: Tensor) -> Tensor:
        return self.model.frames(codes)[None, None].to(self.model.backbone.dtype)

    def sound(self, codes: Tensor) -> Tensor:
        samples, self.voice = self.codec.decode(codes[:, None], self.voice)
        return samples


def _some_ids(count: int) -> torch.Tensor:
    import torch

    return torch.arange(count) % 1000 + 50


def limits_of(model: SpeechModel, codec: Codec) -> dict[str, int]:
    """Bytes of weights that a step of each stage reads: the depth transformer's layers once a
    codebook."""
    from audio.detokenizer import Detokenizer
    from audio.mimi_compiled import CompiledMimi

    backbone, depth = model.backbone, model.depth
    head = backbone.embedding.nbytes if backbone.head is None else matrix_bytes(backbone.head)
    heads = sum(one.embedding.nbytes if one.head is None else matrix_bytes(one.head)
                for one in depth._heads())  # fmt: skip
    if isinstance(codec, CompiledMimi):
        voice = codec.nbytes
    elif isinstance(codec, Detokenizer):
        voice = matrix_bytes(codec.backbone.layers) + codec.linear[0].nbytes
    else:
        voice = matrix_bytes(codec)  # type: ignore[arg-type]
    layers = model.config.codebooks * matrix_bytes(depth.layers)
    return {
        "backbone": matrix_bytes(backbone.layers),
        "text head": head,
        "depth": layers + heads + matrix_bytes(depth.project),
        "codec": voice,
        "ears": matrix_bytes(model.ears),
    }


def matrix_bytes(module: nn.Module) -> int:
    """Of all matrices inside, as they are stored."""
    from lfm2_mm.linear import Linear, PackedLinear

    total = 0
    for one in module.modules():
        if isinstance(one, PackedLinear):
            total += one.nbytes
        elif isinstance(one, Linear):
            total += one.weight.nbytes
    return total
