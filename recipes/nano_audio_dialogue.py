"""A turn as nano-audio's backbone sees it: tokens, heard audio and spoken frames in one sequence.

Interleaved replies are aligned in time: one text token, two frames, and so on; a word goes out in
the last text slot at or before its first frame, every other slot holds the token that says nothing.
The words said last are therefore what sounds now, and there is no pointer to learn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from nano_audio_language import words_of
from nano_audio_tokenizer import PAD, QUIET, UNKNOWN
from nano_audio_units import BOOKS, CODES, Units
from tokenizers import Tokenizer

TEXT, HEARD, SPOKEN = 1, 2, 3  # what a position holds, numbered as the published modality flags
N_TEXT, N_AUDIO = 1, 2
END = CODES  # the code that ends the audio
INTERLEAVED, HEAR = "Respond with interleaved text and audio.", "Perform ASR."
SILENT = "Respond with text."
SPEAK = "Perform TTS."

Imagined = tuple[int, int, float]  # two tokens, and how much the first counts


@dataclass
class Positions:
    """Positions of one turn. `judged` says what the model is to predict: weight by position."""

    kinds: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # 0 where the position is no text
    frames: list[np.ndarray] = field(default_factory=list)  # of the SPOKEN positions, in order
    imagined: list[Imagined] = field(default_factory=list)  # of HEARD positions without sound
    judged: list[float] = field(default_factory=list)

    def text(self, ids: Sequence[int], weight: float = 0.0) -> None:
        self.kinds += [TEXT] * len(ids)
        self.tokens += ids
        self.judged += [weight] * len(ids)

    def heard(self, count: int) -> None:
        self.kinds += [HEARD] * count
        self.tokens += [0] * count
        self.judged += [0.0] * count

    def imagine(self, heard: Sequence[Imagined]) -> None:
        self.heard(len(heard))
        self.imagined += heard

    def spoken(self, codes: np.ndarray, weight: float = 1.0) -> None:
        """codes (n, 4)"""
        self.kinds += [SPOKEN] * len(codes)
        self.tokens += [0] * len(codes)
        self.judged += [weight] * len(codes)
        self.frames += list(codes)


class Dialogue:
    """Builds sequences with one tokenizer and one voice."""

    def __init__(self, tokenizer: Tokenizer, units: Units) -> None:
        self.tokenizer, self.units = tokenizer, units
        self.pad, self.quiet, self.unknown, self.text_end, self.im_end, self.audio_start = (
            tokenizer.token_to_id(t)
            for t in (PAD, QUIET, UNKNOWN, "<|text_end|>", "<|im_end|>", "<|audio_start|>")
        )

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def imagine(self, words: Sequence[int], draw: random.Random) -> list[Imagined]:
        """What ears might make of words: each as long as it lasts, one moment of it surer than the
        rest, so that a word said twice is two; nothing before, after and sometimes between."""
        made: list[Imagined] = []

        def silence(longest: int) -> None:
            other = draw.choice(words or (self.quiet,))
            made.extend(
                (self.quiet, other, draw.uniform(0.85, 1)) for _ in range(draw.randint(0, longest))
            )

        silence(draw.choice((0, 2, 8)))
        for word in words:
            lasts = draw.choice((1, 2, 2, 3, 3, 4, 5))
            sure = draw.randrange(lasts)
            for moment in range(lasts):
                chance = draw.uniform(0.8, 1.0) if moment == sure else draw.uniform(0.35, 0.65)
                wrong = draw.random() < 0.06
                other = draw.choice(words) if wrong else self.quiet
                made.append((word, other, chance))
            silence(draw.choice((0, 0, 1, 3)))
        silence(draw.choice((0, 2, 8)))
        return made or [(self.quiet, self.quiet, 1.0)]

    @property
    def tokenizer_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def written(self, made: Positions, words: Sequence[int]) -> None:
        """A transcript; unknown words in a row are written as one."""
        kept = [w for n, w in enumerate(words) if not (n and w == words[n - 1] == self.unknown)]
        made.text([*kept, self.im_end], 1.0)

    def next_turn(self, made: Positions) -> None:
        """After a reply, whose last token ended the turn: the opening of the user's next one."""
        made.text(self.ids("\n"))
        made.text(self.ids("<|im_start|>user\n"))

    def opening(self, system: str) -> Positions:
        """Everything before the user's words, piece by piece as the chat state cuts it."""
        made = Positions()
        for piece in ("<|startoftext|>", "<|im_start|>system\n", system, "<|im_end|>\n",
                      "<|im_start|>user\n"):  # fmt: skip
            made.text(self.ids(piece))
        return made

    def answer(self, made: Positions) -> None:
        made.text(self.ids("<|im_end|>\n"))
        made.text(self.ids("<|im_start|>assistant\n"))

    def interleaved(self, made: Positions, reply: str, *, free: float, slots: float) -> None:
        """The reply, words and frames in time. `free` weighs the words, `slots` the empty slots;
        a negative `free` weighs that a word comes, whichever."""
        tokens, codes = self.aligned(reply)
        place = 0
        for token in tokens:
            made.text([token], slots if token == self.pad else free)
            if token == self.text_end:
                break
            made.spoken(codes[place : place + N_AUDIO])
            place += N_AUDIO
        made.spoken(codes[place:])
        made.spoken(np.full((1, BOOKS), END))
        made.text([self.im_end], 1.0)

    def aligned(self, reply: str) -> tuple[list[int], np.ndarray]:
        """Text slots, the last of them <|text_end|>, and all frames (n, 4)."""
        said = [(self.ids(word)[0], self.units.codes[word]) for word in words_of(reply)]
        slots: dict[int, int] = {}
        start = 0
        for token, codes in said:
            slots[start // N_AUDIO] = token
            start += len(codes)
        last = max(slots) + 1
        tokens = [slots.get(n, self.pad) for n in range(last)] + [self.text_end]
        return tokens, np.concatenate([codes for _, codes in said])

    def silent(self, made: Positions, reply: str) -> None:
        """The words of a reply alone."""
        made.text([self.ids(word)[0] for word in words_of(reply)], 1.0)
        made.text([self.im_end], 1.0)

    def spoken_whole(self, made: Positions, text: str) -> None:
        """The published order of text to speech: all frames at once."""
        made.text([self.audio_start], 1.0)
        made.spoken(self.units.say(text))
        made.spoken(np.full((1, BOOKS), END))
        made.text([self.im_end], 1.0)
