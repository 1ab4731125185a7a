"""Pictures to try at once, drawn on the spot: a scene, a page, a chart."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WHITE, BLACK = "#ffffff", "#111111"


def draw(folder: Path) -> list[list[dict[str, object]]]:
    """Write the pictures into `folder`; a question about each, as the page's box takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (
        ("scene.png", scene(), "How many circles are there?"),
        ("page.png", page(), "Read the first line."),
        ("chart.png", chart(), "Which bar is the tallest?"),
    )
    examples: list[list[dict[str, object]]] = []
    for name, picture, question in made:
        path = folder / name
        picture.save(path)
        examples.append([{"text": question, "files": [str(path)]}])
    return examples


def scene() -> Image.Image:
    picture = Image.new("RGB", (224, 224), "#f3efe4")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((24, 30, 84, 90), "#c62828")
    pen.ellipse((140, 120, 196, 176), "#1565c0")
    pen.rectangle((132, 28, 188, 84), "#2e7d32")
    pen.polygon([(60, 190), (96, 126), (24, 126)], "#f9a825")
    return picture


def page() -> Image.Image:
    picture = Image.new("RGB", (512, 320), WHITE)
    pen = ImageDraw.Draw(picture)
    lines = (
        ("Garden notes", 44),
        ("The roses need water today.", 30),
        ("Buy seeds and string.", 24),
    )
    top = 36
    for text, size in lines:
        pen.text((36, top), text, BLACK, font=ImageFont.load_default(size))
        top += 2 * size + 8
    return picture


def chart() -> Image.Image:
    picture = Image.new("RGB", (320, 256), WHITE)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(20)
    bars = (("red", "#c62828", 90), ("blue", "#1565c0", 170), ("green", "#2e7d32", 60))
    for place, (name, colour, height) in enumerate(bars):
        left = 50 + 90 * place
        pen.rectangle((left, 210 - height, left + 56, 210), colour)
        pen.text((left + 28, 216), name, BLACK, font=font, anchor="ma")
    pen.line((30, 211, 300, 211), BLACK, 2)
    return picture
