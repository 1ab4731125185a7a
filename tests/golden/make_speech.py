"""Write speech.json: what liquid-audio makes of tests/tiny_audio.py's checkpoint. See README.md."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from liquid_audio import ChatState, LFM2AudioModel, LFM2AudioProcessor

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests import tiny_audio  # noqa: E402
from tests.golden.cases import CASES, Case, Turn  # noqa: E402


class Watched:
    """The reference model, with the logits of every step written down."""

    def __init__(self, folder: Path) -> None:
        self.model = LFM2AudioModel.from_pretrained(
            folder, device="cpu", dtype=torch.float32
        ).eval()
        self.processor = LFM2AudioProcessor.from_pretrained(folder, device="cpu").eval()
        self.logits: list[list[float]] = []
        sample = self.model._sample_text_token

        def watched(logits: torch.Tensor, **how: Any) -> torch.Tensor:
            self.logits.append(short(logits))
            return sample(logits, **how)

        self.model._sample_text_token = watched
        for head in self.model.depth_embeddings:
            head.to_logits.register_forward_hook(
                lambda _module, _inputs, out: self.logits.append(short(out))
            )

    def run(self, case: Case) -> Iterator[dict[str, Any]]:
        """Every turn of one conversation."""
        self.model.conf.interleaved_n_audio = case.n_audio
        chat = ChatState(self.processor, dtype=torch.float32)
        chat.new_turn("system")
        chat.add_text(case.system)
        chat.end_turn()
        for turn in case.turns:
            yield self.answer(chat, turn, case)

    def answer(self, chat: ChatState, turn: Turn, case: Case) -> dict[str, Any]:
        chat.new_turn("user")
        for part in turn.parts:
            if isinstance(part, str):
                chat.add_text(part)
            else:
                chat.add_audio(torch.from_numpy(part.samples())[None], part.rate)
        chat.end_turn()
        chat.new_turn("assistant")
        self.logits.clear()
        record: dict[str, Any] = {
            "flags": "".join(str(int(flag)) for flag in chat.modality_flag[0]),
            "text": chat.text[0].tolist(),
        }
        generate = getattr(self.model, f"generate_{case.mode}")
        made = [t.tolist() for t in generate(**chat, max_new_tokens=turn.limit)]
        self.remember(chat, made)
        if case.mode == "interleaved":  # what ends the turn was not yielded
            chat.end_turn()
        return record | {"made": made, "logits": [list(row) for row in self.logits]}

    def remember(self, chat: ChatState, made: list[list[int]]) -> None:
        text = [m for m in made if len(m) == 1]
        frames = [m for m in made if len(m) > 1]
        chat.append(
            text=torch.tensor(text, dtype=torch.long).reshape(-1, 1).T,
            audio_out=torch.tensor(frames, dtype=torch.long).reshape(-1, 8).T,
            modality_flag=torch.tensor([1 if len(m) == 1 else 3 for m in made], dtype=torch.long),
        )


def short(logits: torch.Tensor) -> list[float]:
    """The largest logit and another: every part of the arithmetic went into each."""
    logits = logits.flatten()
    return [round(x, 4) for x in (logits.max().item(), logits[100].item())]


def main() -> None:
    golden: dict[str, Any] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            tiny_audio.speech_folder(folder, **case.checkpoint)
            golden[case.name] = list(Watched(Path(folder)).run(case))
    text = json.dumps(golden, separators=(",", ":")).replace("},", "},\n")
    (Path(__file__).parent / "speech.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
