"""A conversation on disk: one safetensors file with all that was said and heard.

Nothing in it can run code. The backbone's state is not kept: it is computed again when the
conversation goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audio.conversation import Conversation, Manner, Turns
from audio.history import Flag, History
from lfm2_mm.errors import BadInput

if TYPE_CHECKING:
    from audio.speech import Speech

FORMAT = "lfm2-mm conversation 1"


def save_conversation(conversation: Conversation, path: str | os.PathLike[str]) -> Path:
    """Write all that was said; the file appears whole or not at all."""
    path = Path(path)
    history = conversation.history
    mels = history.heard
    tensors = {
        "flags": torch.tensor(history.flags, dtype=torch.uint8),
        "text": torch.tensor(history.text, dtype=torch.int32),
        "spoken": torch.tensor(history.spoken, dtype=torch.int32),
        "mel": torch.cat(mels) if mels else torch.zeros(0, 0),
        "mel_frames": torch.tensor([len(mel) for mel in mels], dtype=torch.int32),
    }
    about = {
        "format": FORMAT,
        "model": conversation.speech.name,
        "sizes": json.dumps(sizes(conversation.speech)),
        "turns": json.dumps(asdict(conversation.turns)),
    }
    handle, fresh = tempfile.mkstemp(prefix=".lfm2-mm-", dir=path.parent)
    os.close(handle)
    try:
        save_file({k: t.contiguous().cpu() for k, t in tensors.items()}, fresh, metadata=about)
        os.replace(fresh, path)
    finally:
        Path(fresh).unlink(missing_ok=True)
    return path


def load_conversation(speech: Speech, path: str | os.PathLike[str], manner: Manner) -> Conversation:
    """Go on from `save_conversation`. Raises BadInput where the file is something else, damaged,
    or of another checkpoint."""
    if not Path(path).is_file():  # opening a pipe would wait for ever
        raise BadInput(f"{path} is no file; {_OTHER}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is no conversation that can be read ({error}); {_OTHER}") from error
    if about.get("format") != FORMAT:
        raise BadInput(f"{path} is no conversation of this version; {_OTHER}")
    if json.loads(about.get("sizes", "null")) != sizes(speech):
        raise BadInput(
            f"the conversation in {path} was held with {about.get('model')}; go on with "
            f"--model {about.get('model')}, or {_OTHER}"
        )
    try:
        history = _history(tensors, speech)
        turns = Turns(**json.loads(about["turns"]))
        turns = Turns(turns.opening, tuple(turns.starts), turns.answer)
        _check_turns(turns, history)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, StopIteration) as error:
        raise BadInput(f"the conversation in {path} is damaged ({error!r}); {_OTHER}") from error
    return Conversation(speech, history, manner, turns)


_OTHER = "give the name of a new file to begin another"


def sizes(speech: Speech) -> dict[str, int]:
    """What ids, codes and mel of one checkpoint have in common with those of another."""
    config = speech.model.config
    return {
        "vocabulary": speech.tokenizer.size,
        "codebooks": config.codebooks,
        "codebook_size": config.codebook_size,
        "features": config.mel.features,
        "factor": config.encoder.factor,
    }


def _history(tensors: dict[str, Tensor], speech: Speech) -> History:
    config = speech.model.config
    history = History(config.encoder.factor)
    text = iter(tensors["text"].tolist())
    spoken = iter(tensors["spoken"].tolist())
    mels = iter(tensors["mel"].split(tensors["mel_frames"].tolist()) if len(tensors["mel"]) else ())
    flags = tensors["flags"].tolist()
    while len(history) < len(flags):
        flag = flags[len(history)]
        if flag == Flag.TEXT:
            history.add_text([_below(next(text), speech.tokenizer.size)])
        elif flag == Flag.SPOKEN:
            frame = next(spoken)
            if len(frame) != config.codebooks:
                raise ValueError(f"a frame of {len(frame)} codes")
            history.add_spoken([_below(code, config.codebook_size + 1) for code in frame])
        else:
            mel = next(mels)
            if mel.shape[1:] != (config.mel.features,) or not torch.isfinite(mel).all():
                raise ValueError("a recording that is none")
            history.add_heard(mel)
    if history.flags != flags or [*text, *spoken, *mels]:
        raise ValueError("its parts do not fit each other")
    return history


def _below(number: int, size: int) -> int:
    if not 0 <= number < size:
        raise ValueError(f"{number} of {size}")
    return number


def _check_turns(turns: Turns, history: History) -> None:
    places = [turns.opening, *turns.starts, *([] if turns.answer is None else [turns.answer])]
    if places != sorted(places) or not turns.opening > 0 or places[-1] > len(history):
        raise ValueError("its turns do not fit")
