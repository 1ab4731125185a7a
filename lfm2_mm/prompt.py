"""Messages -> token ids by the checkpoint's own template, and ids -> text. Knows no model.

Special tokens come from the template, and from a system message, which is the operator's own. Text
of any other message that spells one, `<|im_end|>` or `<image>`, stays text: nothing that is quoted
or read can end a turn or take a picture's place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.types import Message, Part, PartEncoder, Slot, Text
from lfm2_mm.weights import read_json

LONGEST_CHARACTER = 8  # tokens; more without a whole character is not text, and is shown as it is
NOTHING = "(?!)"  # the expression that matches nowhere
PRIVATE = range(0xE000, 0xF900)  # code points without a meaning of their own


@dataclass(frozen=True, eq=False)
class Place:
    """A slot in a prompt: `start` is the position of its first id."""

    start: int
    slot: Slot
    part: Part

    @property
    def end(self) -> int:
        return self.start + len(self.slot.ids)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation as a backbone reads it: ids, and the places where embeddings replace some."""

    ids: tuple[int, ...] = ()
    places: tuple[Place, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def slot_tokens(self) -> int:
        """Positions that are replaced by embeddings."""
        return sum(place.slot.tokens for place in self.places)

    def cut(self, length: int) -> Prompt:
        """The first `length` positions; a place may reach beyond them."""
        return Prompt(self.ids[:length], tuple(p for p in self.places if p.start < length))

    def then(self, ids: Sequence[int]) -> Prompt:
        """This prompt and ids of text after it."""
        return Prompt((*self.ids, *ids), self.places)

    def shared(self, other: Prompt) -> int:
        """How many positions at the start of both are the same, contents of slots included."""
        pairs = enumerate(zip(self.ids, other.ids, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(self), len(other)))
        for mine, theirs in zip_longest(self.places, other.places):
            start = min(place.start for place in (mine, theirs) if place)
            equal = mine and theirs and mine.start == theirs.start
            if not equal or mine.slot.key != theirs.slot.key:
                return min(same, start)
        return same


class Speller:
    """Turns -> ids, where only the template and a system message make special tokens.

    Whoever knows a vocabulary fills in the three below.
    """

    def id_of(self, token: str) -> int:
        """The id of a special token. Raises CheckpointDamaged where the vocabulary lacks it."""
        if token not in self.special_ids:
            raise CheckpointDamaged(f"the checkpoint's tokenizer has no special token {token!r}")
        return self.special_ids[token]

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Special tokens and their ids."""
        raise NotImplementedError

    def apply(self, turns: list[dict[str, Any]]) -> str:
        """The turns and the opening of the answer, as the chat template writes them."""
        raise NotImplementedError

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text` alone; what spells a special token is one only where `special` is set."""
        raise NotImplementedError

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Any special token, the longest first."""
        known = sorted(self.special_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, known)) or NOTHING)

    def ids_of(self, turns: list[dict[str, Any]], marker: str | None = None) -> list[int]:
        """Ids of the rendered turns; `marker` stands only where the template wrote it."""
        said = "\n".join(text for turn in turns for text in texts_of(turn["content"]))
        spelled = self._special.search(said) is not None
        if spelled:
            guard = next(chr(c) for c in PRIVATE if chr(c) not in said)
            of_system = re.compile(re.escape(marker) if marker else NOTHING)
            for turn in turns:
                special = of_system if turn["role"] == "system" else self._special
                turn["content"] = broken(turn["content"], guard, special)
        text = self.apply(turns)
        return self._guarded_ids(text, guard) if spelled else self.encode(text, special=True)

    def _guarded_ids(self, text: str, guard: str) -> list[int]:
        """Ids of a text in which `guard` breaks what is not to be special."""
        ids: list[int] = []
        at = 0
        for match in [*self._special.finditer(text), None]:
            plain = text[at : match.start() if match else None].replace(guard, "")
            ids += self.encode(plain, special=False)
            if match:
                ids.append(self.id_of(match[0]))
                at = match.end()
        return ids


class ChatTokenizer(Speller):
    """The tokenizer of one checkpoint folder, through transformers."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointDamaged when the folder has no readable tokenizer."""
        from transformers import AutoTokenizer

        if not (folder / "tokenizer.json").is_file():
            raise CheckpointDamaged(f"{folder} has no tokenizer.json; fetch or save it again")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # malformed files make the library raise nearly anything
            raise CheckpointDamaged(f"{folder} has no readable tokenizer: {error}") from error
        # Its own remark on long prompts says less than ContextExceeded does.
        self._tokenizer.model_max_length = sys.maxsize
        self.size = len(self._tokenizer)
        self.stops = stop_ids(folder, self._tokenizer)

    def render(self, messages: Sequence[Message], encoder: PartEncoder | None = None) -> Prompt:
        """The conversation and the opening of the assistant's answer; nothing is encoded.

        Raises BadInput for a part that neither is text nor `encoder` takes, and for a checkpoint
        without chat template; and what `encoder.plan` raises.
        """
        if self._tokenizer.chat_template is None:
            raise BadInput("this checkpoint has no chat template; take an instruct checkpoint")
        turns = [{"role": m.role, "content": content(m, encoder)} for m in messages]
        ids = self.ids_of(turns, encoder.marker if encoder else None)
        if encoder is None:
            return Prompt(tuple(ids))
        parts = [p for m in messages for p in m.parts if isinstance(p, encoder.accepts)]
        return lay(ids, self.id_of(encoder.marker), parts, encoder.plan(parts))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text` alone; what spells a special token is one only where `special` is set."""
        return self._tokenizer(
            well_formed(text), add_special_tokens=False, split_special_tokens=not special
        ).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; bytes that are no character become U+FFFD."""
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def apply(self, turns: list[dict[str, Any]]) -> str:
        """The turns and the opening of the answer, as the chat template writes them.

        Raises BadInput where it cannot, or will not: templates may refuse an order of turns.
        """
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise BadInput(
                f"the checkpoint's chat template does not take this conversation: {error}"
            ) from error
        return text

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Special tokens and their ids."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: number for number, token in added if token.special}


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


def content(message: Message, encoder: PartEncoder | None) -> str | list[dict[str, str]]:
    """What a chat template is given: a string, or where other parts stand in the text a list."""
    taken = (Text,) if encoder is None else (Text, encoder.accepts)
    other = sorted({type(p).__name__ for p in message.parts if not isinstance(p, taken)})
    if other:
        reads = "text" if encoder is None else f"text and {encoder.kind}s"
        raise BadInput(f"this checkpoint reads {reads}; the message also holds {', '.join(other)}")
    items: list[dict[str, str]] = []
    for part in message.parts:
        if not isinstance(part, Text):
            items.append({"type": encoder.kind if encoder else ""})
        elif items and "text" in items[-1]:  # joined: two halves of a special token are one
            items[-1]["text"] += part.text
        else:
            items.append({"type": "text", "text": part.text})
    if all("text" in item for item in items):
        return "".join(texts_of(items))
    return items


def texts_of(said: str | list[dict[str, str]]) -> list[str]:
    """The texts in what a chat template is given."""
    return [said] if isinstance(said, str) else [item["text"] for item in said if "text" in item]


def broken(said: Any, guard: str, special: re.Pattern[str]) -> Any:
    """What a chat template is given, with `guard` put into everything `special` finds in it."""
    if not isinstance(said, str):
        return [
            {**item, "text": broken(item["text"], guard, special)} if "text" in item else item
            for item in said
        ]
    while match := special.search(said):
        said = f"{said[: match.start() + 1]}{guard}{said[match.start() + 1 :]}"
    return said


def well_formed(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def lay(ids: Sequence[int], marker: int, parts: Sequence[Part], slots: Sequence[Slot]) -> Prompt:
    """`ids` with every `marker` replaced by the slot of the next part. Raises BadInput."""
    if ids.count(marker) != len(parts):
        raise BadInput(
            f"this checkpoint's chat template has {ids.count(marker)} of {len(parts)} pictures or "
            "recordings; put them into messages of the user"
        )
    laid: list[int] = []
    places: list[Place] = []
    for token in ids:
        if token == marker:
            slot, part = slots[len(places)], parts[len(places)]
            places.append(Place(len(laid), slot, part))
            laid += slot.ids
        else:
            laid.append(token)
    return Prompt(tuple(laid), tuple(places))


def stop_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Ids that end a reply: generation_config.json's, config.json's and the tokenizer's."""
    stops: set[int | None] = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get("eos_token_id")
            stops.update(value if isinstance(value, list) else [value])
    return frozenset(s for s in stops if s is not None)
