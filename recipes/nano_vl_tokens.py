"""nano-vl's tokenizer: one token for each byte, and one for each word of the questions and answers.

What is read from a picture is spelled, byte by byte: an unseen word is no harder than a known one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

# Ids as published up to <|im_end|>; the marks of pictures follow.
SPECIAL = (
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
    "<|im_start|>", "<|im_end|>", "<image>", "<|image_start|>", "<|image_end|>",
    "<|image_split|>", "<|img_thumbnail|>",
    *(f"<|img_row_{r}_col_{c}|>" for r in range(1, 11) for c in range(1, 11)),
)  # fmt: skip
PAD, BOS, START, END, IMAGE, IMAGE_START, IMAGE_END = 0, 1, 6, 7, 8, 9, 10
PIECES = r" ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\d|\s"  # a word, a mark, a digit, a blank
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<image>' -}}{%- elif part.type == 'text' -%}{{- part.text -}}
{%- endif -%}{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def words_of(texts: Iterable[str], least: int = 1) -> list[str]:
    """The words of these texts as pieces (with the blank before them), seen `least` times."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r" ?[A-Za-z]{2,}", text))
    return sorted(word for word, count in counts.items() if count >= least)


def make_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Bytes, and `words` as they stand (a blank before them is part of them). No merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    listed = [*SPECIAL, *alphabet, *dict.fromkeys(word.replace(" ", "Ġ") for word in words)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(listed))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


class Scribe:
    """Turns of a conversation -> ids, and which of them are answers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._byte = {
            byte: tokenizer.token_to_id(
                symbols.pre_tokenize_str(bytes([byte]).decode("latin-1"))[0][0][-1]
            )
            for byte in range(128)
        }
        self._known: dict[str, list[int]] = {}
        self.user, self.reply = self.ids("user\n"), self.ids("assistant\n")
        self.newline = self.ids("\n")

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > 50_000:
                self._known.clear()
            self._known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self._known[text]

    def spell(self, text: str) -> list[int]:
        if text.isascii():
            return [self._byte[ord(character)] for character in text]
        symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pieces = symbols.pre_tokenize_str(text)
        return [self.tokenizer.token_to_id(symbol) for piece, _ in pieces for symbol in piece]

    @property
    def opening(self) -> list[int]:
        """What stands before a picture in the first turn."""
        return [BOS, START, *self.user, IMAGE_START]

    def turns(
        self, turns: Iterable[tuple[str, str, bool]], picture: bool
    ) -> tuple[list[int], list[bool]]:
        """Ids after the picture (or of the whole, without one), True where they are answers."""
        ids: list[int] = [IMAGE_END] if picture else [BOS, START, *self.user]
        for i, (question, answer, spelled) in enumerate(turns):
            if i:
                ids += [START, *self.user]
            ids += [*self.ids(question), END, *self.newline, START, *self.reply]
            marks = len(ids)
            ids += [*(self.spell(answer) if spelled else self.ids(answer)), END]
            if i == 0:
                answers = [False] * marks
            else:
                answers += [False] * (marks - len(answers))
            answers += [True] * (len(ids) - marks)
            ids += self.newline
            answers += [False] * len(self.newline)
        return ids, answers

    def looks(
        self, turns: Iterable[tuple[str, str, bool]], places: Mapping[str, list[int]]
    ) -> list[int]:
        """For each id of `turns`, the token of the picture to look at for it; -1 for none.

        `places`: of a written text, a token for each letter; of a question, the one to look at.
        """
        found: list[int] = []
        for i, turn in enumerate(turns):
            ids, answers = self.turns([turn], picture=i == 0)
            if i:  # the later turns begin where the first one has its picture's end
                ids, answers = ids[1:], answers[1:]
            own = [-1] * len(ids)
            start, end = answers.index(True), len(answers) - 2  # without the end mark
            if turn[2] and turn[1].isascii() and turn[1] in places:
                own[start:end] = places[turn[1]]
            elif turn[0] in places:
                own[start:end] = places[turn[0]] * (end - start)
            found += own
        return found
