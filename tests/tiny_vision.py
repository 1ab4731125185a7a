"""Tiny random vision checkpoints, written by transformers in the forms that were published.

Knows none of our code. `GENERATIONS` are those forms: "early" is the first LFM2-VL snapshot (keys
of its remote code), "lfm2" the same model in native files, "lfm2.5" the one without LayerNorm and
with a nested processor_config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tests import tiny

Generation = Literal["early", "lfm2", "lfm2.5"]
GENERATIONS: tuple[Generation, ...] = ("early", "lfm2", "lfm2.5")
IMAGE = "<image>"
STRUCTURAL = (
    *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)),
    "<|img_thumbnail|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|image_split|>",
)
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
VISION: dict[str, Any] = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_patches": 16,  # a learned grid of 4 x 4
    "patch_size": 16,
    "num_channels": 3,
    "vision_use_head": False,
}
# Tiles of 2 x 2 tokens, so that many of them are quick; the published values override these.
SMALL: dict[str, Any] = {
    "tile_size": 64,
    "min_image_tokens": 2,
    "max_image_tokens": 6,
    "min_tiles": 2,
    "max_tiles": 6,
    "max_pixels_tolerance": 2.0,
    "use_thumbnail": True,
    "do_image_splitting": True,
    "encoder_patch_size": 16,
    "downsample_factor": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "do_convert_rgb": True,
}
PUBLISHED = {"tile_size": 512, "min_image_tokens": 64, "max_image_tokens": 256, "max_tiles": 10}


def vl_folder(
    path: Path | str,
    generation: Generation = "lfm2.5",
    *,
    seed: int = 0,
    image: dict[str, Any] | None = None,
    **text: Any,
) -> Path:
    """A vision checkpoint at `path`; `image` overrides SMALL, `text` the backbone's settings."""
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = vl_tokenizer_files(path)
    settings = {**tiny.COMMON, **tiny.DENSE, "vocab_size": 640, **text, "model_type": "lfm2"}
    settings.setdefault("num_hidden_layers", len(settings["layer_types"]))
    normed = generation != "lfm2.5"
    config = Lfm2VlConfig(
        vision_config=dict(VISION),
        text_config=settings,
        image_token_id=vocabulary[IMAGE],
        projector_hidden_size=80 if normed else 64,
        projector_use_layernorm=normed,
        downsample_factor=2,
    )
    model = Lfm2VlForConditionalGeneration(config)
    tiny.randomize(model, seed)
    model.save_pretrained(path)
    processor_files(path, generation, {**SMALL, **(image or {})})
    if generation == "early":
        _as_remote_code_had_it(path / "config.json")
    return path


def vl_tokenizer_files(path: Path) -> dict[str, int]:
    """Tokenizer and template with the family's image tokens; returns the vocabulary."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    made = tiny.tokenizer()
    made.add_special_tokens([AddedToken(t, special=True) for t in (IMAGE, *STRUCTURAL)])
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=tiny.SPECIALS[1],
        eos_token=tiny.SPECIALS[7],
        pad_token=tiny.SPECIALS[0],
        add_bos_token=True,
        chat_template=TEMPLATE,
        model_max_length=int(1e30),
    ).save_pretrained(path)
    return made.get_vocab()


def processor(folder: Path) -> Any:
    """transformers' processor of a folder, of any of the generations."""
    from transformers import AutoTokenizer, Lfm2VlImageProcessorFast, Lfm2VlProcessor

    nested = json.loads((folder / "processor_config.json").read_text()).get("image_processor")
    settings = nested or json.loads((folder / "preprocessor_config.json").read_text())
    image_processor = Lfm2VlImageProcessorFast(**settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Lfm2VlProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def processor_files(path: Path, generation: Generation, image: dict[str, Any]) -> None:
    """What a generation keeps about pictures, in the files where it keeps it."""
    plain: dict[str, Any] = {"processor_class": "Lfm2VlProcessor", "use_image_special_tokens": True}
    common = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": True}
    common |= {"rescale_factor": 1 / 255, "size": {"height": image["tile_size"]}, **image}
    common["size"]["width"] = image["tile_size"]
    if generation == "lfm2.5":
        nested = {**common, "image_processor_type": "Lfm2VlImageProcessor"}
        tiny.write_json(path / "processor_config.json", {**plain, "image_processor": nested})
        return
    tiny.write_json(path / "processor_config.json", plain)
    flat = {**common, "image_processor_type": "Lfm2VlImageProcessorFast"}
    tiny.write_json(path / "preprocessor_config.json", {**flat, "return_row_col_info": True})


def _as_remote_code_had_it(path: Path) -> None:
    """The keys of the first snapshot in place of the native ones."""
    config = json.loads(path.read_text())
    config["model_type"] = "lfm2-vl"
    config["image_token_index"] = config.pop("image_token_id")
    text = config["text_config"]
    attention = [i for i, t in enumerate(text.pop("layer_types")) if t == "full_attention"]
    text["full_attn_idxs"] = attention
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    tiny.write_json(path, config)
