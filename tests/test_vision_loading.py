"""Vision files of every spelling open alike, what does not fit is named, what we save opens."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lfm2_mm import weights
from lfm2_mm.backbone import Backbone
from lfm2_mm.device import Choice, int8_works
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.linear import Int8Linear
from tests import tiny_vision
from tests.conftest import SCRATCH
from tests.shapes import some_ids
from tests.tiny_vision import GENERATIONS, Generation
from vision.loading import load_vision, published_tensors, save
from vision.tower import VisionModel

FP32 = Choice("cpu", "fp32", 1, "a test")
ROWS, COLS = 4, 6
Tensors = dict[str, Tensor]
OLD = "model.vision_tower.vision_model."


@functools.cache
def folder(generation: Generation = "lfm2") -> Path:
    return tiny_vision.vl_folder(SCRATCH / f"loading-{generation}", generation)


def changed(to: Path, change: Callable[[Tensors], Tensors | None], config: Any = None) -> Path:
    """A copy of the native checkpoint at `to`: its tensors changed, its config.json added to."""
    to.mkdir()
    tensors = load_file(folder() / weights.SINGLE)
    save_file(change(tensors) or tensors, to / weights.SINGLE)
    raw = json.loads((folder() / "config.json").read_text()) | (config or {})
    (to / "config.json").write_text(json.dumps(raw))
    return to


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(old, new, key): t for key, t in tensors.items()}


def features(model: VisionModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(2, ROWS * COLS, 768, generator=generator) * 2 - 1
    with torch.inference_mode():
        return model(patches, ROWS, COLS)


@functools.cache
def expected() -> Tensor:
    return features(load_vision(folder(), FP32))


class TestSpellings:
    """Files of every time, with the same weights, give the same features."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (r"vision_model\.", ""),  # files of newer transformers
            (r"^model\.", ""),
            (r"^model\.(vision_tower|multi_modal_projector)", r"\1"),
            (r"^model\.language_model\.", "language_model.model."),
        ],
    )
    def test_keys(self, tmp_path: Path, old: str, new: str) -> None:
        path = changed(tmp_path / "x", renamed(old, new))
        assert torch.equal(features(load_vision(path, FP32)), expected())
        assert Backbone.open(path, device="cpu", dtype="fp32").config.hidden_size == 64

    def test_the_first_snapshots(self) -> None:
        assert torch.equal(features(load_vision(folder("early"), FP32)), expected())

    def test_shards(self, tmp_path: Path) -> None:
        tensors = load_file(folder() / weights.SINGLE)
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, tmp_path / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (tmp_path / weights.INDEX).write_text(json.dumps(index))
        (tmp_path / "config.json").write_bytes((folder() / "config.json").read_bytes())
        assert torch.equal(features(load_vision(tmp_path, FP32)), expected())

    def test_a_head_that_is_stored_although_tied(self, tmp_path: Path) -> None:
        def add(tensors: Tensors) -> None:
            tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()

        path = changed(tmp_path / "x", add)
        assert torch.equal(features(load_vision(path, FP32)), expected())

    def test_a_pooling_head_is_left_alone(self, tmp_path: Path) -> None:
        def add(tensors: Tensors) -> None:
            tensors[OLD + "head.probe"] = torch.zeros(1, 1, 32)

        path = changed(tmp_path / "x", add)
        assert torch.equal(features(load_vision(path, FP32)), expected())


class TestDamage:
    KINDS = (
        "embeddings.position_embedding.weight",
        "encoder.layers.1.self_attn.k_proj.bias",
        "encoder.layers.1.mlp.fc2.weight",
        "encoder.layers.0.layer_norm2.weight",
        "post_layernorm.bias",
    )

    @pytest.mark.parametrize("key", KINDS)
    def test_a_missing_tensor_is_named(self, tmp_path: Path, key: str) -> None:
        def drop(tensors: Tensors) -> None:
            del tensors[OLD + key]

        with pytest.raises(CheckpointDamaged, match=f"lack tower.{key}"):
            load_vision(changed(tmp_path / "x", drop), FP32)

    @pytest.mark.parametrize("key", KINDS)
    def test_a_wrong_shape_is_named(self, tmp_path: Path, key: str) -> None:
        def cut(tensors: Tensors) -> None:
            tensors[OLD + key] = tensors[OLD + key][:-1].clone()

        with pytest.raises(CheckpointDamaged, match=f"{key} has shape .*config.json asks for"):
            load_vision(changed(tmp_path / "x", cut), FP32)

    @pytest.mark.parametrize(
        "key",
        [
            "model.vision_tower.vision_model.encoder.layers.2.layer_norm1.weight",
            "model.multi_modal_projector.linear_3.weight",
            "model.audio_tower.weight",
            "model.vision_tower.other",
            "stray",
        ],
    )
    def test_a_tensor_without_a_place_is_named(self, tmp_path: Path, key: str) -> None:
        def add(tensors: Tensors) -> None:
            tensors[key] = torch.zeros(32)

        name = key.removeprefix("model.vision_tower.vision_model.")
        with pytest.raises(CheckpointDamaged, match=name.removeprefix("model.multi_modal_proj")):
            load_vision(changed(tmp_path / "x", add), FP32)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_no_numbers(self, tmp_path: Path, value: float) -> None:
        def spoil(tensors: Tensors) -> None:
            tensors["model.multi_modal_projector.linear_2.weight"][3, 4] = value

        with pytest.raises(CheckpointDamaged, match=r"linear_2.weight holds NaN or infinity"):
            load_vision(changed(tmp_path / "x", spoil), FP32)

    def test_a_projector_of_the_other_generation(self, tmp_path: Path) -> None:
        other = changed(tmp_path / "x", lambda t: None, {"projector_use_layernorm": False})
        with pytest.raises(CheckpointDamaged, match=r"projector.layer_norm.\w+', which"):
            load_vision(other, FP32)

    def test_without_a_tower(self, tmp_path: Path) -> None:
        path = changed(
            tmp_path / "x", lambda t: {k: v for k, v in t.items() if "vision_tower" not in k}
        )
        with pytest.raises(CheckpointDamaged, match="hold 0 tensors embeddings.patch_embedding"):
            load_vision(path, FP32)

    def test_names_without_parts(self, tmp_path: Path) -> None:
        path = changed(tmp_path / "x", renamed(r"^model\.(vision_tower\.vision_model)\.", ""))
        with pytest.raises(CheckpointDamaged, match="do not tell the vision tower from the rest"):
            load_vision(path, FP32)


class TestSaving:
    @pytest.mark.parametrize("generation", GENERATIONS)
    def test_every_weight_under_its_published_name(self, generation: Generation) -> None:
        path = folder(generation)
        backbone = Backbone.open(path, device="cpu", dtype="fp32")
        ours = published_tensors(backbone, load_vision(path, FP32))
        theirs = load_file(path / weights.SINGLE)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    @pytest.mark.parametrize("generation", ["lfm2", "lfm2.5"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_transformers_opens_what_we_save(
        self, tmp_path: Path, generation: Generation, dtype: torch.dtype
    ) -> None:
        import transformers

        theirs_class: Any = transformers.Lfm2VlForConditionalGeneration
        config = load_vision(folder(generation), FP32).config
        vision = VisionModel.new(config, seed=3).to(dtype)
        backbone = Backbone.new(config.backbone, seed=4).to(dtype)
        path = save(tmp_path / "ours", backbone, vision, {"note.txt": "kept"})
        model, info = theirs_class.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        again = load_vision(path, FP32)
        assert again.config == config and (path / "note.txt").read_text() == "kept"
        stored = weights.tensors_of(path)["model.vision_tower.vision_model.post_layernorm.bias"]
        assert stored.dtype == {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
        pixels = torch.rand(1, ROWS * COLS, 768) * 2 - 1
        with torch.inference_mode():
            theirs = model.get_image_features(
                pixel_values=pixels,
                spatial_shapes=torch.tensor([[ROWS, COLS]]),
                pixel_attention_mask=torch.ones(1, ROWS * COLS, dtype=torch.int32),
            ).pooler_output[0]
            logits = model(input_ids=some_ids(1, 5)).logits
            ours = again(pixels, ROWS, COLS)[0]
        torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-5)
        opened = Backbone.open(path, device="cpu", dtype="fp32")
        torch.testing.assert_close(
            opened.logits(opened(opened.embed(some_ids(1, 5)))), logits, atol=5e-5, rtol=1e-5
        )

    def test_int4_towers_are_int8(self) -> None:
        if not int8_works():
            pytest.skip("this torch has no int8 product")
        model = load_vision(folder(), Choice("cpu", "int4", 1, "a test"))
        assert any(isinstance(module, Int8Linear) for module in model.modules())

    def test_an_int8_tower_is_refused(self) -> None:
        if not int8_works():
            pytest.skip("this torch has no int8 product")
        packed = load_vision(folder(), Choice("cpu", "int8", 1, "a test"))
        backbone = Backbone.open(folder(), device="cpu", dtype="fp32")
        with pytest.raises(ValueError, match="open it with dtype='fp32'"):
            published_tensors(backbone, packed)

    def test_a_folder_with_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        vision = load_vision(folder(), FP32)
        backbone = Backbone.open(folder(), device="cpu", dtype="fp32")
        with pytest.raises(BadInput, match="holds something else than a checkpoint"):
            save(tmp_path, backbone, vision, {})
        assert (tmp_path / "letter.txt").read_text() == "dear"
