"""nano-vl's folder in the published format, written from a model in training, and read back.

Knows files; knows nothing of pictures or of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano_vl_model import NanoVL
from nano_vl_tokens import BOS, END, PAD, SPECIAL, TEMPLATE, Scribe
from tokenizers import Tokenizer

from lfm2_mm.backbone import Backbone
from lfm2_mm.device import choose
from vision.loading import load_vision, save
from vision.rule import ImageRule
from vision.settings import rule_json
from vision.tower import VisionModel

CARD = Path(__file__).with_name("nano_vl_card.md")
# As published but for the least: a small drawing stays small, so its letters keep their size.
RULE = ImageRule(min_image_tokens=16)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokenizer and chat template, as transformers reads them."""
    names = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[END], "pad_token": SPECIAL[PAD]}
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "tokenizer_config.json": names | {
            "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True,
            "add_eos_token": False, "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
        },
        "special_tokens_map.json": names,
        "chat_template.jinja": TEMPLATE,
    }  # fmt: skip


def processor_files() -> dict[str, Any]:
    """How pictures are cut, as LFM2-VL says it."""
    kind = {"processor_class": "Lfm2VlProcessor"}
    return {
        "processor_config.json": kind | {"use_image_special_tokens": True},
        "preprocessor_config.json": rule_json(RULE) | kind | {
            "do_convert_rgb": True, "do_pad": True, "return_row_col_info": True,
            "size": {"height": RULE.tile, "width": RULE.tile},
        },
    }  # fmt: skip


def save_folder(model: NanoVL, tokenizer: Tokenizer, folder: Path) -> Path:
    """The folder as LFM2-VL's are, weights in bfloat16; the heads of training stay behind."""
    ends = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD}
    files = tokenizer_files(tokenizer) | processor_files()
    files["generation_config.json"] = {"_from_model_config": True, **ends}
    files["MODEL_CARD.md"] = CARD.read_text(encoding="utf-8")
    # A copy: what is trained on keeps its float32.
    small = NanoVL(model.shape, tokenizer.get_vocab_size())
    small.load_state_dict(model.state_dict())
    small.bfloat16()
    return save(folder, small.backbone, small.vision, files)


def open_folder(folder: Path, dtype: str = "fp32") -> tuple[VisionModel, Backbone, Scribe]:
    """A saved folder, ready to answer."""
    vision = load_vision(folder, choose("cpu", dtype))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return vision, Backbone.open(folder, device="cpu", dtype=dtype), Scribe(tokenizer)
