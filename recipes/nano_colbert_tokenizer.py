"""The tokenizer of nano-colbert: byte-level BPE over lower-case words without accents.

Blanks are dropped and camelCase is parted, so that a word has one beginning wherever it stands;
what continues a word is marked with "##". Rare words thus fall into few pieces, always the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFKD, Lowercase, Replace, StripAccents
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

SPECIAL = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>",
           "<|fim_suf|>", "<|im_start|>", "<|im_end|>")  # fmt: skip
PAD, BOS, EOS = 0, 1, 7
MARKERS = ("[Q] ", "[D] ")  # the last two rows of the table, as in LFM2-ColBERT-350M
CONTINUED = "##"


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of `size` entries, special tokens and markers included.

    The same texts give the same tokenizer.
    """
    tokenizer = pipeline(BPE(continuing_subword_prefix=CONTINUED))
    alphabet = sorted(ByteLevel.alphabet())
    # Every continued byte must have an entry: BPE has no unknown token, what it lacks would vanish.
    # Only special tokens get their ids in the order given; the other ways differ by run.
    trainer = BpeTrainer(
        vocab_size=size - len(MARKERS),
        min_frequency=2,
        initial_alphabet=alphabet,
        continuing_subword_prefix=CONTINUED,
        special_tokens=[*SPECIAL, *alphabet, *(CONTINUED + letter for letter in alphabet)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]  # without those that were special for this
    merges = [tuple(pair) for pair in model["merges"]]
    made = pipeline(BPE(model["vocab"], merges, continuing_subword_prefix=CONTINUED))
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    made.add_tokens([AddedToken(m, special=False, normalized=False) for m in MARKERS])
    made.post_processor = TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A",
        pair=f"{SPECIAL[BOS]} $A $B",
        special_tokens=[(SPECIAL[BOS], BOS)],
    )
    return made


def pipeline(model: BPE) -> Tokenizer:
    """A tokenizer that parts text into words for `model`."""
    tokenizer = Tokenizer(model)
    camel_case = Replace(Regex(r"(?<=\p{Ll})(?=\p{Lu})"), " ")
    tokenizer.normalizer = Normalizers([camel_case, NFKD(), StripAccents(), Lowercase()])
    words = Split(Regex(r"[\p{L}\p{M}]+|\p{N}+|."), "isolated")
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = PreTokenizers([WhitespaceSplit(), words, byte_level])
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer
