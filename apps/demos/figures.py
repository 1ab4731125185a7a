"""Pictures as the model will see them, as HTML: how fine, in which tiles, for how many tokens.

Knows plans and pixels; file names are hostile, nothing reaches the page unescaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image as Pil

from apps.demos import markup
from lfm2_mm.errors import BadPicture
from lfm2_mm.types import Image
from vision.tiling import TilePlan

LARGEST = 512  # pixels along a side of what is sent to the page


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture somebody gave: its file's name, and what it holds or why it holds nothing."""

    name: str
    image: Image | None
    trouble: str = ""

    @cached_property
    def small(self) -> Pil.Image:
        """The picture with no side above LARGEST. Raises BadPicture."""
        assert self.image is not None
        scale = min(1.0, LARGEST / max(self.image.height, self.image.width))
        height = max(1, round(self.image.height * scale))
        width = max(1, round(self.image.width * scale))
        return Pil.fromarray(self.image.decode(height, width)).resize((width, height))


def open_shown(path: str) -> Shown:
    """The picture in an uploaded file, looked at so far that damage is found."""
    name = Path(path).name
    try:
        shown = Shown(name, Image.open(path))
        shown.small  # noqa: B018  (decodes)
    except BadPicture as error:
        return Shown(name, None, str(error).replace(path, name))
    return shown


def figure(shown: Shown, plan: TilePlan) -> str:
    """The picture at the model's resolution, under the grid of its tiles, and what it costs."""
    assert shown.image is not None
    name, told = markup.escape(shown.name), described(plan)
    cells = "".join(f"<i>{tokens}</i>" for tokens in tile_tokens(plan))
    remarks = "".join(markup.note(remark) for remark in shown.image.remarks)
    return (
        f'<figure><div class="seen" style="aspect-ratio:{plan.width}/{plan.height}">'
        f'<img src="{data_url(shown.small, plan)}" alt="{name}">'
        f'<div class="grid" aria-hidden="true" style="grid-template:repeat({plan.rows},1fr)'
        f'/repeat({plan.cols},1fr)">{cells}</div></div>'
        f"<figcaption><b>{name}</b> {told}</figcaption>{remarks}</figure>"
    )


def trouble(shown: Shown) -> str:
    """A picture that cannot be read."""
    return (
        f'<figure class="trouble"><figcaption>{markup.escape(shown.trouble)}</figcaption></figure>'
    )


def described(plan: TilePlan) -> str:
    """A plan in words."""
    pixels = f"{plan.width:,} × {plan.height:,} pixels"
    if not plan.tiled:
        size = plan.shown
        return f"{pixels}, seen at {size.width} × {size.height}: {plan.tokens:,} tokens"
    rows = f"{plan.rows} {'row' if plan.rows == 1 else 'rows'} of {plan.cols}"
    tiles = "tile" if plan.cols == 1 else "tiles"
    thumb = " and a thumbnail" if plan.thumbnail else ""
    return f"{pixels}, seen as {rows} {tiles}{thumb}: {plan.tokens:,} tokens"


def tile_tokens(plan: TilePlan) -> list[int]:
    """Image tokens of every cell of the grid; the thumbnail is none."""
    runs = [part for part in plan.layout() if isinstance(part, int)]
    return runs[: plan.rows * plan.cols]


def data_url(small: Pil.Image, plan: TilePlan) -> str:
    """A JPEG no finer than what the model sees."""
    size = min(small.width, plan.shown.width), min(small.height, plan.shown.height)
    file = io.BytesIO()
    small.resize(size, Pil.Resampling.BILINEAR).save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def together(figures: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""
