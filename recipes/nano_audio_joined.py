"""Joins nano-audio's ears and mouth: from the sound of words to the words and frames of a reply.

The adapter between them is first fitted by itself: it is to give, at each moment, the embedding of
the word that the ears' teachers hear, which is what the backbone was brought up with. Then all is
trained together, on replies and transcripts, ears at a lower rate and with their teacher.
`--begin FOLDER` takes the mouth of a finished checkpoint, taught with the same units.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nano_audio_clips import Clip, vocabulary
from nano_audio_dialogue import HEAR, INTERLEAVED, Positions
from nano_audio_ears import Batch, Ears, Sounds, ctc_loss, force, settle_norms
from nano_audio_model import SHARPER, settings, sharpen
from nano_audio_mouth import REHEARSAL, SLOTS, Lines, Mouth, Packed, lines_of, losses
from nano_audio_tokenizer import BLANK, UNKNOWN
from safetensors.torch import load_file, save_file
from together import Together, joined
from torch import Tensor, nn
from torch.nn import functional as F

from audio.config import AudioConfig
from audio.encoder import AudioEncoder
from audio.loading import load_speech
from lfm2_mm.device import choose
from lfm2_mm.errors import BadInput
from lfm2_mm.train import Plan, Training

PLAN = Plan(rate=6e-4, table_rate=3e-4, warm_up=0.04, average=0.995)  # the second is the ears'
SHARES = (5, 4, 4, 3)  # clips of a step: synthetic, real orders, digits strung, the rest
FITTED = 250  # steps of the adapter by itself
TEACHER = 0.3  # weight of CTC
WRITTEN = 0.4  # part of the requests that are written down, not answered
BEFORE = 0.15  # part of the replies that another exchange, typed, goes before
REHEARSED = 1  # one step in so many also speaks words that are given, lest it be forgotten


class Whole(nn.Module):
    """Ears with their teacher, the adapter, and the mouth."""

    def __init__(self, config: AudioConfig, lines: Lines, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        words = vocabulary()
        self.ears, self.mouth = Ears(words), Mouth(config, seed)
        self.ears.by_frame.requires_grad_(False)
        self.encoder = AudioEncoder(config)
        self.encoder.conformer = self.ears.conformer
        known = [lines.dialogue.ids(w)[0] for w in words[1:]]
        self.config = config
        self.tokens = [
            lines.dialogue.unknown,
            *known,
            lines.dialogue.quiet,
        ]  # of the teacher's rows

    def hear(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the ears make of clips, what the backbone is given, (b, t, …) both, and lengths."""
        hidden, lengths = self.ears.conformer(batch.mels, batch.lengths)
        return hidden.float(), self.adapt(hidden), lengths

    def adapt(self, hidden: Tensor) -> Tensor:
        encoder = self.encoder
        return encoder.out(F.gelu(encoder.up(encoder.norm(hidden)))).float()

    def wanted(self, hidden: Tensor) -> Tensor:
        """The embeddings of what the teachers hear, half of each: (b, t, hidden)."""
        chances = self.ears.by_ctc(hidden).softmax(-1) + self.ears.by_frame(hidden).softmax(-1)
        return 0.5 * chances @ self.mouth.backbone.embedding[self.tokens]

    def listening(self) -> None:
        """Training mode, but for the means of normalisation, which stay as they were measured."""
        self.train()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()


class Requests:
    """Clips of a step as lines of dialogue; hangs on seed and step alone."""

    def __init__(self, lines: Lines, sounds: Sounds) -> None:
        self.lines, self.sounds = lines, sounds

    def batch(self, step: int, lengths: Tensor, clips: Sequence[Clip]) -> Packed:
        draw = random.Random(f"joined {self.lines.seed}/{step}")
        made = [self.line(c, n, draw) for c, n in zip(clips, lengths.tolist(), strict=True)]
        noise = np.random.default_rng([self.lines.seed, step, 1])
        return Packed(made, noise, self.lines.dialogue.pad)

    def line(self, clip: Clip, count: int, draw: random.Random) -> Positions:
        dialogue = self.lines.dialogue
        if clip.words is not None and draw.random() < WRITTEN:
            made = dialogue.opening(HEAR)
            made.heard(count)
            dialogue.answer(made)
            known = [w if w in self.lines.known else UNKNOWN.strip(BLANK) for w in clip.words]
            dialogue.written(made, [dialogue.ids(w)[0] for w in known])
            return made
        made = dialogue.opening(INTERLEAVED)
        if draw.random() < BEFORE:
            turn = self.lines.turn(draw)
            made.text(dialogue.ids(turn.request))
            dialogue.answer(made)
            dialogue.interleaved(made, turn.reply, free=0.0, slots=0.0)
            dialogue.next_turn(made)
        made.heard(count)
        dialogue.answer(made)
        dialogue.interleaved(made, clip.reply, free=1.0, slots=SLOTS)
        return made


def put_together(
    config: AudioConfig, lines: Lines, sounds: Sounds, run: Path, seed: int, older: Path | None
) -> Whole:
    """The averaged weights of ears and mouth in one, the adapter fitted. The mouth is `older`'s."""
    whole = Whole(config, lines, seed)
    whole.ears.load_state_dict(averages(run / "ears.safetensors"), strict=False)
    if older:
        begin(whole, older)
    else:
        whole.mouth.load_state_dict(averages(run / "mouth.safetensors"))
    settle_norms(whole.ears, sounds)
    fit_adapter(whole, sounds)
    return whole


def begin(whole: Whole, folder: Path) -> None:
    """A checkpoint's mouth and adapter. Raises BadInput where its sizes are others."""
    model = load_speech(folder, choose("cpu", "fp32"))
    if model.config != whole.config:
        raise BadInput(
            f"{folder} has other sizes than nano_audio_model.py says; train the mouth anew"
        )
    sharpen(model, 1 / SHARPER)
    for own, its in (
        (whole.mouth.backbone, model.backbone), (whole.mouth.frames, model.frames),
        (whole.mouth.depth, model.depth), (whole.encoder.norm, model.ears.norm),
        (whole.encoder.up, model.ears.up), (whole.encoder.out, model.ears.out),
    ):  # fmt: skip
        own.load_state_dict(its.state_dict())


def averages(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a training that was saved. Raises BadInput where there is none."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; run that stage first")
    tensors = load_file(path)
    return {k.removeprefix("average/"): t for k, t in tensors.items() if k.startswith("average/")}


def fit_adapter(whole: Whole, sounds: Sounds) -> None:
    """A few steps in which only the adapter learns."""
    encoder = whole.encoder
    parts = [*encoder.norm.parameters(), *encoder.up.parameters(), *encoder.out.parameters()]
    optimiser = torch.optim.AdamW(parts, lr=3e-3, weight_decay=0.0)
    scale = whole.mouth.backbone.embedding.detach().square().mean()
    whole.eval()
    for step in range(FITTED):
        batch = sounds.batch(step)
        with torch.no_grad():
            hidden, lengths = whole.ears.conformer(batch.mels, batch.lengths)
            wanted = whole.wanted(hidden)
        real = torch.arange(hidden.shape[1]) < lengths[:, None]
        loss = (whole.adapt(hidden) - wanted)[real].square().mean() / scale
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / FITTED)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0 or step == FITTED - 1:
            print(f"adapter {step}: {loss.item():.3f} of the variance", flush=True)


def step_losses(whole: Whole, requests: Requests, step: int) -> dict[str, Tensor]:
    batch = requests.sounds.batch(step)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, heard, lengths = whole.hear(batch)
        real = torch.arange(heard.shape[1]) < lengths[:, None]
        packed = requests.batch(step, lengths, batch.clips)
        draw = np.random.default_rng([requests.lines.seed, step, 2])
        made = losses(whole.mouth, packed, draw, heard[real])
        if step % REHEARSED == 0:
            again, draw = requests.lines.batch(step, REHEARSAL)
            for name, loss in losses(whole.mouth, again, draw).items():
                made[f"again {name}"] = loss
    scores = whole.ears.by_ctc(hidden).log_softmax(-1)
    made["ctc"] = ctc_loss(whole.ears, batch, scores, lengths)
    return made


def total(parts: dict[str, Tensor]) -> Tensor:
    weights = {"text": 1.0, "given": 1.0, "book0": 0.5, "books": 0.75, "ctc": TEACHER}
    return torch.stack([weights[k.removeprefix("again ")] * v for k, v in parts.items()]).sum()


def train(whole: Whole, requests: Requests, run: Path, steps: int, together: Together) -> None:
    """Train, or go on, to `steps`; the state is kept every 100."""
    state, norms = run / "joined.safetensors", run / "joined-norms.safetensors"
    training = Training(whole, PLAN, list(whole.ears.parameters()))
    if state.exists():
        training.load(state)
        whole.load_state_dict(load_file(norms), strict=False)
    elif together.rank == 0:
        save_norms(whole, norms)
    together.same(whole.state_dict().values())
    whole.listening()
    first, start = training.step, time.process_time()
    while training.step < steps:
        if training.step == first:
            force(whole.ears, requests.sounds)
            whole.listening()
        parts = step_losses(whole, requests, training.step)
        training.update(total(parts), training.step / steps, together.average)
        if together.rank:
            continue
        if training.step % 20 == 0:
            rate = (time.process_time() - start) / (training.step - first)
            told = " ".join(f"{k} {v.item():.3f}" for k, v in parts.items())
            print(f"{training.step} {told} {rate:.2f} s/step", flush=True)
        if training.step % 100 == 0:
            training.save(state)
    if together.rank == 0:
        training.save(state)
    training.use_averages()


def save_norms(whole: Whole, path: Path) -> None:
    kept = {k: t for k, t in whole.state_dict().items() if "running_" in k and "encoder" not in k}
    save_file(kept, path)


def trained(together: Together, args: argparse.Namespace) -> None:
    """What each of the processes does."""
    lines = lines_of(args.data, args.run, args.seed, together.part)
    sounds = Sounds(args.data, args.run, args.seed, SHARES, args.commands, together.part)
    config = settings(lines.dialogue.tokenizer_size)
    if together.rank or (args.run / "joined.safetensors").exists():
        whole = Whole(config, lines, args.seed)
    else:
        whole = put_together(config, lines, sounds, args.run, args.seed, args.begin)
    train(whole, Requests(lines, sounds), args.run, args.steps, together)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--begin", type=Path, help="a checkpoint's folder, for its mouth")
    parser.add_argument("--commands", type=Path, help="folder of Speech Commands, as for the ears")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--processes", type=int, default=1, help="side by side, a part of each step in each"
    )
    args = parser.parse_args()
    with joined(args.processes, trained, args) as together:
        trained(together, args)


if __name__ == "__main__":
    main()
