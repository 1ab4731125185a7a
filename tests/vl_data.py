"""A data folder for the nano-vl recipe: a few words, small talk, made-up pictures and flags."""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from nano_vl_scenes import OBJECTS
from nano_vl_words import FONTS, HELD_OUT_FONTS, TRAINING_FONTS, split

FONTS_ARE_HERE = all((FONTS / f"{name}.ttf").is_file() for name in TRAINING_FONTS + HELD_OUT_FONTS)
NAMES = (
    "apple bread candle door engine forest garden hammer island jacket kettle ladder marble needle "
    "orange pillow quarry ribbon silver table umbrella velvet window yellow zebra"
)
WORDS, UNSEEN = split(NAMES.split())


def folder(folder: Path) -> Path:
    texts = {
        "tatoeba_english": [{"text": " ".join(WORDS + UNSEEN)}] * 3,
        "chitchat_professional": [{"q": f"Do you like {w}?", "a": f"I like {w}."} for w in WORDS],
    }
    for name, found in texts.items():
        path = folder / f"text/{name}.jsonl.xz"
        path.parent.mkdir(exist_ok=True)
        with lzma.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    for kind, names in (("emoji", OBJECTS), ("flags", ("Chile", "Peru", "Norway", "Japan"))):
        (folder / f"vision/{kind}/png").mkdir(parents=True)
        listed = []
        for i, name in enumerate(names):
            image = Image.new("RGBA", (32, 32))
            ImageDraw.Draw(image).ellipse((2, 2, 30, 30), fill=(i * 2, 200 - i, 90, 255))
            image.save(folder / f"vision/{kind}/png/{i}.webp")
            key = "unicode_name" if kind == "emoji" else "country"
            listed.append({"file": f"png/{i}.webp", key: name})
        (folder / f"vision/{kind}/names.json").write_text(json.dumps(listed))
    return folder
