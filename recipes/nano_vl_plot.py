"""Lines over a common axis as a small SVG. Knows numbers; knows nothing of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 100, 20, 50
# Light to dark: the order of the lines is told without colour, too.
SHADES = ("#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b", "#041a3d")


def curves(
    series: Mapping[str, Sequence[float]], places: Sequence[float], across: str, up: str
) -> str:
    """One line for each series of values in 0..1, at `places` along the axis."""
    high = HEIGHT - TOP - BOTTOM
    wide = WIDTH - LEFT - RIGHT

    def x(place: float) -> float:
        return LEFT + wide * (place - places[0]) / (places[-1] - places[0])

    def y(value: float) -> float:
        return TOP + high * (1 - value)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for i in range(6):
        value = i / 5
        out.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                   'stroke="#dddddd"/>')  # fmt: skip
        out.append(text(LEFT - 8, y(value) + 4, f"{value:.1f}", "end"))
    out += [text(x(place), TOP + high + 18, f"{place:g}", "middle") for place in places]
    out.append(text(LEFT + wide / 2, HEIGHT - 10, across, "middle"))
    out.append(text(LEFT, TOP - 7, up, "start"))
    for shade, (name, values) in zip(SHADES, series.items(), strict=False):
        points = " ".join(f"{x(p):.1f},{y(v):.1f}" for p, v in zip(places, values, strict=True))
        out.append(f'<polyline points="{points}" fill="none" stroke="{shade}" stroke-width="2"/>')
        out.append(text(LEFT + wide + 6, y(values[-1]) + 4, name, "start"))
    return "\n".join([*out, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="#333333">{escape(words)}</text>'
