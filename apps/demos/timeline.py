"""What a speech model made, in order: its words above, a column of coloured codes for each frame.

Knows items of a history; knows no model and no page.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from PIL import Image as Picture

from apps.demos import markup
from audio.history import Frame, Item

WIDTH = 16  # CSS pixels of a frame
HEIGHT = 12  # of a code
FRAME_S = 0.08
MOST = 600  # frames that are drawn: 48 s
LEVELS = 2  # rows of words, in turn


def draw(items: Sequence[Item], text: Callable[[Sequence[int]], str], size: int) -> str:
    """Text ids and frames -> HTML. `text` decodes ids that stand together; codes below `size`
    sound, the one above ends the audio."""
    frames: list[Frame] = []
    words: list[tuple[int, list[int]]] = []  # where each run of ids stands
    for item in items:
        if isinstance(item, tuple):
            frames.append(item)
        elif isinstance(item, int):
            if not words or words[-1][0] != len(frames):
                words.append((len(frames), []))
            words[-1][1].append(item)
    if not frames:
        return ""
    frames = frames[:MOST]
    shown = [(at, text(ids).strip()) for at, ids in words if at <= MOST]
    labels = "".join(
        f'<span style="left:{at * WIDTH}px" class="level{n % LEVELS}">{markup.escape(word)}</span>'
        for n, (at, word) in enumerate((at, word) for at, word in shown if word)
    )
    seconds = range(int(len(frames) * FRAME_S) + 1)
    ticks = "".join(f'<i style="left:{s / FRAME_S * WIDTH:.0f}px">{s} s</i>' for s in seconds)
    return (
        f'<div class="timeline"><div style="width:{len(frames) * WIDTH}px">'
        f'<div class="words">{labels}</div>'
        f'<img src="{picture(frames, size)}" alt="{len(frames)} frames of {len(frames[0])} codes"'
        f' style="height:{len(frames[0]) * HEIGHT}px"><div class="ticks">{ticks}</div></div></div>'
    )


def picture(frames: Sequence[Frame], size: int) -> str:
    """A pixel for each code, as a data address; a codebook is a row."""
    pixels = np.array([[colour(code, size) for code in frame] for frame in frames], np.uint8)
    file = io.BytesIO()
    Picture.fromarray(pixels.transpose(1, 0, 2)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def colour(code: int, size: int) -> tuple[int, int, int]:
    """Neighbouring codes differ much; what ends the audio is grey."""
    if code >= size:
        return 128, 128, 128
    red, green, blue = colorsys.hls_to_rgb(code * 0.618034 % 1, 0.45 + 0.2 * (code % 3) / 2, 0.55)
    return int(red * 255), int(green * 255), int(blue * 255)
