"""The tokenizer of nano-audio: one token a word, and a token for each word it does not know.

A text is read as if a blank stood before it, so that a word has one token wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from nano_audio_language import DIGITS, LETTERS, lexicon
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

SPECIAL = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>",
           "<|fim_suf|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|text_end|>",
           "<|text_pad|>")  # fmt: skip
PAD, QUIET = "<|text_pad|>", "<|pad|>"
BLANK = "Ġ"  # how byte-level tokenizers write it
UNKNOWN = BLANK + "[?]"  # a word that is not known; what is written down shows where one was
PROMPTS = ("Respond with interleaved text and audio.", "Perform ASR.", "Perform TTS.",
           "Use the US female voice.", "Use the US male voice.", "Use the UK female voice.",
           "Use the UK male voice.")  # fmt: skip
ROLES = ("system", "user", "assistant")


def make_tokenizer(heard: Iterable[str]) -> Tokenizer:
    """A tokenizer that knows what can be said, what `heard` holds besides, and the prompts."""
    marks = [",", ".", "?"]
    words = [*lexicon(), *DIGITS, *LETTERS, *sorted(set(heard))]
    words += [w.strip(".") for prompt in PROMPTS for w in prompt.split()]
    entries = [*SPECIAL, "Ċ", UNKNOWN, *marks, *(BLANK + w for w in (*ROLES, *words))]
    vocabulary = {token: row for row, token in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Sequence(
        [
            ByteLevel(add_prefix_space=True, use_regex=False),
            Split(Regex(r"Ġ+(?=[Ċ,.?]|$)"), "removed"),
            Split(Regex(r"Ċ|[,.?]|Ġ*[^Ġ,.?Ċ]+"), "isolated"),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def files(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json of the checkpoint folder."""
    return {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|startoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "clean_up_tokenization_spaces": False,
        },
    }
