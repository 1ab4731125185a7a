"""Pictures at the shape of LFM2-VL-450M: ours beside transformers' processor and model, in one run.

    python -m benchmarks.vision prepare        # JPEG to patches
    python -m benchmarks.vision tower          # patches to rows for the backbone, and their error
    python -m benchmarks.vision first          # picture and question to the first token
    python -m benchmarks.vision                # all of them: some minutes on two cores, 6 GB

Both open one checkpoint of random weights. Rounds are interleaved: a busy machine slows every row
alike. Read ratios, not rates: they hold within one run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from apps.bench_vision import JPEGS, PATCHES, jpeg
from lfm2_mm import Image, Message, Sampling
from lfm2_mm.backbone import Backbone
from lfm2_mm.device import choose, processor_name, set_threads, usable_cores
from tests import tiny_vision
from vision.chat import Chat
from vision.chat import open as open_chat
from vision.crops import cut
from vision.loading import load_vision, save
from vision.shapes import SHAPES
from vision.tiling import PRESETS, TokenBudget, plan_tiles
from vision.tower import VisionModel

SHAPE = "LFM2-VL-450M"
QUESTION = "How do I stop two threads corrupting shared state?"
FOLLOWING = "The capital of France is Paris. What is the river?"
# Pictures (height, width) whose published plan has 64, 128, 256 tokens, and 6 tiles with thumbnail.
PICTURES = {"64": (256, 256), "128": (256, 512), "256": (512, 512), "tiled 6 + 1": (768, 1024)}
GREEDY = Sampling(temperature=0, max_tokens=1)
Task = Callable[[], object]


@dataclass
class Record:
    """What one engine took for one task, by round."""

    section: str
    task: str
    engine: str
    seconds: list[float]


def main() -> None:
    args = parse()
    set_threads(args.threads)
    records: list[Record] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint(args.keep or Path(scratch) / "vl", args.what)
        for section in args.what:
            for task, engines in SECTIONS[section](folder, args, notes):
                found = timed(section, task, engines, args.rounds)
                records += found
                if not args.json:
                    print("\n".join(table(found)), flush=True)
    if args.json:
        print(json.dumps({"records": [vars(r) for r in records], "notes": notes}, indent=1))
        return
    print("\n".join(["", *notes]))
    print(f"{SHAPE}, random weights; {processor_name()}, {args.threads} threads; median of rounds")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--without-tiles", action="store_true", help="leave the longest task out")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="the checkpoint, for the next run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if unknown := sorted(set(args.what) - set(SECTIONS)):
        parser.error(f"no section {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
    args.what = args.what or list(SECTIONS)
    return args


def checkpoint(folder: Path, what: list[str]) -> Path:
    """Random bf16 weights of SHAPE with a small tokenizer, as transformers and we open them."""
    if what == ["prepare"] or (folder / "config.json").is_file():
        return folder
    tokenizer = folder.with_name("tokenizer")
    tokenizer.mkdir(parents=True, exist_ok=True)
    vocabulary = tiny_vision.vl_tokenizer_files(tokenizer)
    config = replace(SHAPES[SHAPE], image_token_id=vocabulary[tiny_vision.IMAGE])
    vision = VisionModel.new(config).bfloat16()
    backbone = Backbone.new(config.backbone).bfloat16()
    tiny_vision.processor_files(tokenizer, "lfm2", {**tiny_vision.SMALL, **PUBLISHED})
    files = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    return save(folder, backbone, vision, files)


PUBLISHED = {"tile_size": 512, "min_image_tokens": 64, "max_image_tokens": 256, "max_tiles": 10}


def timed(section: str, task: str, engines: dict[str, Task], rounds: int) -> list[Record]:
    """Every engine once a round, in turn, after a round that warms up."""
    records = [Record(section, task, name, []) for name in engines]
    for number in range(rounds + 1):
        for record, run in zip(records, engines.values(), strict=True):
            start = time.perf_counter()
            run()
            if number:
                record.seconds.append(time.perf_counter() - start)
    return records


Tasks = Iterator[tuple[str, dict[str, Task]]]


def prepare(folder: Path, args: argparse.Namespace, notes: list[str]) -> Tasks:
    """JPEG bytes to patches: decode, resize, cut."""
    from transformers import Lfm2VlImageProcessorFast

    theirs = Lfm2VlImageProcessorFast(**{**tiny_vision.SMALL, **PUBLISHED})
    for height, width in JPEGS:
        data = jpeg(height, width)
        exact = plan_tiles(height, width, PRESETS["reference"])
        quick = plan_tiles(height, width, PRESETS["quality"])
        yield (
            f"{width} x {height}",
            {
                "transformers": partial(lambda d: theirs(decoded(d), return_tensors="pt"), data),
                "ours, reference": partial(lambda d, p: cut(Image.open(d), p), data, exact),
                "ours": partial(lambda d, p: cut(Image.open(d), p), data, quick),
            },
        )


def decoded(data: bytes) -> Any:
    import io

    from PIL import Image as Pil

    return Pil.open(io.BytesIO(data)).convert("RGB")


def tower(folder: Path, args: argparse.Namespace, notes: list[str]) -> Tasks:
    """Patches to rows; transformers with the crop's patches alone, and padded to 1,024."""
    ours = {
        f"ours {dtype}": load_vision(folder, choose("cpu", dtype)) for dtype in ("bf16", "int8")
    }
    theirs = transformers_model(folder)
    exact = load_vision(folder, choose("cpu", "fp32"))
    for tokens, (rows, cols) in PATCHES.items():
        patches = torch.rand(1, rows * cols, 768) * 2 - 1
        yield (
            f"{tokens} tokens",
            {
                "transformers bf16": partial(features, theirs, patches, rows, cols),
                "transformers bf16, padded": partial(features, theirs, patches, rows, cols, 1024),
                **{name: partial(run, model, patches, rows, cols) for name, model in ours.items()},
            },
        )
    notes += errors(exact, ours, theirs, patches, rows, cols)
    if not args.without_tiles:
        tiles = torch.rand(7, 1024, 768) * 2 - 1
        yield (
            "6 tiles + 1",
            {
                "transformers bf16": partial(features, theirs, tiles, 32, 32),
                **{name: partial(one_by_one, model, tiles) for name, model in ours.items()},
            },
        )


@torch.inference_mode()
def run(model: VisionModel, patches: Tensor, rows: int, cols: int) -> Tensor:
    return model(patches, rows, cols)


def one_by_one(model: VisionModel, tiles: Tensor) -> Tensor:
    """As VisionEncoder runs them on a CPU: a stop waits for one crop at most."""
    return torch.cat([run(model, tile[None], 32, 32) for tile in tiles])


@torch.inference_mode()
def features(model: Any, patches: Tensor, rows: int, cols: int, padded: int = 0) -> Tensor:
    n, real, values = patches.shape
    pixels = torch.zeros(n, max(real, padded), values)
    pixels[:, :real] = patches
    mask = torch.zeros(pixels.shape[:2], dtype=torch.int32)
    mask[:, :real] = 1
    found = model.get_image_features(
        pixel_values=pixels,
        spatial_shapes=torch.tensor([[rows, cols]] * n),
        pixel_attention_mask=mask,
    )
    return torch.stack(list(found.pooler_output))


def errors(
    exact: VisionModel, ours: dict[str, VisionModel], theirs: Any, patches: Tensor, *shape: int
) -> list[str]:
    """How far each engine's rows are from float32's, relative to their length."""
    right = run(exact, patches, *shape)
    found = {name: run(model, patches, *shape) for name, model in ours.items()}
    found["transformers bf16"] = features(theirs, patches, *shape)
    return [
        f"rows of {name}: off by {float((got.float() - right).norm() / right.norm()):.4f} of fp32's"
        for name, got in found.items()
    ]


def transformers_model(folder: Path) -> Any:
    from transformers import Lfm2VlForConditionalGeneration

    return Lfm2VlForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()


def first(folder: Path, args: argparse.Namespace, notes: list[str]) -> Tasks:
    """A JPEG and a question to the first token, by the published plan; then another question."""
    theirs, processor = transformers_model(folder), tiny_vision.processor(folder)
    ours = {
        "ours": open_chat(folder, device="cpu", preset="quality"),
        "ours bf16": open_chat(folder, device="cpu", dtype="bf16", preset="quality"),
    }
    for name, (height, width) in PICTURES.items():
        if name.startswith("tiled") and args.without_tiles:
            continue
        data = jpeg(height, width)
        asked = [Message.user(Image.open(data), QUESTION)]
        fresh = {n: chat.at(chat.budget, remember=False) for n, chat in ours.items()}
        yield (
            f"{name} tokens",
            {
                "transformers bf16": partial(generated, theirs, processor, data),
                **{n: partial(answered, chat, asked) for n, chat in fresh.items()},
            },
        )
        talks = {n: Following(chat, asked) for n, chat in ours.items()}
        yield f"{name}, 2nd question", {n: talk.ask for n, talk in talks.items()}
    yield from curve(ours["ours"])


def curve(chat: Chat) -> Tasks:
    """Ours alone by budget, one picture: is the time to the first token near linear in it?"""
    asked = [Message.user(Image.open(jpeg(768, 1024)), QUESTION)]
    for budget in (16, 32, 64, 96, 128, 192, 256):
        fresh = chat.at(TokenBudget(budget), remember=False)
        tokens = sum(plan.tokens for plan in fresh.plans(asked))
        yield f"budget {budget}: {tokens}", {"ours": partial(answered, fresh, asked)}


def answered(chat: Chat, messages: list[Message]) -> None:
    """The first token of an engine that knows neither picture nor conversation."""
    chat.close()
    list(chat.stream(messages, GREEDY))


class Following:
    """A second question in the same conversation, always from the same state."""

    def __init__(self, chat: Chat, asked: list[Message]) -> None:
        self.chat, self.asked = chat, asked
        self.number = 0

    def ask(self) -> None:
        if not self.number:  # the round that warms up reads the first question
            list(self.chat.stream(self.asked, GREEDY))
        self.number += 1
        following = f"{FOLLOWING} {self.number}"  # of another end, so that nothing more is known
        turns = [*self.asked, Message.assistant("Yes."), Message.user(following)]
        list(self.chat.stream(turns, GREEDY))


@torch.inference_mode()
def generated(model: Any, processor: Any, data: bytes) -> Tensor:
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[text], images=[[decoded(data)]], return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=1, do_sample=False)


SECTIONS: dict[str, Callable[[Path, argparse.Namespace, list[str]], Tasks]] = {
    "prepare": prepare,
    "tower": tower,
    "first": first,
}


def table(records: list[Record]) -> list[str]:
    """Milliseconds, and how many times faster than the first engine of the task."""
    lines: list[str] = []
    place = None
    for record in records:
        if place != (record.section, record.task):
            place = (record.section, record.task)
            base = median(record.seconds)
            lines += ["", f"{record.section}: {record.task}"]
        taken = median(record.seconds)
        lines.append(
            f"  {record.engine:28}{1e3 * taken:10.1f} ms{base / taken:8.2f} x"
            f"   (best {1e3 * min(record.seconds):.1f})"
        )
    return lines


if __name__ == "__main__":
    main()
