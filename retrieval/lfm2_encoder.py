"""LFM2-ColBERT on our own backbone: marked ids -> hidden states -> projection -> rows of length 1.

Knows both members: causal (LFM2-ColBERT) and bidirectional (LFM2.5-ColBERT). A text's vectors do
not depend on its batch, where the references' do. The rule: a document is what it is alone; the
expansion tokens of a query are no keys of the attention, and are hidden from the convolution in the
causal model only, as each reference runs its queries in batches of two and more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lfm2_mm.backbone import Backbone
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.weights import read_json, read_tensors
from retrieval.colbert_files import Projection, read_projections, read_settings
from retrieval.colbert_tokenizer import ColbertTokenizer, Marked
from retrieval.encoder import OfFolder, Progress

CAUSAL = ("Lfm2Model", "Lfm2ForCausalLM", "Lfm2MoeModel", "Lfm2MoeForCausalLM")
BIDIRECTIONAL = "Lfm2BidirectionalModel"
# Hidden numbers of one pass (tokens x hidden_size). On a CPU 512 tokens of the 350M shape: one long
# document fills the caches, and at 1,200 tokens int8 takes half as long again. Small models gain
# from more tokens, and a GPU wants all it can get.
BATCH_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 25}
PADDING = 0.2  # share of a text's row that may be padding: padding is work too
WINDOW = 4096  # texts that are tokenized and sorted by length together


class Lfm2Encoder(OfFolder):
    """The `Encoder` over a folder saved by PyLate around an LFM2 trunk."""

    def __init__(self, folder: Path, *, name: str, device: str = "auto", dtype: str = "auto"):
        self.settings = read_settings(folder)
        self.tokenizer = ColbertTokenizer.open(folder, self.settings)
        projections = read_projections(folder)
        self.bidirectional = _is_bidirectional(folder)
        self.backbone = Backbone.open(
            folder, device=device, dtype=dtype, bidirectional=self.bidirectional, head=False
        )
        self.backbone.eval()
        config = self.backbone.config
        _check_sizes(folder, self.tokenizer, config.vocab_size, config.hidden_size, projections)
        self.device = self.backbone.device
        self.head = nn.Sequential(*map(Dense.open, projections)).to(self.device).eval()
        self.batch_tokens = max(1, BATCH_NUMBERS[self.device.type] // config.hidden_size)
        self.name = name
        self.dim = projections[-1].out_features
        self.query_length = self.settings.query_length
        self.document_length = self.settings.document_length
        self.folder = folder

    def encode_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """(tokens, dim) float32 for each query, expansion included."""
        return self._encode(self.tokenizer.queries(texts), queries=True, progress=None)

    def encode_documents(
        self, texts: Sequence[str], progress: Progress | None = None
    ) -> list[np.ndarray]:
        """(tokens_i, dim) float32 for each document, in the order of `texts`."""
        vectors: list[np.ndarray] = []
        for start in range(0, len(texts), WINDOW):
            marked = self.tokenizer.documents(texts[start : start + WINDOW])
            vectors += self._encode(marked, queries=False, progress=progress)
        return vectors

    def _encode(
        self, marked: Sequence[Marked], *, queries: bool, progress: Progress | None
    ) -> list[np.ndarray]:
        vectors: list[np.ndarray] = [np.empty((0, self.dim), np.float32)] * len(marked)
        for batch in batches([len(m.ids) for m in marked], self.batch_tokens):
            rows = self._forward([marked[i] for i in batch], queries)
            for i, row in zip(batch, rows, strict=True):
                vectors[i] = row
            if progress is not None:
                progress(len(batch))
        return vectors

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Marked], queries: bool) -> list[np.ndarray]:
        """Vectors of texts of similar length, in one pass."""
        width = max(len(m.ids) for m in batch)
        ids = np.zeros((len(batch), width), np.int64)
        real = np.zeros((len(batch), width), bool)
        keep = np.zeros((len(batch), width), bool)
        for row, m in enumerate(batch):
            ids[row, : len(m.ids)] = m.ids
            real[row, : m.real] = True
            keep[row, m.keep] = True
        hidden = self._hidden(self._tensor(ids), self._tensor(real), queries)
        vectors = normalize(self.head(hidden[self._tensor(keep)].float()), dim=-1)
        if not torch.isfinite(vectors).all():
            raise CheckpointDamaged(
                f"{self.name} gives vectors that are not finite; "
                "its weights are damaged: fetch or train it again"
            )
        return np.split(vectors.cpu().numpy(), np.cumsum(keep.sum(1))[:-1])

    def _hidden(self, ids: Tensor, real: Tensor, queries: bool) -> Tensor:
        embeds = self.backbone.embed(ids)
        if real.all() or not (queries or self.bidirectional):
            return self.backbone(embeds)  # nobody looks ahead: padding at the end is harmless
        return self.backbone(embeds, real, convolve_padding=queries and self.bidirectional)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class Dense(nn.Module):
    """One projection: activation(W x + b), plus x or R x where the checkpoint has a residual."""

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        size = (projection.in_features, projection.out_features)
        self.linear = nn.Linear(*size, bias=projection.bias)
        self.activation = getattr(nn, projection.activation)()
        self.use_residual = projection.use_residual
        if self.use_residual and size[0] != size[1]:
            self.residual: nn.Module = nn.Linear(*size, bias=False)
        else:
            self.residual = nn.Identity()

    @classmethod
    def open(cls, projection: Projection) -> Dense:
        """With its weights, in float32. Raises CheckpointDamaged unless they fit exactly."""
        with torch.device("meta"):
            dense = cls(projection)
        weights = {key: tensor.float() for key, tensor in read_tensors(projection.folder)}
        try:
            dense.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointDamaged(
                f"{projection.folder} and its config.json differ: {error}"
            ) from error
        return dense

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.linear(x))
        return y + self.residual(x) if self.use_residual else y


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of `lengths`, longest first, in groups of at most `budget` padded tokens.

    A group holds at least one text, and none whose padding is more than PADDING of the longest.

    >>> list(batches([3, 9, 3, 8], budget=17))
    [[1], [3], [0, 2]]
    """
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[group[0]] if group else 0
        full = longest * (len(group) + 1) > budget
        if group and (full or longest - lengths[i] > PADDING * longest):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _is_bidirectional(folder: Path) -> bool:
    architectures = read_json(folder / "config.json").get("architectures")
    if architectures == [BIDIRECTIONAL]:
        return True
    if architectures and architectures[0] in CAUSAL:
        return False
    raise BadInput(
        f"{folder / 'config.json'}: architectures is {architectures!r}; this encoder runs "
        f"{', '.join(CAUSAL)} and {BIDIRECTIONAL}"
    )


def _check_sizes(
    folder: Path,
    tokenizer: ColbertTokenizer,
    vocab_size: int,
    hidden_size: int,
    projections: Sequence[Projection],
) -> None:
    if tokenizer.largest_id >= vocab_size:
        raise CheckpointDamaged(
            f"{folder}: the tokenizer has id {tokenizer.largest_id}, the "
            f"embedding {vocab_size} rows; save both with PyLate again"
        )
    width = hidden_size
    for projection in projections:
        if projection.in_features != width:
            raise CheckpointDamaged(
                f"{projection.folder} takes {projection.in_features} features and is given {width}"
            )
        width = projection.out_features
