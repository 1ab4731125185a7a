"""Every export is run in its own runtime, for every kind of checkpoint, and what can go wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from apps.cli import main
from lfm2_mm.errors import BadInput, MissingExtra
from lfm2_mm.exports import gguf_file
from lfm2_mm.exports.checks import Row
from lfm2_mm.exports.export import Report, export, prepare
from lfm2_mm.exports.source import Source, open_source
from lfm2_mm.exports.to_gguf import PIECES
from retrieval import exporting
from tests import tiny, tiny_vision

ROOT = Path(__file__).parent.parent
SUFFIX = {"gguf": ".gguf", "onnx": ".onnx", "openvino": ".xml", "executorch": ".pte"}
LIBRARIES = {
    "gguf": ("gguf", "xllamacpp"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript"),
    "executorch": ("executorch", "torchao"),
}
# As few layers as have everything in them: tracing takes its time by the layer.
FEW = {"layer_types": ["conv", "full_attention"]}
FEW_EXPERTS = {**FEW, "num_dense_layers": 1, "num_experts": 3}
MAKE = {
    "dense": lambda path: tiny.lfm2_folder(path, **FEW),
    "kernel 4": lambda path: tiny.lfm2_folder(
        path, conv_L_cache=4, tie_word_embeddings=False, **FEW
    ),
    "moe": lambda path: tiny.moe_folder(path, **FEW_EXPERTS),
    "colbert": lambda path: tiny.colbert_folder(path, **FEW),
    "bidirectional": lambda path: tiny.bidirectional_colbert_folder(path, **FEW),
    "nano-colbert": lambda path: ROOT / "lfm2_mm" / "assets" / "nano_colbert",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("export")
    made = {name: make(folder / name) for name, make in MAKE.items()}
    tiny.tokenizer_files(made["dense"], pattern=PIECES)  # as the published ones split
    return {name: opener(path)(path, name, "fp32") for name, path in made.items()}


def opener(path: Path):
    return exporting.open_source if (path / "modules.json").is_file() else open_source


def need(target: str) -> None:
    missing = [name for name in LIBRARIES[target] if find_spec(name) is None]
    if missing:
        pytest.skip(f"{target}: {', '.join(missing)} not installed")


def made(source: Source, target: str, folder: Path, kind: str | None = None, **how) -> Report:
    need(target)
    output = folder / f"made{SUFFIX[target]}"
    report = export(source, target, prepare(target, kind, output), output, **how)
    assert output.is_file() == report.ok
    assert report.bytes > 10_000 and report.ours > 0 and report.theirs > 0
    return report


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("target", LIBRARIES)
def test_every_kind_of_checkpoint_agrees_in_every_runtime(
    target: str, name: str, sources: dict[str, Source], tmp_path: Path
) -> None:
    how = {"context": 64} if target == "executorch" else {}
    report = made(sources[name], target, tmp_path, "f32", **how)
    assert report.ok, report.checks
    kernel = sources[name].config.kernel
    assert {1, 2, kernel - 1, kernel} <= {check.prompt_tokens for check in report.checks}
    assert all(check.ids_equal and check.argmax_equal for check in report.checks)
    assert {c.how for c in report.checks} & {"in portions of 16", "batch"}
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("kind", [kind for kind in gguf_file.TYPES if kind != "f32"])
def test_every_type_agrees_with_our_engine_on_the_same_rounded_weights(
    kind: str, sources: dict[str, Source], tmp_path: Path
) -> None:
    for name in ("dense", "moe") if kind == "q4_0" else ("dense",):
        report = made(sources[name], "gguf", tmp_path, kind)
        assert report.ok, report.checks
        (tmp_path / "made.gguf").unlink()


def test_text_gets_the_checkpoint_s_own_ids_where_llama_can_split_it(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    report = made(sources["dense"], "gguf", tmp_path, "f32")
    assert (report.reads, report.remarks) == ("text", ())
    (tmp_path / "made.gguf").unlink()
    other = made(sources["nano-colbert"], "gguf", tmp_path, "f32")
    assert other.reads == "ids" and "send it ids" in other.remarks[0]


def test_a_program_for_phones_takes_an_encoder_s_longest_document(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    source = sources["nano-colbert"]
    report = made(source, "executorch", tmp_path, context=64)  # caches, which it has not
    assert report.ok and "one text a call; at most 300 ids" in report.remarks[0]
    from lfm2_mm.exports import to_executorch

    document = Row.document((source.encode("a lock and a thread ") * 100)[:300])
    (found,) = to_executorch.open_runner(source, report.path).vectors([document])
    np.testing.assert_allclose(found, source.vectors(document.ids, 300, 300), atol=1e-4)


# -- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name"), [("gguf", "dense"), ("gguf", "colbert"), ("onnx", "dense")]
)
def test_what_disagrees_is_marked_and_never_gets_the_name(
    target: str, name: str, sources: dict[str, Source], tmp_path: Path, monkeypatch
) -> None:
    need(target)
    if target == "gguf":  # the norms of queries and keys change places in the file
        swapped = {"self_attn.q_layernorm.weight": "attn_k_norm.weight",
                   "self_attn.k_layernorm.weight": "attn_q_norm.weight"}  # fmt: skip
        monkeypatch.setattr(gguf_file, "IN_LAYER", gguf_file.IN_LAYER | swapped)
    else:  # the graph turns the wrong way
        from lfm2_mm.exports import graph

        monkeypatch.setattr(graph, "turn", lambda x, rotary: x * rotary.cos - x * rotary.sin)
    output = tmp_path / f"made{SUFFIX[target]}"
    report = export(sources[name], target, "f32", output)
    assert not report.ok and not output.exists()
    assert report.path == output.with_name(output.name + ".failed") and report.path.is_file()
    assert not all(check.within for check in report.checks)


def test_what_stands_against_it_is_told_before_a_weight_is_read(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "here.onnx").write_text("kept")
    with pytest.raises(BadInput, match="there already; --force"):
        prepare("onnx", None, tmp_path / "here.onnx")
    with pytest.raises(BadInput, match="ends in .onnx"):
        prepare("onnx", None, tmp_path / "here.gguf")
    with pytest.raises(BadInput, match="written as f32"):
        prepare("onnx", "q4_0", tmp_path / "new.onnx")
    with pytest.raises(BadInput, match="no folder"):
        prepare("onnx", None, tmp_path / "nowhere" / "new.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        prepare("onnx", None, tmp_path / "folder.onnx", force=True)
    with pytest.raises(BadInput, match="not UTF-8"):
        prepare("onnx", None, tmp_path / "caf\udce9.onnx")
    with pytest.raises(BadInput, match="known are gguf, onnx"):
        prepare("coreml", None, tmp_path / "new.onnx")
    monkeypatch.setattr("lfm2_mm.extras.find_spec", lambda name: None)
    for target, suffix in SUFFIX.items():
        with pytest.raises(MissingExtra, match=rf"pip install 'lfm2-mm\[{target}\]'"):
            prepare(target, None, tmp_path / f"new{suffix}")
    assert (tmp_path / "here.onnx").read_text() == "kept"


def test_a_graph_of_a_vision_checkpoint_says_what_is_left_out_and_a_speech_one_is_refused(
    capsys, tmp_path: Path
) -> None:
    need("onnx")
    folder = tiny_vision.vl_folder(tmp_path / "vl", **FEW)
    output = tmp_path / "vl.onnx"
    assert main(["export", str(folder), "--to", "onnx", "-o", str(output), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "sees no pictures" in record["remarks"][0] and record["ok"]
    assert record["mmproj"] is None
    (tmp_path / "speech").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "speech" / name).write_text('{"depthformer": {}}')
    arguments = ["export", str(tmp_path / "speech"), "--to", "onnx"]
    assert main([*arguments, "-o", str(tmp_path / "s.onnx")]) == 1
    assert "speech checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"conv_bias": True}, "biases"), ({"layer_types": ["full_attention"]}, "no convolution")],
)
def test_what_llama_cannot_run_is_refused_with_the_reason(
    settings: dict, why: str, tmp_path: Path
) -> None:
    need("gguf")
    source = open_source(tiny.lfm2_folder(tmp_path / "m", **{**FEW, **settings}), "odd")
    with pytest.raises(BadInput, match=why):
        export(source, "gguf", "f32", tmp_path / "odd.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def command(*arguments: str, **how) -> subprocess.Popen:
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "apps.cli", "export", *arguments],
        env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **how,
    )  # fmt: skip


def test_the_command_prints_the_contract_s_keys(capsys, tmp_path: Path) -> None:
    need("gguf")
    output = tmp_path / "out.gguf"
    arguments = ["export", "nano-colbert", "--to", "gguf", "--type", "Q8_0", "-o", str(output)]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == str(output) and record["bytes"] == output.stat().st_size
    assert (record["target"], record["type"], record["ok"]) == ("gguf", "q8_0", True)
    keys = {"prompt_tokens", "ids_equal", "max_logit_difference", "kl", "argmax_equal"}
    assert record["checks"] and all(keys <= set(check) for check in record["checks"])
    before = output.stat()
    assert main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert output.stat() == before


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    need("gguf")

    def small() -> None:  # no file of more than 1 MB, as a full disk would say it
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    output = str(tmp_path / "out.gguf")
    with command("nano-colbert", "--to", "gguf", "-o", output, preexec_fn=small) as child:
        _, told = child.communicate(timeout=300)
    assert child.returncode == 1 and "No space left" in told.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    need("gguf")
    output = str(tmp_path / "out.gguf")
    with command("nano-colbert", "--to", "gguf", "-o", output) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "running" in line:
                break
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=300) == 130
    assert list(tmp_path.iterdir()) == []
