"""nano-colbert as a module: backbone, projection, MaxSim, where its weights start, and its files.

Knows tensors and the file format; knows nothing of sources or of how long to train.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import Stemmer
import torch
from nano_colbert_tokenizer import BOS, EOS, MARKERS, PAD, SPECIAL
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig
from lfm2_mm.weights import write

QUERY_LENGTH, DOCUMENT_LENGTH = 32, 300
CARD = Path(__file__).with_name("nano_colbert_card.md")


def shape(vocabulary: int, hidden: int = 192, layers: str = "ccac") -> BackboneConfig:
    """`layers` spells the blocks: c for convolution, a for attention."""
    kinds = tuple({"c": "conv", "a": "full_attention"}[letter] for letter in layers)
    return BackboneConfig(
        vocab_size=vocabulary, hidden_size=hidden, layer_types=kinds, heads=hidden // 32,
        kv_heads=hidden // 96 or 1, feed_forward=2 * hidden, head_dim=32, max_positions=4096,
    )  # fmt: skip


class NanoColbert(nn.Module):
    """ids -> one vector of length 1 for each token, as PyLate computes LFM2-ColBERT."""

    def __init__(self, config: BackboneConfig, dim: int, seed: int = 0) -> None:
        super().__init__()
        self.backbone = Backbone.new(config, seed=seed)
        self.dense = nn.Linear(config.hidden_size, dim, bias=False)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """ids (batch, tokens) int64, real (batch, tokens) bool -> (batch, tokens, dim)."""
        hidden = self.backbone(self.backbone.embed(ids), real)
        return F.normalize(self.dense(hidden).float(), dim=-1)

    @torch.no_grad()
    def start_from(self, table: Tensor, seed: int = 0) -> None:
        """Begin as the word matching that `table` is.

        Blocks that add little, a projection that keeps angles: training bends a good beginning
        instead of looking for one.
        """
        generator = torch.Generator().manual_seed(seed)
        self.backbone.embedding.copy_(table)
        for name, parameter in self.backbone.layers.named_parameters():
            if parameter.dim() > 1:
                inputs = parameter.shape[0] if name.endswith("conv.weight") else parameter.shape[1]
                quiet = 0.1 if name.endswith(("out_proj.weight", "w2.weight")) else 1.0
                parameter.normal_(0.0, quiet * inputs**-0.5, generator=generator)
        square = torch.randn(table.shape[1], table.shape[1], generator=generator)
        self.dense.weight.copy_(torch.linalg.qr(square).Q[: self.dense.weight.shape[0]])


def max_similarities(queries: Tensor, documents: Tensor, counts: Tensor) -> Tensor:
    """MaxSim of every query with every document, as pylate.scores.colbert_scores, in one product.

    queries (Q, tokens, dim), documents (D, tokens, dim), counts (D, tokens) bool -> (Q, D)
    """
    size = (*queries.shape[:2], *documents.shape[:2])
    cosines = (queries.flatten(0, 1) @ documents.flatten(0, 1).T).view(size)
    return cosines.masked_fill(~counts, float("-inf")).max(-1).values.sum(1)


def word_table(
    tokenizer: Tokenizer, texts: Sequence[str], hidden: int, seed: int = 0, shared: float = 0.7
) -> Tensor:
    """(vocabulary, hidden): embeddings that make MaxSim weigh words by their rarity.

    A row is  (1 - g) common + sqrt(1 - (1 - g)²) own,  g in 0..1 growing with the token's inverse
    document frequency. Every document holds something near the common direction, so a query token
    that is not found scores 1 - g and one that is found 1: rare words decide, frequent ones hardly
    count. `own` is random, but words of one stem share most of it.
    """
    names = {i: name for name, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    rarity = rarities(tokenizer, texts, len(names))
    gain = 0.05 + 0.95 * rarity / rarity.max()
    silent = [i for i, name in names.items() if name in (*SPECIAL, *MARKERS)]
    gain[silent] = 0.0
    gain[[i for i, name in names.items() if name in string.punctuation]] = 0.02
    random, stem = np.random.default_rng(seed), Stemmer.Stemmer("english").stemWord
    stems: dict[str, np.ndarray] = {}
    own = np.zeros((len(names), hidden - 1))
    for i in range(len(names)):
        word = random.standard_normal(hidden - 1)
        common = stems.setdefault(stem(names[i]), random.standard_normal(hidden - 1))
        own[i] = shared * unit(common) + (1 - shared) * unit(word)
    own *= np.sqrt(1 - (1 - gain[:, None]) ** 2) / np.linalg.norm(own, axis=1, keepdims=True)
    table = np.concatenate([1 - gain[:, None], own], axis=1)
    return torch.from_numpy(table * hidden**0.5).float()  # entries near 1, as RMS norm expects


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def rarities(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> np.ndarray:
    """Inverse document frequency of each token."""
    counts = np.zeros(size)
    for start in range(0, len(texts), 20_000):
        for encoding in tokenizer.encode_batch_fast(
            list(texts[start : start + 20_000]), add_special_tokens=False
        ):
            counts[np.unique(encoding.ids)] += 1
    return np.log((len(texts) + 1) / (counts + 1))


class Batcher:
    """Texts -> padded ids with markers, as PyLate tokenizes."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.markers = [tokenizer.token_to_id(marker) for marker in MARKERS]
        self.skip = torch.tensor([tokenizer.token_to_id(c) for c in string.punctuation])

    def ids(self, texts: Sequence[str], marker: int, length: int) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[BOS, marker, *e.ids[: length - 2]] for e in encodings]

    def queries(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids (Q, 32), filled with the expansion token; real (Q, 32) bool, False at the filling."""
        return self.padded(self.ids(texts, self.markers[0], QUERY_LENGTH), EOS, QUERY_LENGTH)

    def documents(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids, real and counts (real and no punctuation), each (D, tokens)."""
        rows = self.ids(texts, self.markers[1], length)
        ids, real = self.padded(rows, PAD, max(map(len, rows)))
        return ids, real, real & ~torch.isin(ids, self.skip.to(ids.device))

    def padded(self, rows: Iterable[list[int]], fill: int, width: int) -> tuple[Tensor, Tensor]:
        rows = list(rows)
        ids = torch.full((len(rows), width), fill)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        real = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
        return ids.to(self.device), real.to(self.device)


def save_folder(model: NanoColbert, tokenizer: Tokenizer, folder: Path) -> None:
    """The folder as PyLate 1.6.0 saves LFM2-ColBERT-350M, weights in bfloat16."""
    config = model.backbone.config
    dense = model.dense.weight.detach()
    plain = {key: t.bfloat16() for key, t in model.backbone.state_tensors().items()}
    names = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[PAD]}
    files: dict[str, Any] = {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "tokenizer_config.json": names | {
            "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True,
            "add_eos_token": False, "clean_up_tokenization_spaces": False,
            "model_max_length": DOCUMENT_LENGTH - 1,
        },
        "special_tokens_map.json": names,
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        ],
        "1_Dense/config.json": {
            "in_features": dense.shape[1], "out_features": dense.shape[0], "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity", "use_residual": False,
        },
        "1_Dense/model.safetensors": save({"linear.weight": dense.float().cpu().contiguous()}),
        "config_sentence_transformers.json": colbert_settings(),
        "sentence_bert_config.json": {
            "max_seq_length": DOCUMENT_LENGTH - 1, "do_lower_case": False,
        },
        "MODEL_CARD.md": CARD.read_text(encoding="utf-8"),
    }  # fmt: skip
    # dtype is what PyLate computes in: the file is bfloat16, the arithmetic need not be.
    trunk = config.to_json() | {"architectures": ["Lfm2Model"], "dtype": "float32"}
    write(folder, plain, trunk, files)


def colbert_settings() -> dict[str, Any]:
    return {
        "model_type": "ColBERT",
        "__version__": {"sentence_transformers": "5.3.0", "transformers": "5.3.0"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": MARKERS[0],
        "document_prefix": MARKERS[1],
        "query_length": QUERY_LENGTH,
        "document_length": DOCUMENT_LENGTH,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": True,
    }
