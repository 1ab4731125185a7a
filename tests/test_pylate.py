"""Our encoder beside PyLate's own, on checkpoints that PyLate saved: same ids, vectors, order.

PyLate is right for documents, and for queries in batches of two and more; the expansion vectors of
a single query come out differently under transformers 5.3.0, so it is never asked for one here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lfm2_mm.errors import BadInput, CheckpointDamaged, MissingExtra
from retrieval.colbert_files import read_settings
from retrieval.colbert_tokenizer import ColbertTokenizer
from retrieval.encoder import Encoder, open_encoder
from tests import tiny

pylate_models = pytest.importorskip("pylate.models", reason="needs the extra pylate")

# fp32 on both sides, another order of sums: a few units in the last place of values below 1.
FP32 = {"rtol": 0, "atol": 2e-5}

AWKWARD = [
    "",
    " ",
    "a",
    "?",
    "...!!!",
    "how do I stop two threads corrupting shared state",
    "  Preheat the oven to 200C,\tthen butter a cake tin.  \n",
    "😀 naïve café — 漢字かな",
    "[D] a document that says [Q] and <|im_end|> and <|startoftext|> itself",
    "<|pad|><|reserved_9|>",
    "The capital of France is Paris. " * 40,
    "x" * 500,
    "nul \0 and bell \a",
    "def search(query):\n    return [d for d in documents if query in d]  # slow",
]
VARIANTS = {
    "published": {},
    "attending": {"attend_to_expansion_tokens": True},
    "unexpanded": {"do_query_expansion": False},
    "unmarked": {"query_prefix": "", "document_prefix": ""},
    "skips nothing": {"skiplist_words": []},
}


def peer(folder: Path) -> pylate_models.ColBERT:
    return pylate_models.ColBERT(str(folder), device="cpu", local_files_only=True)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("colbert") / request.param.replace(" ", "-")
    return tiny.saved_by_pylate(tiny.trunk_folder(f"{path}-trunk"), path, **VARIANTS[request.param])


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("colbert") / "causal"
    return tiny.saved_by_pylate(tiny.trunk_folder(f"{path}-trunk"), path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_colbert_folder(tmp_path_factory.mktemp("colbert") / "bert")


def assert_rows_equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, **FP32)


def test_the_tiny_folder_is_what_pylate_saves(causal: Path, tmp_path: Path) -> None:
    """Most tests use folders written by hand (tests/tiny.py); this is what makes them count."""
    ours = tiny.colbert_folder(tmp_path / "colbert")
    for name in ("modules.json", "1_Dense/config.json", "config_sentence_transformers.json"):
        mine, theirs = (json.loads((folder / name).read_text()) for folder in (ours, causal))
        if isinstance(theirs, dict):
            theirs.pop("__version__", None)
        assert mine == theirs, name
    mine, theirs = (
        json.loads((folder / "tokenizer.json").read_text()) for folder in (ours, causal)
    )
    assert mine == theirs
    for name in ("model.safetensors", "1_Dense/model.safetensors"):
        assert shapes(ours / name) == shapes(causal / name)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in load_file(path).items()}


@pytest.mark.parametrize("is_query", [True, False], ids=["query", "document"])
def test_ids_are_pylates(variant: Path, is_query: bool) -> None:
    model = peer(variant)
    ours = ColbertTokenizer.open(variant, read_settings(variant))
    for text in AWKWARD:
        theirs = model.tokenize([text], is_query=is_query)
        marked = (ours.queries if is_query else ours.documents)([text])[0]
        assert marked.ids == theirs["input_ids"][0].tolist(), text
        mask = [1] * marked.real + [0] * (len(marked.ids) - marked.real)
        assert mask == theirs["attention_mask"][0].tolist(), text
    assert ours.marks.skip == {i for i in model.skiplist if i is not None}


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, False), (True, True)])
def test_tokenizer_json_alone_decides_on_start_and_end(
    causal: Path, tmp_path: Path, bos: bool, eos: bool
) -> None:
    """The published tokenizer_config.json says add_bos_token; transformers 5.3.0 ignores it."""
    folder = copied(causal, tmp_path / "colbert")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"add_bos_token": bos, "add_eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = peer(folder)
    ours = ColbertTokenizer.open(folder, read_settings(folder))
    for text in AWKWARD[5:11]:
        theirs = model.tokenize([text], is_query=False)["input_ids"][0].tolist()
        assert ours.documents([text])[0].ids == theirs


def test_vectors_are_pylates(variant: Path) -> None:
    model = peer(variant)
    ours = open_encoder(variant, device="cpu", dtype="fp32")
    assert_rows_equal(ours.encode_documents(AWKWARD), model.encode(AWKWARD, is_query=False))
    assert_rows_equal(ours.encode_queries(AWKWARD), model.encode(AWKWARD, is_query=True))
    assert ours.dim == ours.encode_queries(["a"])[0].shape[1] == 16


def test_projections_in_a_row_with_bias_activation_and_residual(
    causal: Path, tmp_path: Path
) -> None:
    import torch
    from pylate.models import Dense

    model = peer(causal)
    torch.manual_seed(3)
    model.append(Dense(16, 24, bias=True, activation_function=torch.nn.Tanh(), use_residual=True))
    model.append(Dense(24, 24, bias=False, activation_function=torch.nn.GELU(), use_residual=True))
    model.save_pretrained(str(tmp_path / "deep"), create_model_card=False)
    ours = open_encoder(tmp_path / "deep", device="cpu", dtype="fp32")
    assert ours.dim == 24
    assert_rows_equal(ours.encode_documents(AWKWARD), model.encode(AWKWARD, is_query=False))


def test_ranking_is_pylates(causal: Path) -> None:
    from pylate.rank import rerank

    model = peer(causal)
    ours = open_encoder(causal, device="cpu", dtype="fp32")
    # Without those of nothing but punctuation: they keep the markers alone, and their scores tie.
    queries, texts = list(tiny.CORPUS), AWKWARD[5:]
    ids = [[str(i) for i in range(len(texts))]] * len(queries)
    ranked = rerank(
        ids,
        model.encode(queries, is_query=True),
        [model.encode(texts, is_query=False)] * len(queries),
    )
    mine = scores(ours.encode_queries(queries), ours.encode_documents(texts))
    for row, order in zip(mine, ranked, strict=True):
        assert [str(i) for i in np.argsort(-row)] == [hit["id"] for hit in order]


def scores(queries: list[np.ndarray], documents: list[np.ndarray]) -> np.ndarray:
    """MaxSim, the plain way: (queries, documents)."""
    return np.array([[(q @ d.T).max(1).sum() for d in documents] for q in queries])


def test_bert_through_the_adapter(bert: Path) -> None:
    model = peer(bert)
    ours = open_encoder(bert, device="cpu")
    texts = [text for text in AWKWARD if "<|" not in text]
    assert_rows_equal(ours.encode_documents(texts), model.encode(texts, is_query=False))
    assert_rows_equal(ours.encode_queries(texts), model.encode(texts, is_query=True))
    assert (ours.dim, ours.query_length, ours.document_length) == (16, 12, 48)
    assert len(ours.fingerprint) == 64


def test_tokens_of_the_adapter_stand_for_its_rows(bert: Path) -> None:
    ours = open_encoder(bert, device="cpu")
    for text in ["The quick, brown FOX?", "", "a capital of France " * 30]:
        assert len(ours.document_tokens(text)) == len(ours.encode_documents([text])[0])
        assert len(ours.query_tokens(text)) == len(ours.encode_queries([text])[0])
    words = [t.text for t in ours.document_tokens("The quick, brown FOX?") if t.start >= 0]
    assert words == ["The", "quick", "brown", "FOX"]


def test_progress_of_the_adapter_counts_every_text(bert: Path) -> None:
    done: list[int] = []
    open_encoder(bert, device="cpu").encode_documents(AWKWARD * 5, progress=done.append)
    assert sum(done) == len(AWKWARD) * 5


def test_adapter_refuses_int8(bert: Path) -> None:
    with pytest.raises(BadInput, match="fp32 or bf16"):
        open_encoder(bert, device="cpu", dtype="int8")


def test_adapter_refuses_a_trunk_with_missing_weights(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointDamaged, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        open_encoder(folder, device="cpu")


def test_adapter_runs_no_code_named_by_the_files(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "bert")
    config = json.loads((folder / "1_Dense/config.json").read_text())
    (folder / "1_Dense/config.json").write_text(
        json.dumps(config | {"activation_function": "os.getcwd"})
    )
    with pytest.raises(BadInput, match=r"os\.getcwd"):
        open_encoder(folder, device="cpu")


def test_without_pylate_the_adapter_tells_the_command(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.pylate_encoder.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'lfm2-mm\[pylate\]'"):
        open_encoder(bert, device="cpu")


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.fixture(scope="module")
def nano() -> Encoder:
    from lfm2_mm.checkpoint import locate
    from lfm2_mm.errors import LfmError

    try:
        locate("nano-colbert", fetch=False)
    except LfmError as error:
        pytest.skip(f"no bundled checkpoint: {error}")
    return open_encoder("nano-colbert", device="cpu", dtype="fp32")


def test_pylate_opens_the_bundled_folder(nano: Encoder) -> None:
    """Same vectors, scores and order of real sentences, with PyLate reading the folder itself.

    PyLate scores one document at a time here: in a batch it multiplies padding by zero, and zero
    then wins over a query token all of whose cosines are negative.
    """
    from pylate.scores import colbert_scores

    from lfm2_mm.checkpoint import locate

    model = peer(locate("nano-colbert"))
    documents = [line for line in AWKWARD if len(line) > 20] + list(tiny.CORPUS)
    queries = ["what is the capital of France", "two threads share state", "bake a cake"]
    theirs_d = model.encode(documents, is_query=False)
    theirs_q = model.encode(queries, is_query=True)
    assert_rows_equal(nano.encode_documents(documents), theirs_d)
    assert_rows_equal(nano.encode_queries(queries), theirs_q)
    mine = scores(nano.encode_queries(queries), nano.encode_documents(documents))
    theirs = np.array([[float(colbert_scores([q], [d])) for d in theirs_d] for q in theirs_q])
    np.testing.assert_allclose(mine, theirs, atol=1e-4)  # float32 sums of 32 cosines
    for row, reference in zip(mine, theirs, strict=True):
        assert np.argmax(row) == np.argmax(reference)
