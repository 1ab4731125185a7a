"""The tokenizer of nano-colbert: byte-level BPE over lower-case words without accents.

Blanks are dropped and camelCase is parted, so that a word has one beginning wherever it stands;
what continues a word is marked with "##". Rare words thus fall into few pieces, always the same.
"""

from __future__ import annotations

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
    """A tokenizer of `size` entries, special tokens and markers included."""
    tokenizer = Tokenizer(BPE(continuing_subword_prefix=CONTINUED))
    camel_case = Replace(Regex(r"(?<=\p{Ll})(?=\p{Lu})"), " ")
    tokenizer.normalizer = Normalizers([camel_case, NFKD(), StripAccents(), Lowercase()])
    words = Split(Regex(r"[\p{L}\p{M}]+|\p{N}+|."), "isolated")
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = PreTokenizers([WhitespaceSplit(), words, byte_level])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size - len(MARKERS),
        min_frequency=2,
        initial_alphabet=ByteLevel.alphabet(),
        continuing_subword_prefix=CONTINUED,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(with_every_byte(texts), trainer)
    tokenizer.add_tokens([AddedToken(m, normalized=False, special=False) for m in MARKERS])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A",
        pair=f"{SPECIAL[BOS]} $A $B",
        special_tokens=[(SPECIAL[BOS], BOS)],
    )
    return tokenizer


def with_every_byte(texts: Iterable[str]) -> Iterable[str]:
    """The texts, after words that hold every byte of UTF-8 within a word.

    BPE has no unknown token: a byte whose "##" form was never seen would vanish.
    """
    ascii_letters = "".join(chr(c) for c in range(33, 127))
    yield from (f"x{c}" for c in ascii_letters)
    yield from (f"a{chr(c)}" for c in range(0x80, 0x110000, 61) if not 0xD800 <= c < 0xE000)
    yield f"a{ascii_letters}"
    yield from texts
