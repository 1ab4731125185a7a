"""A checkpoint's tokenizer and chat template under GGUF's keys. Knows JSON, no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.weights import read_json

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # GGUF's kinds of tokens
NO_MERGE = "\u0100 \u0100"  # two zero bytes: llama.cpp refuses a list of none


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id with their kinds, merges by rank, and the ids and template of a conversation."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int
    eos: int
    pad: int
    adds_bos: bool
    template: str | None = None

    def add_to(self, writer: GGUFWriter) -> None:
        """As llama.cpp reads the family's: byte-level BPE, split and merged as `lfm2` says."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("lfm2")
        writer.add_vocab_size(len(self.tokens))
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        writer.add_token_merges(list(self.merges) or [NO_MERGE])
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(False)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path, size: int, bos: int, eos: int, pad: int) -> Vocabulary:
    """The tokenizer of a checkpoint with `size` rows of embedding; rows without a token are unused.

    Raises CheckpointDamaged, and BadInput for another kind of tokenizer than byte-level BPE.
    """
    raw = read_json(folder / "tokenizer.json")
    model = raw.get("model", {})
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise BadInput(
            f"{folder / 'tokenizer.json'} is a {model.get('type')} tokenizer; the family's is "
            "byte-level BPE, and no other is exported to GGUF"
        )
    tokens = [f"<|unused_{i}|>" for i in range(size)]
    kinds = [UNUSED] * size
    try:
        for token, number in model["vocab"].items():
            tokens[number], kinds[number] = token, NORMAL
        for added in raw.get("added_tokens", []):
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        merges = tuple(m if isinstance(m, str) else " ".join(m) for m in model.get("merges", []))
    except (IndexError, KeyError, TypeError) as error:
        raise CheckpointDamaged(
            f"{folder / 'tokenizer.json'} does not fit an embedding of {size} rows: {error!r}"
        ) from error
    return Vocabulary(
        tuple(tokens), tuple(kinds), merges, bos, eos, pad,
        _adds_bos(raw, folder), chat_template(folder),
    )  # fmt: skip


def chat_template(folder: Path) -> str | None:
    """The checkpoint's chat template: its own file, or tokenizer_config.json's; None: none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    stored = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(stored, list):  # several by name; the unnamed one is called default
        named = {one.get("name"): one.get("template") for one in stored}
        return named.get("default")
    return stored if isinstance(stored, str) else None


def dummy_vocabulary(size: int) -> Vocabulary:
    """`size` tokens for random weights: numbered specials, the 256 bytes, then names."""
    specials = [f"<|special_{i}|>" for i in range(8)]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    tokens = specials + letters
    tokens += [f"token{i}" for i in range(len(tokens), size)]
    kinds = [CONTROL] * len(specials) + [NORMAL] * size
    return Vocabulary(tuple(tokens[:size]), tuple(kinds[:size]), (), 1, 7, 0, adds_bos=False)


def _adds_bos(raw: dict[str, Any], folder: Path) -> bool:
    """Whether text gets the first token by itself: by the post-processor, or as the file says."""
    if raw.get("post_processor"):
        return "SpecialToken" in json.dumps(raw["post_processor"])
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json(path).get("add_bos_token", False))
