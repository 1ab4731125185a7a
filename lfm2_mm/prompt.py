"""Messages -> token ids by the checkpoint's own template, and ids -> text. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.types import Message, Text
from lfm2_mm.weights import read_json

LONGEST_CHARACTER = 8  # tokens; more without a whole character is not text, and is shown as it is


class ChatTokenizer:
    """The tokenizer of one checkpoint folder, through transformers."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointDamaged when the folder has no readable tokenizer."""
        from transformers import AutoTokenizer

        if not (folder / "tokenizer.json").is_file():
            raise CheckpointDamaged(f"{folder} has no tokenizer.json; fetch or save it again")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointDamaged(f"{folder} has no readable tokenizer: {error}") from error
        self.size = len(self._tokenizer)
        self.stops = stop_ids(folder, self._tokenizer)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation and of the opening of the assistant's answer.

        Raises BadInput for a part that is not text, and for a checkpoint without chat template.
        """
        if self._tokenizer.chat_template is None:
            raise BadInput("this checkpoint has no chat template; take an instruct checkpoint")
        turns = [{"role": m.role, "content": plain_text(m)} for m in messages]
        text = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; bytes that are no character become U+FFFD."""
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class TextStream:
    """Ids in, text out, never half a character. What comes out joins to `decode` of all ids."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that became certain with `token`; "" while a character is unfinished."""
        self._held.append(token)
        text = self._tokenizer.decode(self._held)
        if text.endswith("\ufffd") and len(self._held) < LONGEST_CHARACTER:
            return ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """What is still held at the end."""
        text = self._tokenizer.decode(self._held) if self._held else ""
        self._held.clear()
        return text


def plain_text(message: Message) -> str:
    """The text of a message. Raises BadInput when it holds anything else."""
    other = [type(part).__name__ for part in message.parts if not isinstance(part, Text)]
    if other:
        raise BadInput(f"this checkpoint reads text; the message also holds {', '.join(other)}")
    return message.text


def stop_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Ids that end a reply: generation_config.json's, config.json's and the tokenizer's."""
    stops: set[int | None] = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get("eos_token_id")
            stops.update(value if isinstance(value, list) else [value])
    return frozenset(s for s in stops if s is not None)
