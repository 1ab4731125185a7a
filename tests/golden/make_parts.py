"""Write parts.npz: what liquid-audio's ears and voices make of tiny checkpoints. See README.md."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from liquid_audio import ChatState, LFM2AudioDetokenizer, LFM2AudioModel, LFM2AudioProcessor
from liquid_audio.moshi.models import loaders
from safetensors.torch import load_file
from transformers import Lfm2Config

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests import tiny_audio, tiny_codecs  # noqa: E402
from tests.golden.parts import CLIPS, DETOKENIZED, EVERY, MIMI_FRAMES  # noqa: E402


@torch.no_grad()
def ears(folder: Path) -> dict[str, torch.Tensor]:
    """Mel, conformer and adapter of every clip."""
    tiny_audio.speech_folder(folder)
    model = LFM2AudioModel.from_pretrained(folder, device="cpu", dtype=torch.float32).eval()
    processor = LFM2AudioProcessor.from_pretrained(folder, device="cpu").eval()
    out: dict[str, torch.Tensor] = {}
    for name, (seconds, rate, seed) in CLIPS.items():
        chat = ChatState(processor, dtype=torch.float32)
        wave = torch.from_numpy(tiny_audio.recording(seconds, rate, seed))
        chat.add_audio(wave[None], rate)
        heard, lengths = model.conformer(chat.audio_in[None], chat.audio_in_lens)
        assert lengths.item() == heard.shape[2]
        out[f"{name}/mel"] = chat.audio_in.T[::EVERY]
        out[f"{name}/conformer"] = heard[0].T[::EVERY]
        out[f"{name}/adapter"] = model.audio_adapter(heard[0].T)[::EVERY]
    return out


@torch.no_grad()
def mimi(folder: Path) -> dict[str, torch.Tensor]:
    """Both directions, at the tiny sizes; the reference keeps its sizes in module variables."""
    sizes = tiny_codecs.MIMI
    path = tiny_codecs.mimi_file(folder)
    width = sizes["width"]
    loaders._seanet_kwargs.update(
        dimension=width, n_filters=sizes["filters"], ratios=list(sizes["ratios"])
    )
    loaders._transformer_kwargs.update(
        d_model=width, num_heads=sizes["heads"], num_layers=sizes["layers"],
        context=sizes["window"], dim_feedforward=sizes["feed_forward"], input_dimension=width,
        output_dimensions=[width],
    )  # fmt: skip
    loaders._quantizer_kwargs.update(
        dimension=sizes["codebook_width"], n_q=sizes["codebooks_stored"],
        bins=sizes["codebook_size"], input_dimension=width, output_dimension=width,
    )  # fmt: skip
    samples = 2 * int(np.prod(sizes["ratios"]))
    loaders.SAMPLE_RATE, loaders.FRAME_RATE = samples * 10, 10.0
    model = loaders.get_mimi(None, device="cpu")
    model.load_state_dict(load_file(path), strict=True)
    model.eval()
    codes = torch.from_numpy(tiny_codecs.some_codes(8, MIMI_FRAMES, sizes["codebook_size"]))
    wave = torch.from_numpy(tiny_audio.recording(0.4, 8000, 9))[: 20 * samples]
    return {
        "mimi/wave": model.decode(codes[None])[0, 0],
        "mimi/codes": model.encode(wave[None, None])[0],
    }


@torch.no_grad()
def detokenizer(folder: Path) -> dict[str, torch.Tensor]:
    path = tiny_codecs.detokenizer_folder(folder)
    kinds = [k.replace("sliding", "full") for k in tiny_codecs.DETOKENIZER["layer_types"]]
    config = Lfm2Config(**tiny_codecs.DETOKENIZER | {"layer_types": kinds})
    model = LFM2AudioDetokenizer(config).eval()
    model.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    codes = torch.from_numpy(tiny_codecs.some_codes(8, DETOKENIZED, 2048))
    return {"detokenizer/wave": model(codes[None])[0, ::EVERY]}


def main() -> None:
    golden: dict[str, np.ndarray] = {}
    for part in (ears, mimi, detokenizer):
        with tempfile.TemporaryDirectory() as folder:
            golden |= {key: tensor.numpy() for key, tensor in part(Path(folder)).items()}
    for key, array in golden.items():
        print(key, array.shape, f"rms {np.sqrt((array.astype(float) ** 2).mean()):.3f}")
    np.savez_compressed(Path(__file__).parent / "parts.npz", **golden)


if __name__ == "__main__":
    main()
