"""What a picture will cost, and which crops of it are shown: height, width, budget -> TilePlan.

Integers only, standard library only. Knows the published rule; knows no pixels and no model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index

from lfm2_mm.errors import BadInput, OverBudget
from vision import ladder
from vision.rule import Grid, ImageRule, Size

PUBLISHED = ImageRule()
WITHOUT_LIMIT = 1 << 62
IMAGE, START, END, THUMBNAIL = "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"


@dataclass(frozen=True)
class TokenBudget:
    """One dial: the most image tokens a picture may cost, tiles and thumbnail included.

    `tokens` None: as many as the picture is worth, which is what the published rule would spend.
    Structural tokens (start, end, row and column marks) come on top.
    """

    tokens: int | None = None
    tiles: int | None = None  # at most so many; 1: never cut
    shared: bool = False  # `tokens` are for all pictures of a prompt together, not for each
    exact: bool = False  # as the reference does: its pixels and, without `tokens`, its plan

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("tiles", self.tiles)):
            if value is not None and (type(value) is not int or value < 1):
                raise BadInput(f"a budget of {value!r} {name}; it must be a whole number from 1 up")


PRESETS = {
    "reference": TokenBudget(exact=True),  # the published rule, and the reference's pixels
    "fast": TokenBudget(64),  # a glance: what is it, which colour, where
    "balanced": TokenBudget(256),  # one crop of the most tokens: 512 x 512 pixels
    "quality": TokenBudget(),  # all that the published rule would show
}


@dataclass(frozen=True)
class TilePlan:
    """Which crops of a picture are shown, in the model's order, and what they cost."""

    height: int  # of the picture, in pixels
    width: int
    grid: Grid  # of tiles; 1 x 1: not tiled
    whole: Size | None  # of the one crop, or of the thumbnail after the tiles
    worth: int  # image tokens that an unlimited budget would spend on this picture
    rule: ImageRule
    exact: bool  # pixels exactly as the reference computes them

    @property
    def rows(self) -> int:
        return self.grid.rows

    @property
    def cols(self) -> int:
        return self.grid.cols

    @property
    def tile(self) -> int:
        """Pixels along a tile's sides."""
        return self.rule.tile

    @property
    def tiled(self) -> bool:
        return self.rows * self.cols > 1

    @property
    def thumbnail(self) -> bool:
        return self.tiled and self.whole is not None

    @property
    def crops(self) -> tuple[Size, ...]:
        """The size of every crop: tiles row by row and then the thumbnail, or the only crop."""
        tiles = (Size(self.tile, self.tile),) * (self.rows * self.cols) if self.tiled else ()
        return tiles if self.whole is None else (*tiles, self.whole)

    @property
    def tokens(self) -> int:
        """Image tokens of all crops, without the structural ones."""
        return sum(self._tokens(size) for size in self.crops)

    @property
    def structural_tokens(self) -> int:
        """Tokens around the image tokens: start and end, and a mark before every crop if tiled."""
        return sum(isinstance(part, str) for part in self.layout())

    @property
    def shown(self) -> Size:
        """Pixels of the picture's finest view."""
        if self.whole is None or self.tiled:
            return Size(self.rows * self.tile, self.cols * self.tile)
        return self.whole

    @property
    def scale(self) -> float:
        """Pixels shown for a pixel of the picture, along the side that is shown more coarsely."""
        return min(self.shown.height / self.height, self.shown.width / self.width)

    def layout(self) -> Iterator[str | int]:
        """This picture's part of the prompt: special tokens, and runs of so many image tokens."""
        marks: list[str] = []
        if self.tiled:
            marks = [
                f"<|img_row_{row}_col_{col}|>"
                for row in range(1, self.rows + 1)
                for col in range(1, self.cols + 1)
            ]
            marks.append(THUMBNAIL)
        parts: list[str | int] = [START]
        for number, size in enumerate(self.crops):
            parts += marks[number : number + 1]
            parts.append(self._tokens(size))
        parts.append(END)
        special = self.rule.special_tokens
        return (part for part in parts if special or isinstance(part, int))

    def placeholder(self) -> str:
        """`layout` as text, as the published processor writes it in place of one `<image>`."""
        return "".join(IMAGE * part if isinstance(part, int) else part for part in self.layout())

    def _tokens(self, size: Size) -> int:
        return size.height * size.width // self.rule.cell**2


def plan_tiles(
    height: int,
    width: int,
    budget: TokenBudget | int | None = None,
    rule: ImageRule = PUBLISHED,
) -> TilePlan:
    """The crops of one picture of `height` x `width` pixels, upright.

    Without a budget it is the published rule, which knows no limit. With one, never more tokens
    than asked: of the plans on the way from the cheapest to the published one the dearest that
    fits. A larger budget never gives fewer tokens, nor fewer pixels along either side. Raises
    OverBudget, naming the smallest budget for this picture, and BadInput for an empty picture.
    """
    try:
        height, width = index(height), index(width)
    except TypeError:
        raise BadInput(f"pixels are whole numbers; got {width!r} x {height!r}") from None
    if height < 1 or width < 1:
        raise BadInput(f"a picture of {width} x {height} pixels is empty")
    if not isinstance(budget, TokenBudget):
        budget = PRESETS["reference"] if budget is None else TokenBudget(budget)
    tiles = min(budget.tiles or rule.max_tiles, rule.max_tiles)
    if budget.exact and budget.tokens is None:
        grid, whole = _published(height, width, rule.capped(tiles))
    else:
        grid, whole = ladder.choose(height, width, WITHOUT_LIMIT, tiles, rule)
    best = TilePlan(height, width, grid, whole, 0, rule, budget.exact)
    best = replace(best, worth=best.tokens)
    if budget.tokens is None or budget.tokens >= best.worth:
        return best
    least = ladder.least(height, width, rule)
    if budget.tokens < least:
        raise OverBudget(
            f"a budget of {budget.tokens} image tokens is too small for a picture of "
            f"{width} x {height} pixels; the smallest for it is {least}",
            least,
        )
    grid, whole = ladder.choose(height, width, budget.tokens, tiles, rule)
    return replace(best, grid=grid, whole=whole)


def plan_all(
    sizes: Sequence[Size], budget: TokenBudget | None, rule: ImageRule = PUBLISHED
) -> list[TilePlan]:
    """Plans for the pictures of one prompt; a shared budget is dealt out evenly.

    A picture that is worth less than its share leaves the rest to the others. Raises OverBudget.
    """
    if budget is None or not budget.shared or budget.tokens is None:
        return [plan_tiles(height, width, budget, rule) for height, width in sizes]
    alone = replace(budget, tokens=None)
    bounds = [
        (ladder.least(height, width, rule), plan_tiles(height, width, alone, rule).worth)
        for height, width in sizes
    ]
    least = sum(low for low, _ in bounds)
    if budget.tokens < least:
        raise OverBudget(
            f"a budget of {budget.tokens} image tokens is too small for {len(sizes)} pictures; "
            f"the smallest for them is {least}",
            least,
        )
    return [
        plan_tiles(height, width, replace(budget, tokens=tokens), rule)
        for (height, width), tokens in zip(sizes, _dealt(bounds, budget.tokens), strict=True)
    ]


def _dealt(bounds: Sequence[tuple[int, int]], tokens: int) -> list[int]:
    """An equal share for each within its (least, worth), as large as `tokens` allow."""

    def with_share(share: int) -> list[int]:
        return [max(low, min(high, share)) for low, high in bounds]

    shares = range(1, max(high for _, high in bounds) + 1) if bounds else range(0)
    fitting = bisect_right(shares, tokens, key=lambda share: sum(with_share(share)))
    return with_share(fitting)


def _published(height: int, width: int, rule: ImageRule) -> tuple[Grid, Size | None]:
    if not rule.splits(height, width):
        return Grid(1, 1), rule.whole(height, width)
    grid = rule.grid(height, width)
    if grid == Grid(1, 1):  # only where min_tiles is 1, which no published checkpoint has
        return grid, Size(rule.tile, rule.tile)
    return grid, rule.whole(height, width) if rule.thumbnail else None
