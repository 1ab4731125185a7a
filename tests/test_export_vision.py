"""A vision checkpoint in llama.cpp: both files are run there on pictures, beside our engine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import vision
from apps.cli import main
from lfm2_mm.engine import open_engine
from lfm2_mm.exports import mmproj_file
from lfm2_mm.exports.export import Report, export
from lfm2_mm.llama import Llama, mmproj_of
from lfm2_mm.types import Image, Message, Sampling, text_of
from tests import tiny, tiny_vision
from vision.exporting import open_source

NANO = Path(__file__).parent.parent / "lfm2_mm" / "assets" / "nano_vl"
FEW = {"layer_types": ["conv", "full_attention", "conv"], "max_position_embeddings": 4096}
SMALL = {"tile_size": 64, "max_tiles": 4, "min_image_tokens": 16}  # not llama.cpp's way of cutting


@pytest.fixture(autouse=True)
def llama_is_here() -> None:
    for library in ("gguf", "xllamacpp"):
        if find_spec(library) is None:
            pytest.skip(f"gguf: {library} is not installed")


def tiny_folder(path: Path, generation: tiny_vision.Generation, **image) -> Path:
    return tiny_vision.vl_folder(path, generation, image={**tiny_vision.PUBLISHED, **image}, **FEW)


def made(folder: Path, output: Path, kind: str) -> Report:
    return export(open_source(folder, "vl", "fp32"), "gguf", kind, output)


def seen(report: Report) -> list:
    return [check for check in report.checks if check.how.startswith("picture")]


@pytest.mark.parametrize("generation", tiny_vision.GENERATIONS)
def test_every_generation_sees_in_llama_as_here(
    generation: tiny_vision.Generation, tmp_path: Path
) -> None:
    """With the projector's LayerNorm and without; one crop of several shapes, and tiles."""
    report = made(tiny_folder(tmp_path / "m", generation), tmp_path / "vl.gguf", "f32")
    assert report.ok, report.checks
    assert report.mmproj == tmp_path / "mmproj-vl.gguf" and report.mmproj.is_file()
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.gguf"))
    assert len(seen(report)) == 4 and seen(report)[-1].prompt_tokens > 5 * 256
    assert all(check.ids_equal and check.argmax_equal for check in seen(report))
    assert len(report.remarks) == 2 and "--flash-attn off" in report.remarks[0]


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_every_type_agrees_with_our_engine_on_the_same_rounded_weights(
    kind: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "m", "lfm2.5", max_image_tokens=128)
    report = made(folder, tmp_path / "vl.gguf", kind)
    assert report.ok, report.checks
    assert seen(report) and max(check.max_logit_difference for check in seen(report)) > 0
    odd = [told for told in report.remarks if "v.blk.0.ffn_down.weight" in told]
    assert len(odd) == (kind in ("q8_0", "q4_0"))  # rows of 48 are no whole blocks


def test_a_checkpoint_s_own_rule_is_told_to_llama_as_far_as_it_listens(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "lfm2", min_image_tokens=9, tile_size=256)
    report = made(folder, tmp_path / "vl.gguf", "f32")
    assert report.ok, report.checks
    assert min(check.prompt_tokens for check in seen(report)) < 64
    assert "--image-min-tokens 9 --image-max-tokens 256" in report.remarks[0]
    assert "tile 512" in report.remarks[1]


# -- the bundled checkpoint, as a person uses it --------------------------------------------------


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> dict:
    output = tmp_path_factory.mktemp("nano") / "nano-vl.gguf"
    report = made(NANO, output, "f16")
    assert report.ok, report.checks
    return {"path": output, "report": report}


def test_a_picture_is_described_over_http_as_here(nano: dict) -> None:
    """Our client at llama.cpp's server, and our own engine: the same words, as far as 16 bits say
    the same."""
    pixels = np.full((256, 256, 3), 255, np.uint8)
    pixels[64:192, 64:192] = (200, 30, 30)
    asked = [Message.user(Image.open(pixels), "What is this?")]
    greedy = Sampling(temperature=0.0, max_tokens=12)
    ours = vision.open(NANO, dtype="fp32")
    llama = Llama(
        nano["path"], context=1024, mmproj=mmproj_of(nano["path"]), image_tokens=(16, 256)
    )
    theirs = open_engine(f"{llama.address}/v1", api_key=llama.key)
    try:
        assert text_of(theirs.stream(asked, greedy)) == text_of(ours.stream(asked, greedy)) != ""
    finally:
        theirs.close()
        llama.close()
        ours.close()


def test_the_command_names_both_files(capsys, tmp_path: Path, nano: dict) -> None:
    output = nano["path"]
    before = [file.stat() for file in (output, mmproj_of(output))]
    arguments = ["export", "nano-vl", "--to", "gguf", "-o"]
    assert main([*arguments, str(output)]) == 1 and "--force" in capsys.readouterr().err
    alone = tmp_path / "vl.gguf"
    mmproj_of(alone).write_text("kept")
    assert main([*arguments, str(alone)]) == 1 and "mmproj-vl.gguf" in capsys.readouterr().err
    assert main([*arguments, str(alone), "--force", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["path"], record["mmproj"]) == (str(alone), str(mmproj_of(alone)))
    assert record["ok"] and any(check["how"].startswith("picture") for check in record["checks"])
    assert mmproj_of(alone).stat().st_size > 1_000_000
    assert [file.stat() for file in (output, mmproj_of(output))] == before


# -- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "swapped", [("layer_norm1", "layer_norm2"), ("self_attn.q_proj", "self_attn.k_proj")]
)
def test_a_tower_that_disagrees_fails_both_files(
    swapped: tuple[str, str], tmp_path: Path, monkeypatch
) -> None:
    one, other = swapped
    names = mmproj_file.IN_LAYER
    monkeypatch.setattr(mmproj_file, "IN_LAYER", names | {one: names[other], other: names[one]})
    folder = tiny_folder(tmp_path / "m", "lfm2.5", max_image_tokens=128)
    report = made(folder, tmp_path / "vl.gguf", "f16")
    assert not report.ok and not any(check.within for check in seen(report))
    assert all(check.within for check in report.checks if check not in seen(report))
    assert sorted(p.name for p in tmp_path.glob("*.gguf*")) == [
        "mmproj-vl.gguf.failed",
        "vl.gguf.failed",
    ]


def test_what_llama_has_no_place_for_leaves_the_language_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "lfm2.5")
    told = json.loads((folder / "processor_config.json").read_text())
    told["use_image_special_tokens"] = False
    tiny.write_json(folder / "processor_config.json", told)
    report = made(folder, tmp_path / "vl.gguf", "f32")
    assert report.ok and report.mmproj is None and not seen(report)
    assert "sees no pictures" in report.remarks[0] and "no special tokens" in report.remarks[0]
    assert not mmproj_of(tmp_path / "vl.gguf").exists()
