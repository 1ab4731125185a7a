"""An independent listener: pocketsphinx. Judging only.

With a language model of single words it knows no sentence, so that what it hears it heard; with a
grammar it only tells apart what could be said. Words that sound alike ("two", "to") count as equal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RATE = 16_000
ALIKE = {"to": "two", "too": "two", "for": "four", "won": "one", "eye": "i", "hi": "high",
         "sea": "see", "c": "see", "u": "you", "b": "be", "r": "are", "y": "why", "t": "tea",
         "our": "hour", "by": "buy", "bye": "buy", "new": "knew", "no": "know", "right": "write",
         "read": "red", "here": "hear", "son": "sun", "their": "there", "eight": "ate",
         "week": "weak", "whole": "hole", "son's": "sun"}  # fmt: skip


class Judge:
    """Hears words of `words` and no others; `unknown` are those that its dictionary lacks."""

    def __init__(self, words: Sequence[str], grammar: str | None = None) -> None:
        """`grammar`, in JSGF, takes the place of single words."""
        from pocketsphinx import Decoder, NGramModel, get_model_path

        self._decoder = Decoder(
            hmm=get_model_path("en-us/en-us"),
            dict=get_model_path("en-us/cmudict-en-us.dict"),
            lm=None,
            loglevel="FATAL",
        )
        lower = sorted({w.lower() for w in words})
        self.unknown = [w for w in lower if self._decoder.lookup_word(w) is None]
        if grammar is not None:
            self._decoder.add_jsgf_string("said", grammar)
            self._decoder.activate_search("said")
            return
        with tempfile.NamedTemporaryFile("w", suffix=".lm", delete=False) as file:
            file.write(unigrams([w for w in lower if w not in self.unknown]))
        model = NGramModel(self._decoder.config, self._decoder.logmath, file.name)
        self._decoder.add_lm("words", model)
        self._decoder.activate_search("words")
        Path(file.name).unlink()

    def hear(self, samples: np.ndarray, rate: int) -> list[str]:
        """Words in samples (n,) float32."""
        import torch
        from torchaudio.functional import resample

        narrow = resample(torch.from_numpy(np.asarray(samples, np.float32)), rate, RATE)
        narrow = narrow * (0.5 / max(1e-6, float(narrow.abs().max())))
        self._decoder.start_utt()
        self._decoder.process_raw(
            (narrow.numpy() * 32767).astype(np.int16).tobytes(), full_utt=True
        )
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return [w.split("(")[0] for w in heard.hypstr.split()] if heard else []


def unigrams(words: Sequence[str]) -> str:
    """An ARPA model in which all words are equally likely."""
    weight = -np.log10(len(words) + 1)
    rows = [f"{weight:.4f} {word}" for word in ("</s>", *words)]
    head = f"\\data\\\nngram 1={len(words) + 2}\n\n\\1-grams:\n-99 <s>\n"
    return head + "\n".join(rows) + "\n\n\\end\\\n"


def same(word: str) -> str:
    """One spelling for words that sound alike."""
    return ALIKE.get(word.lower(), word.lower())


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words to change, add or drop between the two (edit distance)."""
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(heard, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (same(a) != same(b)))
    return row[-1]
