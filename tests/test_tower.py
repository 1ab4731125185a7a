"""Tower and projector equal transformers', whatever the crop; they train; dtypes stay close."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfm2_mm.backbone import Backbone
from lfm2_mm.device import Choice, int8_works
from lfm2_mm.errors import BadInput, CheckpointDamaged
from lfm2_mm.linear import Int8Linear
from tests import tiny_vision
from tests.conftest import SCRATCH
from tests.shapes import assert_close
from tests.tiny_vision import GENERATIONS, Generation
from vision.config import TowerConfig, VisionConfig
from vision.loading import load_vision
from vision.shapes import SHAPES, find_shape, random_vision
from vision.tower import MAX_SHAPES, VisionModel

# Patch rows and columns of a crop: the learned grid itself (4 x 4), both ways from it, thin ones.
CROPS = [(2, 2), (4, 4), (6, 2), (2, 14), (8, 8), (10, 6), (2, 26)]
# fp32: the same sums in another order (fused projections, no padding). Up to 4e-6 was seen in
# features (up to 4); a wrong position, norm or order of patches gives 1e-1 and more.
CLOSE = {"atol": 3e-5, "rtol": 1e-5}
FP32 = Choice("cpu", "fp32", 1, "a test")


@dataclass(frozen=True)
class Pair:
    """One checkpoint as we and as transformers open it, both fp32."""

    folder: Path
    ours: VisionModel
    reference: Any

    def expected(self, patches: Tensor, rows: int, cols: int, padded: int = 70) -> Tensor:
        """transformers' image features, patches padded as its processor does."""
        n, real, values = patches.shape
        pixels = torch.zeros(n, padded, values)
        pixels[:, :real] = patches
        mask = torch.zeros(n, padded, dtype=torch.int32)
        mask[:, :real] = 1
        shapes = torch.tensor([[rows, cols]] * n)
        with torch.inference_mode():
            features = self.reference.get_image_features(
                pixel_values=pixels, spatial_shapes=shapes, pixel_attention_mask=mask
            )
        return torch.stack(list(features.pooler_output))


@functools.cache
def pair(generation: Generation) -> Pair:
    from transformers import Lfm2VlForConditionalGeneration

    folder = tiny_vision.vl_folder(SCRATCH / f"tower-{generation}", generation)
    native = folder
    if generation == "early":  # transformers opens no early files: the same weights, native
        native = tiny_vision.vl_folder(SCRATCH / "tower-native", "lfm2")
    reference = Lfm2VlForConditionalGeneration.from_pretrained(native, dtype=torch.float32)
    return Pair(folder, load_vision(folder, FP32), reference.eval())


def some_patches(n: int, rows: int, cols: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, rows * cols, 768, generator=generator) * 2 - 1


def small(**settings: Any) -> VisionConfig:
    backbone = pair("lfm2.5").ours.config.backbone
    tower = TowerConfig(width=32, feed_forward=48, heads=4, layers=2, grid=4)
    return VisionConfig(tower, backbone, projector_width=40, **settings)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_features_equal_transformers(generation: Generation, crop: tuple[int, int]) -> None:
    both, patches = pair(generation), some_patches(2, *crop)
    assert_close(both.ours(patches, *crop), both.expected(patches, *crop), **CLOSE)


def test_a_crop_does_not_depend_on_those_beside_it() -> None:
    ours, patches = pair("lfm2").ours, some_patches(5, 6, 4)
    alone = torch.cat([ours(patch[None], 6, 4) for patch in patches])
    assert_close(ours(patches, 6, 4), alone, **CLOSE)


def test_turning_a_crop_is_seen() -> None:
    """Rows and columns are not interchangeable: the test above would miss it on square crops."""
    ours, patches = pair("lfm2").ours, some_patches(1, 2, 8)
    assert (ours(patches, 2, 8) - ours(patches, 8, 2)).abs().max() > 0.1


def test_crops_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 x 4 patches do not divide into squares of 2 x 2"):
        pair("lfm2").ours(some_patches(1, 3, 4), 3, 4)


class TestPositions:
    def test_are_resized_once_for_each_shape(self) -> None:
        tower = load_vision(pair("lfm2").folder, FP32).tower
        first = tower.positions_of(2, 6)
        assert tower.positions_of(2, 6) is first
        assert tower.positions_of(6, 2) is not first

    def test_few_shapes_are_kept(self) -> None:
        tower = load_vision(pair("lfm2").folder, FP32).tower
        for cols in range(1, MAX_SHAPES + 10):
            tower.positions_of(2, cols)
        assert len(tower.resized) == MAX_SHAPES
        assert torch.equal(tower.positions_of(2, 1), tower.resize(2, 1))

    def test_that_are_trained_are_resized_anew(self) -> None:
        model = VisionModel.new(small())
        patches = some_patches(1, 2, 6)
        before = model(patches, 2, 6)
        with torch.no_grad():
            model.tower.positions.add_(torch.linspace(0, 1, 32))
        assert (model(patches, 2, 6) - before).abs().max() > 0.01


@pytest.mark.parametrize("norm", [True, False])
def test_every_parameter_gets_a_gradient(norm: bool) -> None:
    model = VisionModel.new(small(projector_norm=norm))
    model(some_patches(2, 4, 6), 4, 6).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_new_model_is_the_same_for_a_seed_and_neither_silent_nor_loud() -> None:
    patches = some_patches(2, 4, 6)
    one, same, other = (VisionModel.new(small(), seed=seed)(patches, 4, 6) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert 0.1 < one.std() < 10


# Largest error of a feature vector, relative to its length. Seen: bf16 .012, int8 .016.
@pytest.mark.parametrize(("weights", "most"), [("bf16", 0.03), ("int8", 0.04)])
def test_smaller_dtypes_stay_close(weights: Any, most: float) -> None:
    if weights == "int8" and not int8_works():
        pytest.skip("this torch has no int8 product")
    both, patches = pair("lfm2.5"), some_patches(3, 6, 8)
    exact = both.ours(patches, 6, 8)
    model = load_vision(both.folder, Choice("cpu", weights, 1, "a test"))
    error = (model(patches, 6, 8).float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 0 < error.max() < most


def test_int8_packs_all_but_what_reads_pixels() -> None:
    if not int8_works():
        pytest.skip("this torch has no int8 product")
    model = load_vision(pair("lfm2").folder, Choice("cpu", "int8", 1, "a test"))
    packed = [name for name, m in model.named_modules() if isinstance(m, Int8Linear)]
    assert len(packed) == 2 * 4 + 2  # four a layer, two in the projector
    assert model.tower.patch_embedding.weight.dtype == torch.float32


# Parameters as published; LFM2.5-VL-450M's are not, so what its projector saves is counted.
PUBLISHED = {
    "LFM2-VL-450M": 450_822_656,
    "LFM2-VL-1.6B": 1_584_804_000,
    "LFM2-VL-3B": 2_998_975_216,
    "LFM2.5-VL-450M": 450_822_656 - 512 * (4 * 768 + 1 + 1024) - 2 * 4 * 768,
    "LFM2.5-VL-1.6B": 1_596_625_904,
}


class TestShapes:
    @pytest.mark.parametrize("name", SHAPES)
    def test_parameters_are_the_published_number(self, name: str) -> None:
        config = find_shape(name.lower())
        with torch.device("meta"):
            vision, backbone = VisionModel(config), Backbone(config.backbone)
        own = sum(parameter.numel() for parameter in vision.parameters())
        assert own + backbone.parameter_count() == PUBLISHED[name]

    def test_random_weights_make_features(self) -> None:
        features = random_vision(small(projector_norm=True), FP32)(some_patches(1, 4, 4), 4, 4)
        assert features.shape == (1, 4, 64) and 0.1 < features.std() < 10

    def test_an_unknown_name(self) -> None:
        with pytest.raises(BadInput, match="no shape 'LFM9'; known are LFM2-VL-450M, "):
            find_shape("LFM9")


class TestConfig:
    @pytest.mark.parametrize("name", SHAPES)
    def test_json_and_back(self, name: str) -> None:
        assert VisionConfig.from_json(SHAPES[name].to_json()) == SHAPES[name]

    def test_both_generations_of_keys_say_the_same(self) -> None:
        early, native, newer = (pair(generation).ours.config for generation in GENERATIONS)
        assert early == native
        assert native.projector_norm and not newer.projector_norm

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"model_type": "lfm2"}, "model_type is 'lfm2'"),
            ({"model_type": None}, "model_type is None"),
            ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
            ({"projector_hidden_size": 0}, "a size of the projector is 0"),
            ({"downsample_factor": "2"}, "a size of the projector is '2'"),
            ({"image_token_id": 65_536}, "lies beyond the vocabulary of 65536"),
            ({"image_token_id": "396"}, "is no size or setting"),
            ({"vision_config": None}, "is no size or setting"),
            ({"vision_config": {"model_type": "clip"}}, "vision_config is a 'clip'"),
            ({"vision_config": {"hidden_act": "gelu"}}, "with 'gelu'"),
            ({"vision_config": {"num_attention_heads": 7}}, "7 heads do not divide"),
            ({"vision_config": {"num_hidden_layers": 10**4}}, "asks for 10000 layers"),
            ({"vision_config": {"patch_size": 16.0}}, "a size of vision_config is 16.0"),
            ({"vision_config": {"num_patches": 250}}, "num_patches is 250, which is no square"),
        ],
    )
    def test_what_cannot_be(self, change: dict[str, Any], told: str) -> None:
        raw = SHAPES["LFM2-VL-450M"].to_json() | change
        with pytest.raises(CheckpointDamaged, match=told):
            VisionConfig.from_json(raw)

    @pytest.mark.parametrize("key", ["vision_config", "text_config"])
    def test_what_is_missing(self, key: str) -> None:
        raw = SHAPES["LFM2-VL-450M"].to_json()
        del raw[key]
        with pytest.raises(CheckpointDamaged, match=f"config.json lacks '{key}'"):
            VisionConfig.from_json(raw)
