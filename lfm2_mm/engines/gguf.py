"""llama.cpp in this process, answering from one GGUF file. Knows llama.cpp's requests, no weights.

The words are the file's own: its tokenizer, its chat template. What a user's text spells of
special tokens stays text, as everywhere. The state of the last conversation stays for the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lfm2_mm import registry
from lfm2_mm.device import choose
from lfm2_mm.errors import BadInput, CheckpointDamaged, ContextExceeded
from lfm2_mm.extras import need
from lfm2_mm.llama import Llama, require_gguf
from lfm2_mm.prompt import Speller, content
from lfm2_mm.types import Done, Event, Message, Sampling, Text, TextDelta, Timings, Usage

CONTROL, UNUSED = 3, 5  # GGUF's kinds of tokens


class Words(Speller):
    """The file's tokenizer and template, which llama.cpp itself runs."""

    def __init__(self, llama: Llama, metadata: Metadata) -> None:
        self._llama, self._metadata = llama, metadata

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation and the opening of the assistant's answer. Raises BadInput."""
        if not self._metadata.get("tokenizer.chat_template"):
            raise BadInput("this file has no chat template; export an instruct checkpoint")
        found = self.ids_of([{"role": m.role, "content": content(m, None)} for m in messages])
        bos = self._metadata.get("tokenizer.ggml.bos_token_id")
        # llama.cpp takes away what it would put there itself
        adds = self._metadata.get("tokenizer.ggml.add_bos_token", False)
        return [bos, *found] if adds and found[:1] != [bos] else found

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self._llama.ids(text, special=special)

    def apply(self, turns: list[dict[str, Any]]) -> str:
        text: str = self._llama.post("/apply-template", {"messages": turns})["prompt"]
        return text

    @cached_property
    def special_ids(self) -> dict[str, int]:
        tokens = self._metadata.get("tokenizer.ggml.tokens", [])
        return {tokens[number]: number for number in self._of_kind(CONTROL)}

    @cached_property
    def unused(self) -> list[int]:
        """Rows of the embedding that no token has; they are never said."""
        return self._of_kind(UNUSED)

    def _of_kind(self, kind: int) -> list[int]:
        kinds = self._metadata.get("tokenizer.ggml.token_type", [])
        return [number for number, one in enumerate(kinds) if one == kind]


class Metadata:
    """What a GGUF file says of itself, read when asked."""

    def __init__(self, path: Path) -> None:
        gguf = need("gguf", "gguf")
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, OSError) as error:
            raise CheckpointDamaged(f"{path} is damaged or was cut off: {error}") from error

    def get(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    @property
    def context(self) -> int:
        """Tokens the model was made for."""
        architecture = self.get("general.architecture")
        return int(self.get(f"{architecture}.context_length", registry.CONTEXT))


class Gguf:
    """One conversation at a time is computed; a second stream waits for the first."""

    accepts = frozenset({Text})

    def __init__(
        self, name: str, llama: Llama, words: Words, context: int, advice: Sampling
    ) -> None:
        self.name, self.context, self.advice = name, context, advice
        self._llama, self._words = llama, words

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[Event]:
        """As Engine.stream. Raises BadInput, ContextExceeded before anything is computed."""
        if not messages:
            raise BadInput("an empty conversation was given; at least one message is needed")
        ids = self._words.ids(messages)
        if len(ids) >= self.context:
            raise ContextExceeded(
                f"the conversation is {len(ids)} tokens long; {self.name} takes at most "
                f"{self.context - 1} and a reply: shorten it or start anew"
            )
        return self._generate(ids, sampling or self.advice)

    def _generate(self, ids: list[int], sampling: Sampling) -> Iterator[Event]:
        room = min(sampling.max_tokens, self.context - len(ids))
        asked = request(ids, sampling, room)
        asked["logit_bias"] = [[number, False] for number in self._words.unused]
        for event in self._llama.stream("/completion", asked):
            if event.get("content"):
                yield TextDelta(event["content"])
            if event.get("stop"):
                yield done(event, len(ids))

    def close(self) -> None:
        """Stop llama.cpp and free the weights."""
        self._llama.close()


def request(ids: list[int], sampling: Sampling, room: int) -> dict[str, Any]:
    """Our sampling in llama.cpp's words, in our order: penalty, temperature, top_k, min_p."""
    return {
        "prompt": ids,
        "n_predict": room,
        "cache_prompt": True,
        "samplers": ["penalties", "temperature", "top_k", "min_p"],
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(ids) + room,  # of everything read
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": -1 if sampling.seed is None else sampling.seed % (1 << 32),
    }


def done(event: Mapping[str, Any], read: int) -> Done:
    took = event["timings"]
    return Done(
        "length" if event["stop_type"] == "limit" else "stop",
        Usage(read, event["tokens_predicted"], took.get("cache_n", 0)),
        Timings(took["prompt_ms"] / 1e3, took["predicted_per_second"]),
    )


def open(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    active_experts: int | None = None,
) -> Gguf:
    """Open a GGUF file; its weights have the type they were stored in, whatever `dtype` says.

    Raises BadInput for what is no such file, MissingExtra, CheckpointDamaged.
    """
    if active_experts is not None:
        raise BadInput("--active-experts goes with our own engine; a GGUF file says its number")
    path = Path(name_or_path).expanduser()
    require_gguf(path)
    metadata = Metadata(path)
    context = min(metadata.context, registry.CONTEXT)
    name = metadata.get("general.name") or path.stem
    known = registry.find(name) if registry.knows(name) else None
    llama = Llama(path, context=context, threads=choose("cpu", "fp32").threads)
    advice = (known and known.sampling) or Sampling()
    return Gguf(name, llama, Words(llama, metadata), context, advice)
