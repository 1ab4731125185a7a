"""Trains nano-colbert, the bundled late-interaction checkpoint, from the data folder.

    python recipes/nano_colbert.py --data DIR --minutes 90 --out runs/nano_colbert

It starts as weighted word matching (nano_colbert_model.word_table) and learns from there which words
mean alike: contrastive loss over MaxSim, at first among random passages of one source, then more and
more among passages that BM25 confuses. Interrupted runs go on where they were (the same command again).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

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

from lfm2_mm.train import Plan, Training

MINED = 20_000  # sources of more passages hold short ones, and BM25 on all of them takes its time
TEMPERATURE = 0.5  # of a sum over 32 cosines


def loss_of(model: NanoColbert, batcher: Batcher, batch: Batch, length: int, part: int) -> Tensor:
    """Cross-entropy of each query's own passage among all passages of the batch.

    Documents go through in parts of like length, so that little is padding. (PyLate's Contrastive
    wants its own model class, pads a batch to its longest and scores pair by pair: slower here.)
    """
    queries = model(*batcher.queries(batch.queries))
    order = sorted(range(len(batch.documents)), key=lambda i: len(batch.documents[i]))
    scores = []
    for start in range(0, len(order), part):
        texts = [batch.documents[i] for i in order[start : start + part]]
        ids, real, counts = batcher.documents(texts, length)
        scores.append(max_similarities(queries, model(ids, real), counts))
    place = {document: column for column, document in enumerate(order)}
    target = torch.tensor([place[answer] for answer in batch.answers], device=queries.device)
    return F.cross_entropy(torch.cat(scores, 1) / TEMPERATURE, target)


def hardness(progress: float) -> float:
    """Stage 1, random passages; stage 2, from a third of the run on: neighbours, half of the batch."""
    return 0.0 if progress < 0.33 else 0.5


def prepare(args: argparse.Namespace, sources: list[Source], say: Callable[[str], None]):
    """Tokenizer, first weights and neighbours, kept in the run's folder for the next start."""
    kept = args.out / "tokenizer.json"
    texts = [p.text for s in sources for p in s.passages]
    if not kept.exists():
        say("training the tokenizer")
        asked = [q for s in sources for p in s.passages for q in p.queries]
        tokenizer = train_tokenizer([*texts, *asked], args.vocabulary)
        kept.write_text(tokenizer.to_str(), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(kept))
    near = {}
    for source in sources:
        if len(source.passages) > MINED:
            continue
        path = args.out / f"neighbours-{source.name}.npy"
        if not path.exists():
            say(f"mining neighbours of {len(source.passages)} passages of {source.name}")
            np.save(path, mine(source))
        near[source.name] = np.load(path, allow_pickle=False)
    return tokenizer, texts, near


def train(args: argparse.Namespace, say: Callable[[str], None]) -> NanoColbert:
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    sources = load(args.data, sharealike=not args.no_sharealike)
    tokenizer, texts, near = prepare(args, sources, say)
    model = NanoColbert(shape(tokenizer.get_vocab_size(), args.hidden, args.layers), args.dim, args.seed)
    state = args.out / "state.safetensors"
    training = Training(model, Plan(args.rate, args.table_rate), [model.backbone.embedding])
    spent = 0.0
    if state.exists():
        spent = float(training.load(state)["seconds"])
        say(f"resumed at step {training.step}, after {spent / 60:.1f} minutes")
    else:
        model.start_from(word_table(tokenizer, texts, args.hidden, args.seed), args.seed)
        training = Training(model, Plan(args.rate, args.table_rate), [model.backbone.embedding])
        save_folder(model, tokenizer, args.out / "start")
    batcher = Batcher(tokenizer, device)
    drawer = Drawer(sources, near, synonyms(args.data), args.documents, seed=args.seed)
    run(args, training, lambda batch: loss_of(model, batcher, batch, args.length, args.part), drawer,
        state, spent, say)  # fmt: skip
    training.use_averages()
    save_folder(model, tokenizer, args.out / "checkpoint")
    return model


def run(args, training: Training, loss_of: Callable[[Batch], Tensor], drawer: Drawer, state: Path,
        spent: float, say: Callable[[str], None]) -> None:  # fmt: skip
    """Steps until --steps or --minutes are used up; the state is saved every two minutes."""
    begun, saved, mean = time.monotonic() - spent, time.monotonic(), None
    while True:
        seconds = time.monotonic() - begun
        progress = training.step / args.steps if args.steps else seconds / (60 * args.minutes)
        if progress >= 1:
            break
        batch = drawer.draw(training.step, hardness(progress))
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = loss_of(batch)
        norm = training.update(loss, progress)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if training.step % args.report == 0:
            say(f"step {training.step} {progress:.1%} loss {loss.item():.4f} mean {mean:.4f} "
                f"norm {norm:.2f} {batch.source} {seconds / 60:.1f} min")  # fmt: skip
        if time.monotonic() - saved > 120:
            training.save(state, {"seconds": str(time.monotonic() - begun)})
            saved = time.monotonic()
    training.save(state, {"seconds": str(time.monotonic() - begun)})


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--data", type=Path, required=True, help="folder that holds retrieval/ and text/")
    words.add_argument("--out", type=Path, default=Path("runs/nano_colbert"))
    length = words.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="train by the clock")
    length.add_argument("--steps", type=int, help="train this many steps: reproducible")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--no-sharealike", action="store_true", help="leave out CC BY-SA sources")
    words.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    words.add_argument("--vocabulary", type=int, default=16384)
    words.add_argument("--hidden", type=int, default=192)
    words.add_argument("--layers", default="ccac", help="c: convolution, a: attention")
    words.add_argument("--dim", type=int, default=128)
    words.add_argument("--threads", type=int, help="of torch; 1 where others use the processor too")
    words.add_argument("--documents", type=int, default=32, help="passages in a batch")
    words.add_argument("--length", type=int, default=180, help="tokens of a passage in training")
    words.add_argument("--part", type=int, default=16, help="passages in one pass")
    words.add_argument("--rate", type=float, default=1e-3)
    words.add_argument("--table-rate", type=float, default=5e-4)
    words.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    words.add_argument("--report", type=int, default=20, help="steps between two lines")
    return words


def main() -> None:
    args = parser().parse_args()
    train(args, lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True))


if __name__ == "__main__":
    main()
