"""Every way to show a picture, from the cheapest to the published one: what a budget chooses from.

Each step costs more tokens than the one before, shows no side with fewer pixels, and is finer
along the side that was coarser. Integers only; knows the published rule, no pixels.
"""

from __future__ import annotations

from functools import lru_cache

from vision.rule import Grid, ImageRule, Size

LEAST = 16  # tokens: a budget of so many is enough for any picture
ODDEST = (3, 2)  # a cheaper grid than the published one stretches one side so much at most


def choose(
    height: int, width: int, tokens: int, tiles: int, rule: ImageRule
) -> tuple[Grid, Size | None]:
    """The dearest step within `tokens` and `tiles`: the grid, and the one crop or the thumbnail.

    A thumbnail has what the tiles leave, from min_image_tokens to the published size. `tokens` must
    be at least `least(...)`.
    """
    top = _top(height, width, rule)
    smallest = 0
    if rule.thumbnail:
        smallest = _tokens(_largest(height, width, top, rule.min_image_tokens, rule), rule)
    for grid in reversed(_grids(height, width, rule, top)):
        left = tokens - grid.rows * grid.cols * rule.tile_tokens
        if grid.rows * grid.cols <= tiles and left >= smallest:
            return grid, _largest(height, width, top, left, rule) if rule.thumbnail else None
    return Grid(1, 1), _largest(height, width, top, tokens, rule)


def least(height: int, width: int, rule: ImageRule) -> int:
    """Tokens of the cheapest step: the best that LEAST tokens can show, or fewer for tiny tops."""
    top = _top(height, width, rule)
    return _tokens(_largest(height, width, top, LEAST, rule), rule)


def _tokens(size: Size, rule: ImageRule) -> int:
    return size.height * size.width // rule.cell**2


def _top(height: int, width: int, rule: ImageRule) -> Grid:
    """The published crop of the whole picture in cells, cut to max_image_tokens if it exceeds."""
    size, most = rule.whole(height, width), rule.max_image_tokens
    rows, cols = size.height // rule.cell, size.width // rule.cell
    if rows * cols <= most:
        return Grid(rows, cols)
    return Grid(rows, max(1, most // rows)) if rows < cols else Grid(max(1, most // cols), cols)


def _largest(height: int, width: int, top: Grid, tokens: int, rule: ImageRule) -> Size:
    """The largest crop of the whole picture within `tokens`; 1 x 1 cell if there is none."""
    best = Grid(1, 1)
    for shape in _shapes(height, width, top):
        if shape.rows * shape.cols > tokens:
            break
        best = shape
    return Size(best.rows * rule.cell, best.cols * rule.cell)


@lru_cache(maxsize=64)
def _shapes(height: int, width: int, top: Grid) -> tuple[Grid, ...]:
    """The picture's shape in whole cells at every scale, each side rounded, from 1 x 1 to `top`."""
    rows = cols = 1
    finest, shapes = 0, []
    while True:
        fineness = min(rows * width, cols * height)  # of rows / height and cols / width
        if fineness > finest or (rows, cols) == top:
            shapes.append(Grid(rows, cols))
            finest = fineness
        if (rows, cols) == top:
            return tuple(shapes)
        # The scale at which a side reaches its next half cell, times both sides.
        taller, wider = (2 * rows + 1) * width, (2 * cols + 1) * height
        higher = rows < top.rows and (taller <= wider or cols == top.cols)
        cols += cols < top.cols and (wider <= taller or rows == top.rows)
        rows += higher


@lru_cache(maxsize=64)
def _grids(height: int, width: int, rule: ImageRule, top: Grid) -> tuple[Grid, ...]:
    """Grids of tiles, each finer than the one before and than `top`, up to the published one."""
    if not rule.splits(height, width):
        return ()
    published = rule.grid(height, width)
    within = [
        Grid(rows, cols)
        for rows in range(1, published.rows + 1)
        for cols in range(1, published.cols + 1)
        if rows * cols >= max(2, rule.min_tiles)
    ]
    steps: list[Grid] = []
    last, finest, side = top, min(top.rows * width, top.cols * height), rule.tile // rule.cell

    def fineness_of(grid: Grid) -> int:
        return min(grid.rows * side * width, grid.cols * side * height)

    for grid in sorted(within, key=lambda grid: (grid.rows * grid.cols, -fineness_of(grid))):
        cells, fineness = Grid(grid.rows * side, grid.cols * side), fineness_of(grid)
        grows = cells.rows >= last.rows and cells.cols >= last.cols
        if grows and fineness > finest and (grid == published or _near(grid, height, width)):
            steps.append(grid)
            last, finest = cells, fineness
    return tuple(steps)


def _near(grid: Grid, height: int, width: int) -> bool:
    tall, wide = grid.rows * width, grid.cols * height
    return max(tall, wide) * ODDEST[1] <= min(tall, wide) * ODDEST[0]
