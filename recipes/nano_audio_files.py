"""nano-audio's folder in the published format, written from the states of its trainings."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from nano_audio_detokenizer import BINS, LOUDNESS, Detokenizer, finished
from nano_audio_detokenizer import settings as voice_settings
from nano_audio_joined import Whole, averages
from nano_audio_model import SHARPER, settings, sharpen
from nano_audio_mouth import Lines, lines_of
from nano_audio_tokenizer import files as tokenizer_files
from nano_audio_units import PAUSES
from safetensors.torch import load_file, save
from torch import Tensor

from audio.codec import DETOKENIZER
from audio.lexicon import FILE as LEXICON
from audio.loading import published_speech
from audio.model import SpeechModel
from lfm2_mm.weights import write

CARD = Path(__file__).with_name("nano_audio_card.md")


def small(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """bfloat16, but for the window and what normalises a batch, which are sums of many."""
    kept = ("istft.window", "running_mean", "running_var")
    return {k: t if k.endswith(kept) else t.bfloat16() for k, t in tensors.items()}


def save_folder(whole: Whole, voice: Detokenizer, lines: Lines, folder: Path) -> Path:
    """The checkpoint, voice and tokenizer included; what only taught stays behind."""
    mouth, config = whole.mouth, whole.config
    model = SpeechModel(config, mouth.backbone, whole.encoder, mouth.frames, mouth.depth)
    sharpen(model, SHARPER)
    with torch.no_grad():
        voice.lin.bias[:BINS] += math.log(LOUDNESS)
    files = tokenizer_files(lines.dialogue.tokenizer) | {
        LEXICON: [w for w in lines.dialogue.units.codes if w not in PAUSES],
        "MODEL_CARD.md": CARD.read_text(encoding="utf-8"),
        f"{DETOKENIZER}/config.json": voice_settings(),
        f"{DETOKENIZER}/model.safetensors": save(
            {k: t.contiguous() for k, t in small(voice.published()).items()}, {"format": "pt"}
        ),
    }
    return write(folder, small(published_speech(model)), config.to_json(), files)


def trained(data: Path, run: Path, older: Path | None) -> tuple[Whole, Detokenizer, Lines]:
    """What the trainings in `run` have reached, with averaged weights; the voice of `older`."""
    lines = lines_of(data, run, 0)
    whole = Whole(settings(lines.dialogue.tokenizer_size), lines, 0)
    whole.load_state_dict(averages(run / "joined.safetensors"), strict=False)
    whole.load_state_dict(load_file(run / "joined-norms.safetensors"), strict=False)
    if older:
        voice = finished(older)
    else:
        voice = Detokenizer()
        voice.load_state_dict(averages(run / "detokenizer.safetensors"), strict=False)
    return whole.eval(), voice.eval(), lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/nano-audio"))
    parser.add_argument("--voice", type=Path, help="a checkpoint whose detokenizer is kept")
    args = parser.parse_args()
    with torch.no_grad():
        folder = save_folder(*trained(args.data, args.run, args.voice), args.run / "checkpoint")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
