"""Published files into a backbone and back; whatever does not fit is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lfm2_mm import weights
from lfm2_mm.backbone import Backbone
from lfm2_mm.config import BackboneConfig
from lfm2_mm.device import Choice
from lfm2_mm.errors import CheckpointDamaged
from lfm2_mm.loading import build
from tests import tiny, tiny_vision
from tests.shapes import (
    NAMES,
    assert_close,
    folder,
    full,
    opened,
    pair,
    reference_at,
    some_ids,
)

IDS = some_ids(2, 9)
Tensors = dict[str, Tensor]


def changed(name: str, to: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of the checkpoint `name` at `to`, its tensors changed by `change`."""
    shutil.copytree(folder(name), to)
    tensors = load_file(to / weights.SINGLE)
    change(tensors)
    save_file(tensors, to / weights.SINGLE, metadata={"format": "pt"})
    return to


def keys(name: str) -> list[str]:
    return weights.tensor_keys(folder(name))


def kinds(name: str) -> list[str]:
    """One tensor of every kind, without prefix: the last of its layers and experts."""
    last = {re.sub(r"\d+", "N", key): key for key in keys(name)}
    return [key.removeprefix("model.") for key in last.values()]


def build_changed(name: str, change: Callable[[Tensors], None], dtype: str = "fp32") -> Backbone:
    """As `changed`, without a file: tensors in the order in which they would be read."""
    tensors = {k.removeprefix("model."): t for k, t in weights.read_tensors(folder(name))}
    change(tensors)
    config = BackboneConfig.from_json(json.loads((folder(name) / "config.json").read_text()))
    choice = Choice("cpu", "int8" if dtype == "int8" else "fp32", 1, "a test")
    return build(config, tensors.items(), choice)


def same(one: Backbone, other: Backbone) -> None:
    hidden = full(one, IDS)
    assert torch.equal(hidden, full(other, IDS))
    assert torch.equal(one.logits(hidden), other.logits(hidden))


class TestVisionCheckpoints:
    """The language model of a vision checkpoint, beside its tower and projector."""

    @pytest.mark.parametrize("generation", tiny_vision.GENERATIONS)
    def test_logits(self, generation: tiny_vision.Generation, tmp_path: Path) -> None:
        path = tiny_vision.vl_folder(tmp_path / generation, generation)
        ours = opened(path)
        native = path if generation != "early" else tiny_vision.vl_folder(tmp_path / "n", "lfm2")
        reference = transformers_vl(native)
        expected = reference(input_ids=IDS, use_cache=False).logits
        assert_close(ours.logits(full(ours, IDS)), expected)

    def test_an_untied_head_lies_beside_the_language_model(self, tmp_path: Path) -> None:
        path = tiny_vision.vl_folder(tmp_path)
        settings = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
        tensors = dict(weights.read_tensors(path))
        embedding = tensors["model.language_model.embed_tokens.weight"]
        save_file({**tensors, "lm_head.weight": 2 * embedding}, path / weights.SINGLE)
        untied = opened(path)
        hidden = full(untied, IDS)
        assert torch.equal(untied.logits(hidden), hidden @ (2 * embedding).T)

    def test_a_foreign_tensor_in_it_is_refused(self, tmp_path: Path) -> None:
        path = tiny_vision.vl_folder(tmp_path)
        odd = {"model.language_model.layers.0.odd.weight": torch.zeros(1)}
        save_file({**dict(weights.read_tensors(path)), **odd}, path / weights.SINGLE)
        with pytest.raises(CheckpointDamaged, match="odd"):
            opened(path)


def transformers_vl(path: Path) -> Any:
    from transformers import Lfm2VlForConditionalGeneration

    return Lfm2VlForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()


class TestLayouts:
    @pytest.mark.parametrize("name", ["attention_first", "moe"])
    @pytest.mark.parametrize("dtype", ["fp32", "int8"])
    def test_sharded(self, name: str, dtype: str, tmp_path: Path) -> None:
        """Parts of a fused matrix, and experts of a layer, lie in different files."""
        pair(name).reference.save_pretrained(tmp_path, max_shard_size="30KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 5
        assert not (tmp_path / weights.SINGLE).exists()
        same(opened(tmp_path, dtype=dtype), opened(name, dtype=dtype))

    def test_prefix(self) -> None:
        assert "model.embed_tokens.weight" in keys("dense")
        assert "model.layers.2.feed_forward.experts.5.w3.weight" in keys("moe")
        assert "model.layers.2.feed_forward.expert_bias" in keys("moe")

    @pytest.mark.parametrize("name", ["dense", "moe"])
    def test_no_prefix(self, name: str, tmp_path: Path) -> None:
        def drop_prefix(tensors: Tensors) -> None:
            for key in list(tensors):
                tensors[key.removeprefix("model.")] = tensors.pop(key)

        same(opened(changed(name, tmp_path / "bare", drop_prefix)), opened(name))

    def test_a_trunk_as_transformers_saves_it(self, tmp_path: Path) -> None:
        trunk = tiny.trunk_folder(tmp_path / "trunk")
        assert "embed_tokens.weight" in weights.tensor_keys(trunk)
        same(opened(trunk), opened("dense"))

    @pytest.mark.parametrize("name", ["dense", "moe", "attention_only"])
    def test_files_in_bf16(self, name: str, tmp_path: Path) -> None:
        """As published. Opened in fp32, nothing is rounded again."""
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder(name), dtype=torch.bfloat16
        )
        model.save_pretrained(tmp_path)
        ours, reference = opened(tmp_path), reference_at(tmp_path)
        assert weights.tensors_of(tmp_path)["model.embedding_norm.weight"].dtype == "BF16"
        expected = reference(input_ids=IDS, use_cache=False).logits
        assert_close(ours.logits(full(ours, IDS)), expected)

    @pytest.mark.parametrize("dtype", ["fp32", "int8"])
    def test_a_stored_copy_of_the_tied_head(self, dtype: str, tmp_path: Path) -> None:
        def copy(tensors: Tensors) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

        path = changed("dense", tmp_path / "copy", copy)
        same(opened(path, dtype=dtype), opened("dense", dtype=dtype))

    @pytest.mark.parametrize("name", NAMES)
    def test_parameters_counted_as_stored(self, name: str) -> None:
        stored = {k: t.numel() for k, t in weights.read_tensors(folder(name))}
        biases = sum(n for key, n in stored.items() if key.endswith("expert_bias"))
        assert pair(name).ours.parameter_count() == sum(stored.values()) - biases

    def test_weights_take_no_gradient(self) -> None:
        assert not any(p.requires_grad for p in opened("moe").parameters())
        assert not opened("moe").training


class TestDamage:
    """Nothing is filled with random numbers, nothing is left over, and the error says which."""

    @pytest.mark.parametrize("dtype", ["fp32", "int8"])
    @pytest.mark.parametrize("name", ["attention_first", "moe"])
    def test_each_tensor_is_needed(self, name: str, dtype: str) -> None:
        for key in kinds(name):
            with pytest.raises(CheckpointDamaged, match=rf"lack {key}$"):
                build_changed(name, lambda tensors, k=key: tensors.pop(k), dtype)

    @pytest.mark.parametrize("name", ["attention_first", "moe"])
    def test_each_tensor_has_its_own_shape(self, name: str) -> None:
        def longer(tensors: Tensors, key: str, axis: int) -> None:
            tensors[key] = torch.cat([tensors[key], tensors[key].narrow(axis, 0, 1)], axis)

        stored = dict(weights.read_tensors(folder(name)))
        for key in kinds(name):
            says = rf"^{key} has shape .*asks for"
            for axis in range(stored.get(f"model.{key}", stored.get(key)).dim()):
                with pytest.raises(CheckpointDamaged, match=says):
                    build_changed(name, lambda t, k=key, a=axis: longer(t, k, a))
            with pytest.raises(CheckpointDamaged, match=says):
                build_changed(name, lambda t, k=key: t.update({k: t[k][None]}))

    @pytest.mark.parametrize(
        ("bad", "dtype"), [(float("nan"), "fp32"), (float("-inf"), "fp32"), (float("nan"), "int8")]
    )
    def test_each_tensor_is_finite(self, dtype: str, bad: float) -> None:
        def spoil(tensors: Tensors, key: str) -> None:
            tensors[key] = tensors[key].clone()
            tensors[key].view(-1)[-1] = bad

        for key in kinds("moe"):
            with pytest.raises(CheckpointDamaged, match=f"^{key} holds NaN or infinity"):
                build_changed("moe", lambda tensors, k=key: spoil(tensors, k), dtype)

    def test_halves_that_only_fit_together(self) -> None:
        """w1 one row short and w3 one row long would fill the fused matrix exactly, and wrongly."""

        def shift(tensors: Tensors) -> None:
            w1, w3 = (tensors[f"layers.0.feed_forward.w{i}.weight"] for i in (1, 3))
            tensors["layers.0.feed_forward.w1.weight"] = w1[:-1]
            tensors["layers.0.feed_forward.w3.weight"] = torch.cat([w1[-1:], w3])

        with pytest.raises(CheckpointDamaged, match=r"feed_forward\.w[13]\.weight has shape"):
            build_changed("dense", shift)

    @pytest.mark.parametrize(
        "key",
        [
            "model.layers.0.self_attn.q_proj.weight",  # a convolution layer
            "model.layers.6.ffn_norm.weight",  # one layer too many
            "model.layers.0.conv.conv.bias",  # conv_bias is false
            "model.layers.0.feed_forward.w1.bias",
            "model.rotary_emb.inv_freq",
            "lm_head.bias",
            "something.else",
        ],
    )
    def test_what_is_not_expected_is_named(self, key: str, tmp_path: Path) -> None:
        path = changed("dense", tmp_path / "more", lambda t: t.update({key: torch.ones(64)}))
        with pytest.raises(CheckpointDamaged, match=repr(key.removeprefix("model."))):
            opened(path)

    def test_an_expert_bias_that_config_excludes(self, tmp_path: Path) -> None:
        key = "model.layers.2.feed_forward.expert_bias"
        path = changed("moe_plain", tmp_path / "bias", lambda t: t.update({key: torch.ones(5)}))
        with pytest.raises(CheckpointDamaged, match="expert_bias"):
            opened(path)

    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
    def test_a_tied_head_that_differs(self, dtype: str, tmp_path: Path) -> None:
        def differ(tensors: Tensors) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
            tensors["lm_head.weight"][511, 63] += 1

        with pytest.raises(CheckpointDamaged, match=r"lm_head\.weight differs"):
            opened(changed("dense", tmp_path / "copy", differ), dtype=dtype)

    def test_an_untied_head_that_is_missing(self, tmp_path: Path) -> None:
        path = changed("attention_only", tmp_path / "less", lambda t: t.pop("lm_head.weight"))
        with pytest.raises(CheckpointDamaged, match=r"lack lm_head\.weight"):
            opened(path)

    def test_no_embedding(self, tmp_path: Path) -> None:
        path = changed("dense", tmp_path / "less", lambda t: t.pop("model.embed_tokens.weight"))
        with pytest.raises(CheckpointDamaged, match=r"embed_tokens\.weight"):
            opened(path)

    def test_the_same_tensor_with_and_without_prefix(self, tmp_path: Path) -> None:
        key = "layers.0.ffn_norm.weight"
        path = changed("dense", tmp_path / "twice", lambda t: t.update({key: torch.ones(64)}))
        with pytest.raises(CheckpointDamaged, match=key):
            opened(path)

    def test_many_missing_are_counted(self, tmp_path: Path) -> None:
        def halve(tensors: Tensors) -> None:
            for key in [k for k in tensors if ".layers.4." in k]:
                del tensors[key]

        gone = len([key for key in keys("dense") if ".layers.4." in key])
        with pytest.raises(CheckpointDamaged, match=rf"layers\.4\.\S+ and {gone - 3} more"):
            opened(changed("dense", tmp_path / "half", halve))

    @pytest.mark.parametrize("config", [b"{", b"[]", b"\xff", b'{"model_type": "lfm2"}'])
    def test_a_garbled_config(self, config: bytes, tmp_path: Path) -> None:
        path = changed("dense", tmp_path / "bad", lambda tensors: None)
        (path / "config.json").write_bytes(config)
        with pytest.raises(CheckpointDamaged, match=r"config\.json"):
            opened(path)

    def test_a_config_of_another_size(self, tmp_path: Path) -> None:
        path = changed("dense", tmp_path / "bad", lambda tensors: None)
        raw = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(raw | {"vocab_size": 500}))
        with pytest.raises(CheckpointDamaged, match=r"embed_tokens.*\(512, 64\).*\(500, 64\)"):
            opened(path)

    def test_a_cut_off_file(self, tmp_path: Path) -> None:
        path = changed("dense", tmp_path / "bad", lambda tensors: None)
        whole = (path / weights.SINGLE).read_bytes()
        (path / weights.SINGLE).write_bytes(whole[:-10])
        with pytest.raises(CheckpointDamaged, match="cut off"):
            opened(path)


class TestSaving:
    @pytest.mark.parametrize("name", NAMES)
    def test_transformers_opens_what_we_save(self, name: str, tmp_path: Path) -> None:
        ours = pair(name).ours
        path = weights.write(tmp_path / "saved", ours.state_tensors(), ours.config.to_json())
        logits = reference_at(path)(input_ids=IDS, use_cache=False).logits
        assert_close(logits, ours.logits(full(ours, IDS)))

    @pytest.mark.parametrize("name", NAMES)
    def test_names_and_bits_are_those_of_the_file(self, name: str) -> None:
        stored = {k.removeprefix("model."): t for k, t in weights.read_tensors(folder(name))}
        saved = pair(name).ours.state_tensors()
        assert set(saved) == set(stored)
        assert all(torch.equal(saved[key], stored[key]) for key in stored)

    def test_a_new_backbone_saved_and_opened(self, tmp_path: Path) -> None:
        new = Backbone.new(pair("moe").ours.config, seed=5)
        path = weights.write(tmp_path / "new", new.state_tensors(), new.config.to_json())
        same(opened(path), new)

    def test_an_int8_backbone_cannot_be_saved(self) -> None:
        with pytest.raises(ValueError, match="int8"):
            opened("dense", dtype="int8").state_tensors()
