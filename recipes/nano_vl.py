"""Trains nano-vl, the bundled vision checkpoint, on pictures it draws itself.

    python recipes/nano_vl.py --data DIR [--minutes 120] [--out runs/nano_vl]

First the tower alone learns which character covers each small cell (without that, reading does not
begin in any time a CPU has), then all of it learns to answer. The rate falls with the root of the
steps, so that a run can go on for as long as there is time; `--finish N` lets it fall to nothing in
N steps, on a copy of the state, and writes the checkpoint. An interrupted run goes on where it was;
`--begin FOLDER` goes on from a finished checkpoint where the state of its run is gone.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from nano_vl_batches import Batches, Part, chat, vocabulary
from nano_vl_files import open_folder, save_folder
from nano_vl_model import (
    Attentions,
    NanoVL,
    Shape,
    cross_entropy_of_labels,
)
from nano_vl_scenes import Gallery
from nano_vl_tokens import END, Scribe, make_tokenizer
from nano_vl_training import Training
from nano_vl_words import TRAINING_FONTS, Lexicon, load_words
from together import Together, joined
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from lfm2_mm.train import settle

SAVE_EVERY = 180  # seconds
BLANK_CELL, BLANK_PATCH = 0.25, 0.25
GUIDED = 0.5
TURNS = 4.0  # weight of what begins or ends a line or an answer: whole lines hang on it
RAMP, FALL = 100, 600  # steps: the rate rises for some, and falls with the root after others
APART = 100  # steps after the warm-up
HEADS = 200  # steps that heads of labels, which no checkpoint keeps, are fitted to a finished tower
APART_BY = 10_000  # seeds of processes side by side
HEARD = 0.1  # of the answers' gradient: more of it, as noisy as it is, unteaches the tower letters
# What a run may change when it goes on.
FREE = ("data", "out", "begin", "minutes", "steps", "finish", "report", "threads", "processes",
        "device")  # fmt: skip


class Loss:
    """Answers' cross-entropy, and that of labels under the tower."""

    def __init__(self, model: NanoVL, scribe: Scribe, device: str) -> None:
        self.model, self.device, self.attentions = model, device, Attentions()
        self.opening = torch.tensor(scribe.opening, device=device)
        (self.line_break,) = scribe.newline

    def __call__(self, part: Part, apart: bool = False) -> tuple[Tensor, dict[str, float]]:
        """`apart`: answers teach the backbone but not yet the tower, which knows better."""
        seen, loss = None, torch.zeros((), device=self.device)
        told: dict[str, float] = {}
        with torch.autocast(self.device, torch.bfloat16):
            if part.patches is not None:
                with torch.set_grad_enabled(part.labelled):
                    features = self.model.see(part.patches.to(self.device), part.rows, part.columns)
                if part.labelled:
                    loss, told = self.labels(part, features)
                if part.ids is not None:
                    shown = features.detach().lerp(features, 0.0 if apart else HEARD)
                    seen = self.model.vision.projector(shown, part.rows, part.columns)
            if part.ids is not None and part.answers is not None:
                answer, right = self.answers(part, seen)
                loss, told = loss + answer, told | {"answer": answer.item(), "token": right}
                if part.looks is not None and (part.looks >= 0).any():
                    guidance = self.guidance(part.looks.to(self.device))
                    loss, told = loss + GUIDED * guidance, told | {"look": guidance.item()}
        return loss, told

    def labels(self, part: Part, features: Tensor) -> tuple[Tensor, dict[str, float]]:
        assert part.cells is not None and part.kinds is not None and part.colours is not None
        alone = part.ids is None
        cells = part.cells.to(self.device)
        logits = self.model.cells(features).view(*cells.shape, -1)
        loss = cross_entropy_of_labels(logits, cells, BLANK_CELL) * (1.0 if alone else 0.5)
        told = {}
        if (cells > 0).any():
            inked = cells > 0
            right = (logits.detach().argmax(-1) == cells)[inked].float().mean()
            told = {"cells": right.item()}
        if part.kinds.any() or part.colours.any():
            for head, labels in (
                (self.model.kinds, part.kinds),
                (self.model.colours, part.colours),
            ):
                loss = loss + 0.4 * cross_entropy_of_labels(
                    head(features), labels.to(self.device), BLANK_PATCH
                )
        return loss, told

    def guidance(self, looks: Tensor) -> Tensor:
        """Each letter is to be read where it lies: attention is told so, as dense labels tell the
        tower. Without it the backbone finds the place of the first letter late."""
        rows, places = (looks >= 0).nonzero(as_tuple=True)
        asked = self.attentions.asked[-1][0].shape[2] - looks.shape[1] + places - 1
        return self.attentions.guidance(rows, asked, len(self.opening) + looks[rows, places])

    def answers(self, part: Part, seen: Tensor | None) -> tuple[Tensor, float]:
        assert part.ids is not None and part.answers is not None
        ids, answers = part.ids.to(self.device), part.answers.to(self.device)
        self.attentions.asked.clear()
        hidden = self.model.read(self.opening, seen, ids)
        wanted = ids[:, 1:][answers[:, 1:]]
        logits = self.model.backbone.logits(hidden[:, :-1][answers[:, 1:]]).float()
        right = (logits.detach().argmax(-1) == wanted).float().mean()
        before = ids[:, :-1][answers[:, 1:]]
        turn = (before == self.line_break) | (wanted == self.line_break) | (wanted == END)
        weights = 1 + (TURNS - 1) * turn.float()
        loss = F.cross_entropy(logits, wanted, reduction="none")
        return (loss * weights).sum() / weights.sum(), right.item()


class Means:
    """Running means of what parts tell, by part and quantity."""

    def __init__(self, keep: float = 0.97) -> None:
        self.keep, self.values = keep, dict[str, float]()

    def add(self, name: str, told: dict[str, float]) -> None:
        for key, value in told.items():
            old = self.values.get(f"{name}.{key}", value)
            self.values[f"{name}.{key}"] = self.keep * old + (1 - self.keep) * value

    def __str__(self) -> str:
        told = {
            key: v for key, v in self.values.items() if key.endswith((".token", ".cells", ".look"))
        }
        return " ".join(f"{key} {value:.3f}" for key, value in sorted(told.items()))


def prepare_tokenizer(args: argparse.Namespace) -> None:
    """The run's own, made once."""
    path = args.out / "tokenizer.json"
    if args.begin and not path.exists():
        path.write_bytes((args.begin / "tokenizer.json").read_bytes())
    if not path.exists():
        words = vocabulary(Gallery(args.data), chat(args.data))
        path.write_text(make_tokenizer(words).to_str(), encoding="utf-8")


def prepare(args: argparse.Namespace, rank: int) -> tuple[Batches, Tokenizer]:
    gallery, talk = Gallery(args.data), chat(args.data)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    words, _ = load_words(args.data)
    lexicon = Lexicon(words, TRAINING_FONTS)
    seed = args.seed + APART_BY * rank
    batches = Batches(lexicon, gallery, Scribe(tokenizer), talk, seed, args.warm_up, args.horizon)
    return batches, tokenizer


def train(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """One run, from where its state is."""
    settle(args.out, {k: v for k, v in vars(args).items() if k not in FREE})
    prepare_tokenizer(args)
    with joined(args.processes, helped, args) as together:
        trained(args, say, together)


def helped(together: Together, args: argparse.Namespace) -> None:
    trained(args, lambda _: None, together)


def trained(args: argparse.Namespace, say: Callable[[str], None], together: Together) -> None:
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    batches, tokenizer = prepare(args, together.rank)
    shape = Shape(args.tower, args.tower_layers, 2 * args.hidden, args.hidden, args.layers,
                  3 * args.hidden)  # fmt: skip
    model = NanoVL(shape, tokenizer.get_vocab_size(), args.seed).to(args.device)
    training = Training(model, args.rate, args.rest_rate)
    state, finish = args.out / "state.safetensors", args.out / "finish.safetensors"
    found = finish if args.finish and finish.exists() else state
    if args.begin and not found.exists():
        begin(model, args.begin, batches)
        together.same(model.parameters())
        training = Training(model, args.rate, args.rest_rate)
        training.step = args.warm_up + args.horizon
    notes = training.load(found) if found.exists() else {"seconds": "0"}
    spent = float(notes["seconds"])
    begun = int(notes["begun"]) if found == finish else training.step
    if training.step:
        say(f"resumed at step {training.step}, after {spent / 60:.1f} minutes of processor time")
    count = sum(
        p.numel() for n, p in training.named.items() if n.startswith(("vision", "backbone"))
    )
    say(f"{count / 1e6:.2f} M parameters, vocabulary {tokenizer.get_vocab_size()}")
    run(args, training, Loss(model, batches.scribe, args.device), batches,
        finish if args.finish else state, spent, begun, say, together)  # fmt: skip
    if together.rank == 0 and args.finish and training.step >= begun + args.finish:
        training.use_averages()
        save_folder(model, tokenizer, args.out / "checkpoint")


def begin(model: NanoVL, folder: Path, batches: Batches) -> None:
    """The weights of a finished checkpoint, and heads of labels that fit them."""
    vision, backbone, _ = open_folder(folder)
    model.vision.load_state_dict(vision.state_dict())
    model.backbone.load_state_dict(backbone.state_dict())
    device = model.cells.weight.device.type
    heads = [p for n, p in model.named_parameters() if not n.startswith(("vision", "backbone"))]
    adam = torch.optim.AdamW(heads, lr=3e-3, betas=(0.9, 0.98))
    loss_of = Loss(model, batches.scribe, device)
    for step in range(HEADS):
        for part in batches.labelled(step):
            assert part.patches is not None
            with torch.autocast(device, torch.bfloat16):
                with torch.no_grad():
                    features = model.see(part.patches.to(device), part.rows, part.columns)
                loss, _ = loss_of.labels(part, features)
            loss.backward()
        adam.step()
        adam.zero_grad()


def factors(args: argparse.Namespace, step: int, begun: int) -> tuple[float, float]:
    """The rate's, of the tower and of the rest, each by its own age: a ramp up, a slow fall that
    knows no end, and one to 0 where the run ends."""
    end = max(0.0, 1 - (step - begun) / args.finish) if args.finish else 1.0
    ages = (step + 1, step + 1 - args.warm_up)
    tower, rest = (min(1.0, age / RAMP, (FALL / age) ** 0.5) if age > 0 else 0.0 for age in ages)
    return tower * end, rest * end


def run(
    args: argparse.Namespace, training: Training, loss_of: Loss, batches: Batches, state: Path,
    spent: float, begun: int, say: Callable[[str], None], together: Together,
) -> None:  # fmt: skip
    """Steps until time or steps are used up. Whatever ends the loop, the state is saved."""
    start, saved, means = time.process_time(), time.monotonic(), Means()
    last = begun + args.finish if args.finish else args.steps

    def save() -> None:
        if together.rank:
            return
        seconds = spent + time.process_time() - start
        training.save(state, {"seconds": f"{seconds:.1f}", "begun": str(begun)})

    try:
        with loss_of.attentions.watched():
            while True:
                seconds = spent + time.process_time() - start
                done = training.step >= last if last else seconds > 60 * args.minutes
                if together.agreed(done):
                    break
                for part in batches.step(training.step):
                    loss, told = loss_of(part, training.step < args.warm_up + APART)
                    if not torch.isfinite(loss):
                        raise FloatingPointError(f"loss {loss.item()} at step {training.step}")
                    loss.backward()
                    means.add(part.name, told | {"loss": loss.item()})
                together.average(training.named.values())
                norm = training.update(*factors(args, training.step, begun))
                if training.step % args.report == 0:
                    say(f"step {training.step} ({seconds / 60:.1f} min) norm {norm:.2f} {means}")
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
    finally:
        save()


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = words.add_argument
    add("--data", type=Path, required=True, help="folder that holds vision/ and text/")
    add("--out", type=Path, default=Path("runs/nano_vl"))
    add("--begin", type=Path, help="a finished checkpoint of the same shape to go on from")
    add("--minutes", type=float, default=120, help="of processor time; 120")
    add("--steps", type=int, help="train so many steps in all: reproducible")
    add("--finish", type=int, default=0, help="let the rate fall to 0 in so many steps")
    add("--warm-up", type=int, default=1700, help="steps of the tower alone")
    add("--horizon", type=int, default=2000, help="steps until large pictures have their share")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="of torch; 1 where others use the processor too")
    add("--processes", type=int, default=1, help="side by side, a part of each step in each")
    add("--tower", type=int, default=192)
    add("--tower-layers", type=int, default=5)
    add("--hidden", type=int, default=192)
    add("--layers", default="cacaca", help="c: convolution, a: attention")
    add("--rate", type=float, default=4e-3, help="of hidden matrices (Muon)")
    add("--rest-rate", type=float, default=2e-3, help="of all else (AdamW)")
    add("--report", type=int, default=20, help="steps between two lines")
    return words


def stop(*_: object) -> None:
    raise KeyboardInterrupt  # so that a plain kill, too, leaves the state saved


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    args = parser().parse_args()
    train(args, lambda line: print(f"{time.strftime('%H:%M:%S')} {line}", flush=True))


if __name__ == "__main__":
    main()
