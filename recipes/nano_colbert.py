"""Trains nano-colbert, the bundled late-interaction checkpoint, from the data folder.

    python recipes/nano_colbert.py --data DIR [--minutes 90] [--out runs/nano_colbert]

It starts as weighted word matching (nano_colbert_model.word_table) and learns from there which
words mean alike: contrastive loss over MaxSim, at first among random passages of one source, then
among passages that BM25 confuses. An interrupted run goes on where it was: the same command again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from nano_colbert_batches import Batch, Drawer, mine
from nano_colbert_data import Source, load, synonyms
from nano_colbert_model import (
    Batcher,
    NanoColbert,
    max_similarities,
    save_folder,
    shape,
    word_table,
)
from nano_colbert_tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm.train import Plan, Training, settle

MINED = 20_000  # sources of more passages hold short ones, and BM25 on all of them takes its time
STAGE_TWO = 0.33  # of the run: from here on half of a batch are neighbours
TEMPERATURE = 0.5  # of a sum over 32 cosines
TEACHER_TEMPERATURE = 0.05  # of one cosine
SAVE_EVERY = 120  # seconds
# What a run may change when it goes on.
FREE = ("data", "out", "minutes", "steps", "report", "threads", "device", "part")


class Teacher(Protocol):
    """A sentence encoder: texts -> (n, size), rows of length 1."""

    def encode(self, texts: list[str], *, normalize_embeddings: bool) -> np.ndarray: ...


class Loss:
    """Cross-entropy of each query's own passage among all passages of the batch.

    With a teacher also the divergence from its ranking. (PyLate's Contrastive and Distillation want
    PyLate's model class and one padded batch, and score pair by pair: slower here.)
    """

    def __init__(
        self, model: NanoColbert, batcher: Batcher, length: int, part: int, teacher: Teacher | None
    ) -> None:
        self.model, self.batcher, self.teacher = model, batcher, teacher
        self.length, self.part = length, part  # tokens of a passage; passages in one pass

    def __call__(self, batch: Batch) -> Tensor:
        logits = self.scores(batch) / TEMPERATURE
        target = torch.tensor(batch.answers, device=logits.device)
        if self.teacher is None:
            return F.cross_entropy(logits, target)
        taught = teach(self.teacher, batch).to(logits)
        logits = logits.masked_fill(taught.isinf(), float("-inf"))
        divergence = F.kl_div(  # where both are 0 the term is 0, not 0 · inf
            logits.log_softmax(1).masked_fill(taught.isinf(), 0.0),
            taught.softmax(1),
            reduction="batchmean",
        )
        return (F.cross_entropy(logits, target) + divergence) / 2

    def scores(self, batch: Batch) -> Tensor:
        """(queries, documents). Documents of like length go together: little is padding."""
        queries = self.model(*self.batcher.queries(batch.queries))
        order = sorted(range(len(batch.documents)), key=lambda i: len(batch.documents[i]))
        columns = []
        for start in range(0, len(order), self.part):
            texts = [batch.documents[i] for i in order[start : start + self.part]]
            ids, real, counts = self.batcher.documents(texts, self.length)
            columns.append(max_similarities(queries, self.model(ids, real), counts))
        return torch.cat(columns, 1)[:, np.argsort(order)]


def teach(teacher: Teacher, batch: Batch) -> Tensor:
    """(queries, documents): the teacher's cosines over its temperature; -inf where it thinks that a
    passage answers the query about as well as its own."""
    queries = torch.as_tensor(teacher.encode(batch.queries, normalize_embeddings=True))
    documents = torch.as_tensor(teacher.encode(batch.documents, normalize_embeddings=True))
    cosines = queries @ documents.T
    own = torch.tensor(batch.answers)[:, None]
    doubtful = cosines > cosines.gather(1, own) - 0.05
    return (cosines / TEACHER_TEMPERATURE).masked_fill(
        doubtful.scatter(1, own, False), float("-inf")
    )


def open_teacher(folder: Path) -> Teacher:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)


def prepare(
    args: argparse.Namespace, sources: Sequence[Source], say: Callable[[str], None]
) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """The tokenizer and each source's neighbours, kept in the run's folder for the next start."""
    path = args.out / "tokenizer.json"
    if not path.exists():
        say("training the tokenizer")
        texts = (t for s in sources for p in s.passages for t in (p.text, *p.queries))
        path.write_text(train_tokenizer(texts, args.vocabulary).to_str(), encoding="utf-8")
    neighbours = {}
    for source in sources:
        if len(source.passages) > MINED:
            continue
        kept = args.out / f"neighbours-{source.name}.npy"
        if not kept.exists():
            say(f"mining neighbours of {len(source.passages)} passages of {source.name}")
            np.save(kept, mine(source))
        neighbours[source.name] = np.load(kept, allow_pickle=False)
    return Tokenizer.from_file(str(path)), neighbours


def train(args: argparse.Namespace, say: Callable[[str], None]) -> Path:
    """One run from data to checkpoint; returns the folder of the checkpoint."""
    torch.manual_seed(args.seed)
    args.documents = args.documents or (32 if args.device == "cpu" else 256)
    if args.threads:
        torch.set_num_threads(args.threads)
    settle(args.out, {k: v for k, v in vars(args).items() if k not in FREE})
    sources = load(args.data, sharealike=not args.no_sharealike)
    tokenizer, neighbours = prepare(args, sources, say)
    config = shape(tokenizer.get_vocab_size(), args.hidden, args.layers)
    model = NanoColbert(config, args.dim, args.seed)
    state, spent = args.out / "state.safetensors", 0.0
    if not state.exists():
        texts = [p.text for s in sources for p in s.passages]
        model.start_from(word_table(tokenizer, texts, args.hidden, args.seed), args.seed)
    model.to(args.device)
    plan = Plan(args.rate, args.table_rate)
    training = Training(model, plan, [model.backbone.embedding])
    if state.exists():
        spent = float(training.load(state)["seconds"])
        say(f"resumed at step {training.step}, after {spent / 60:.1f} minutes")
    batcher = Batcher(tokenizer, torch.device(args.device))
    teacher = open_teacher(args.teacher) if args.teacher else None
    drawer = Drawer(sources, neighbours, synonyms(args.data), args.documents, seed=args.seed)
    run(args, training, Loss(model, batcher, args.length, args.part, teacher), drawer, spent, say)
    training.use_averages()
    save_folder(model, tokenizer, args.out / "checkpoint")
    return args.out / "checkpoint"


def run(
    args: argparse.Namespace,
    training: Training,
    loss_of: Callable[[Batch], Tensor],
    drawer: Drawer,
    spent: float,
    say: Callable[[str], None],
) -> None:
    """Steps until --steps or --minutes are used up. Whatever ends the loop, the state is saved."""
    begun = saved = time.monotonic()
    mean = None
    try:
        while True:
            seconds = spent + time.monotonic() - begun
            done = training.step / args.steps if args.steps else seconds / (60 * args.minutes)
            if done >= 1:
                break
            batch = drawer.draw(training.step, hard=0.5 if done >= STAGE_TWO else 0.0)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                loss = loss_of(batch)
            norm = training.update(loss, done)
            mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
            if time.monotonic() - saved > SAVE_EVERY:
                save(training, args.out, spent + time.monotonic() - begun)
                saved = time.monotonic()
            if training.step % args.report == 0:
                say(f"step {training.step} ({done:.1%}, {seconds / 60:.1f} min) {batch.source} "
                    f"loss {loss.item():.4f} mean {mean:.4f} gradient {norm:.2f}")  # fmt: skip
    finally:
        save(training, args.out, spent + time.monotonic() - begun)


def save(training: Training, out: Path, seconds: float) -> None:
    training.save(out / "state.safetensors", {"seconds": f"{seconds:.1f}"})


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = words.add_argument
    add("--data", type=Path, required=True, help="folder that holds retrieval/ and text/")
    add("--out", type=Path, default=Path("runs/nano_colbert"))
    length = words.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=90, help="train by the clock; 90")
    length.add_argument("--steps", type=int, help="train so many steps: reproducible")
    add("--seed", type=int, default=0)
    add("--no-sharealike", action="store_true", help="leave out CC BY-SA sources")
    add("--teacher", type=Path, help="folder of a sentence encoder that helps to rank")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="of torch; 1 where others use the processor too")
    add("--vocabulary", type=int, default=16384)
    add("--hidden", type=int, default=192)
    add("--layers", default="ccac", help="c: convolution, a: attention")
    add("--dim", type=int, default=128, help="numbers of a vector")
    add("--documents", type=int, help="passages in a batch; 32 on a CPU, 256 on a GPU")
    add("--length", type=int, default=180, help="tokens of a passage in training")
    add("--part", type=int, default=16, help="passages in one pass; more suits a GPU")
    add("--rate", type=float, default=1e-3)
    add("--table-rate", type=float, default=5e-4)
    add("--bf16", action=argparse.BooleanOptionalAction, default=True)
    add("--report", type=int, default=10, help="steps between two lines")
    return words


def main() -> None:
    args = parser().parse_args()
    folder = train(args, lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True))
    print(folder)


if __name__ == "__main__":
    main()
