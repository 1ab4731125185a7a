"""The LFM2 encoder: right against plain references, equal in every batch, aligned with its text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lfm2_mm.errors import BadInput, CheckpointDamaged, LfmError
from retrieval import lfm2_encoder
from retrieval.encoder import Encoder, fingerprint_of, open_encoder
from tests import tiny

# fp32 against float64 or another order of sums: a few units in the last place of values below 1.
FP32 = {"rtol": 0, "atol": 2e-5}
TEXTS = [
    "",
    "a",
    "?!",
    "how do I stop two threads corrupting shared state",
    "The capital of France is Paris. " * 40,
    "Preheat the oven to 200C, then butter a cake tin.",
    "the",
    "😀 naïve café — 漢字かな",
    "The river that runs through the city is the Seine.",
    "x" * 500,
    "best last",
]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.colbert_folder(tmp_path_factory.mktemp("encoder") / "causal")


@pytest.fixture(scope="module")
def bidirectional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bidirectional_colbert_folder(tmp_path_factory.mktemp("encoder") / "both")


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def opened(folder: Path, dtype: str = "fp32") -> lfm2_encoder.Lfm2Encoder:
    encoder = open_encoder(folder, device="cpu", dtype=dtype)
    assert isinstance(encoder, lfm2_encoder.Lfm2Encoder)
    return encoder


def project(folder: Path, hidden: torch.Tensor) -> np.ndarray:
    weight = load_file(folder / "1_Dense/model.safetensors")["linear.weight"]
    vectors = hidden.float() @ weight.T
    return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()


# --- against references ---------------------------------------------------------------------------


def test_causal_documents_are_transformers_alone(causal: Path) -> None:
    from transformers import Lfm2Model

    model = Lfm2Model.from_pretrained(causal).eval()
    encoder = opened(causal)
    for text, vectors in zip(TEXTS, encoder.encode_documents(TEXTS), strict=True):
        marked = encoder.tokenizer.documents([text])[0]
        with torch.no_grad():
            hidden = model(torch.tensor([marked.ids])).last_hidden_state[0]
        np.testing.assert_allclose(vectors, project(causal, hidden[marked.keep]), **FP32)


def test_causal_queries_are_transformers_in_a_batch_of_two(causal: Path) -> None:
    from transformers import Lfm2Model

    model = Lfm2Model.from_pretrained(causal).eval()
    encoder = opened(causal)
    for text, vectors in zip(TEXTS, encoder.encode_queries(TEXTS), strict=True):
        marked = encoder.tokenizer.queries([text])[0]
        ids = torch.tensor([marked.ids] * 2)
        mask = (torch.arange(ids.shape[1]) < marked.real).long().expand(2, -1)
        with torch.no_grad():
            hidden = model(ids, attention_mask=mask).last_hidden_state[0]
        np.testing.assert_allclose(vectors, project(causal, hidden), **FP32)


def bidirectional_hidden(
    folder: Path, ids: list[int], attended: int, hide_from_conv: bool
) -> torch.Tensor:
    """LFM2.5-ColBERT in plain lines, float64: hidden states (tokens, hidden) of one sequence.

    Every token sees every attended one, before and after it; the convolution is centred, so its
    middle tap falls on the token itself. Positions count from 0.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = {k: w.double() for k, w in load_file(folder / "model.safetensors").items()}
    length, heads = len(ids), config["num_attention_heads"]
    size = config["hidden_size"] // heads
    shared = heads // config["num_key_value_heads"]
    real = torch.arange(length) < attended

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config["norm_eps"]).sqrt() * weight

    angles = torch.arange(length).double()[:, None] / config["rope_parameters"]["rope_theta"] ** (
        torch.arange(0, size, 2).double() / size
    )
    cos, sin = (torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def conv(x: torch.Tensor, w: Callable[[str], torch.Tensor]) -> torch.Tensor:
        if hide_from_conv:
            x = x * real[:, None]
        b, c, x = (x @ w("conv.in_proj").T).chunk(3, -1)
        edge = torch.zeros(1, x.shape[1], dtype=x.dtype)
        u = torch.cat([edge, b * x, edge])
        taps = w("conv.conv")[:, 0].T
        mixed = taps[0] * u[:-2] + taps[1] * u[1:-1] + taps[2] * u[2:]
        return (c * mixed) @ w("conv.out_proj").T

    def attention(x: torch.Tensor, w: Callable[[str], torch.Tensor]) -> torch.Tensor:
        q, k, v = ((x @ w(f"self_attn.{n}_proj").T).view(length, -1, size) for n in "qkv")
        q = rotate(norm(q, w("self_attn.q_layernorm")))
        k = rotate(norm(k, w("self_attn.k_layernorm")))
        k, v = (y.repeat_interleave(shared, 1) for y in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        scores = scores.masked_fill(~real, float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, -1)
        return mixed @ w("self_attn.out_proj").T

    x = weights["embed_tokens.weight"][ids]
    for layer, kind in enumerate(config["layer_types"]):

        def w(name: str, layer: int = layer) -> torch.Tensor:
            return weights[f"layers.{layer}.{name}.weight"]

        operator = conv if kind == "conv" else attention
        x = x + operator(norm(x, w("operator_norm")), w)
        y = norm(x, w("ffn_norm"))
        gate = y @ w("feed_forward.w1").T
        x = x + (gate * gate.sigmoid() * (y @ w("feed_forward.w3").T)) @ w("feed_forward.w2").T
    return norm(x, weights["embedding_norm.weight"])


def test_bidirectional_documents_are_the_reference_alone(bidirectional: Path) -> None:
    encoder = opened(bidirectional)
    for text, vectors in zip(TEXTS, encoder.encode_documents(TEXTS), strict=True):
        marked = encoder.tokenizer.documents([text])[0]
        hidden = bidirectional_hidden(bidirectional, marked.ids, marked.real, True)
        np.testing.assert_allclose(vectors, project(bidirectional, hidden[marked.keep]), **FP32)


def test_bidirectional_queries_let_the_convolution_see_the_expansion(bidirectional: Path) -> None:
    encoder = opened(bidirectional)
    differs = 0.0
    for text, vectors in zip(TEXTS, encoder.encode_queries(TEXTS), strict=True):
        marked = encoder.tokenizer.queries([text])[0]
        seen, hidden = (
            project(bidirectional, bidirectional_hidden(bidirectional, marked.ids, marked.real, h))
            for h in (False, True)
        )
        np.testing.assert_allclose(vectors, seen, **FP32)
        differs = max(differs, float(np.abs(seen - hidden).max()))
    assert differs > 0.1  # the two policies are far apart: the test above can fail


# --- independent of the batch ---------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 100, 100_000])
def test_vectors_do_not_depend_on_the_batch(
    folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = opened(folder)
    for encode in (encoder.encode_documents, encoder.encode_queries):
        alone = [encode([text])[0] for text in TEXTS]
        monkeypatch.setattr(encoder, "batch_tokens", budget)
        monkeypatch.setattr(lfm2_encoder, "PADDING", 1.0)  # short texts beside long ones
        for texts in (TEXTS[:2], TEXTS[:7], TEXTS, TEXTS[::-1]):
            for text, vectors in zip(texts, encode(texts), strict=True):
                np.testing.assert_allclose(vectors, alone[TEXTS.index(text)], **FP32)
        monkeypatch.undo()


def test_batches_cover_every_text_once_within_budget_and_padding() -> None:
    random = np.random.default_rng(0)
    for lengths in ([], [5], random.integers(1, 300, 97).tolist()):
        groups = list(lfm2_encoder.batches(lengths, 512))
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        for group in groups:
            longest = max(lengths[i] for i in group)
            assert len(group) == 1 or longest * len(group) <= 512
            assert all(longest - lengths[i] <= lfm2_encoder.PADDING * longest for i in group)


def test_rows_are_of_length_one_and_in_the_callers_order(folder: Path) -> None:
    encoder = opened(folder)
    vectors = encoder.encode_documents(TEXTS)
    assert [v.shape for v in vectors] == [
        (len(encoder.document_tokens(text)), encoder.dim) for text in TEXTS
    ]
    for v in vectors:
        assert v.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-6)
    assert encoder.encode_documents([]) == encoder.encode_queries([]) == []


def test_progress_counts_every_text(causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lfm2_encoder, "WINDOW", 4)  # several windows, the last one not full
    encoder = opened(causal)
    done: list[int] = []
    vectors = encoder.encode_documents(TEXTS, progress=done.append)
    assert sum(done) == len(TEXTS)
    assert len(done) > 1
    for text, v in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(v, encoder.encode_documents([text])[0], **FP32)


# --- text and tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [*TEXTS, "  \n two  words\t", "[D] <|im_end|> told", "\ud800 half"]
)
def test_tokens_stand_for_rows_and_lie_in_the_text(causal: Path, text: str) -> None:
    encoder = opened(causal)
    document, query = encoder.document_tokens(text), encoder.query_tokens(text)
    assert len(document) == len(encoder.encode_documents([text])[0])
    assert len(query) == len(encoder.encode_queries([text])[0]) == encoder.query_length
    assert [(t.text, t.start, t.end) for t in document[:2]] == [
        ("<|startoftext|>", -1, -1),
        ("[D] ", -1, -1),
    ]
    assert query[1].text == "[Q] "
    for token in document + query:
        assert (token.start, token.end) == (-1, -1) or 0 <= token.start < token.end <= len(text)
        assert token.start < 0 or text[token.start : token.end] == token.text
    places = [t.start for t in document if t.start >= 0]
    assert places == sorted(places)


def test_tokens_name_words_without_their_blanks_and_without_punctuation(causal: Path) -> None:
    encoder = opened(causal)
    text = "  The fox, the dog."
    words = [t for t in encoder.document_tokens(text) if t.start >= 0]
    assert "".join(t.text for t in words) == "Thefoxthedog"
    expansion = encoder.query_tokens(text)[-1]
    assert (expansion.text, expansion.start) == ("<|im_end|>", -1)


def test_lower_casing_keeps_the_places(causal: Path, tmp_path: Path) -> None:
    folder = copied(causal, tmp_path / "lower")
    change(folder / "sentence_bert_config.json", do_lower_case=True)
    encoder = opened(folder)
    text = "İI THE fox"  # the first letter is two in lower case
    assert encoder.document_tokens(text)[-1].text == "fox"
    assert encoder.tokenizer.documents(["THE FOX"]) == encoder.tokenizer.documents(["the fox"])


def test_count_is_of_the_whole_text_with_markers(causal: Path) -> None:
    encoder = opened(causal)
    assert encoder.count_tokens("") == 2
    for text in TEXTS:
        count = encoder.count_tokens(text)
        ids = encoder.tokenizer.documents([text])[0].ids
        assert len(ids) == min(count, encoder.document_length)
    assert encoder.count_tokens(TEXTS[4]) > encoder.document_length


def test_a_repeated_encode_is_bit_equal(folder: Path) -> None:
    encoder = opened(folder)
    for first, second in zip(
        encoder.encode_documents(TEXTS), encoder.encode_documents(TEXTS), strict=True
    ):
        np.testing.assert_array_equal(first, second)


# --- lower precision ------------------------------------------------------------------------------


def documents() -> list[str]:
    """Two hundred different documents from the words of the tiny tokenizer's texts."""
    words = " ".join(tiny.CORPUS).split()
    random = np.random.default_rng(1)
    return [" ".join(random.choice(words, random.integers(4, 30))) for _ in range(200)]


def scores(encoder: Encoder, queries: list[str], texts: list[str]) -> np.ndarray:
    vectors = encoder.encode_documents(texts)
    return np.array(
        [[(q @ d.T).max(1).sum() for d in vectors] for q in encoder.encode_queries(queries)]
    )


def overlap(ours: np.ndarray, reference: np.ndarray, k: int = 10) -> float:
    """Mean share of the reference's first k that are among ours."""
    first = [
        (set(np.argsort(-a)[:k]), set(np.argsort(-b)[:k]))
        for a, b in zip(ours, reference, strict=True)
    ]
    return float(np.mean([len(a & b) / k for a, b in first]))


@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.8), ("bf16", 0.8)])
def test_lower_precision_keeps_the_ranking(causal: Path, dtype: str, least: float) -> None:
    """Random weights rank by noise, with scores close together: harder than a trained model."""
    queries, texts = list(tiny.CORPUS), documents()
    reference = scores(opened(causal), queries, texts)
    lower = scores(opened(causal, dtype), queries, texts)
    assert overlap(lower, reference) >= least
    assert np.corrcoef(lower.ravel(), reference.ravel())[0, 1] > 0.99


def test_int8_of_the_bundled_checkpoint_ranks_as_fp32() -> None:
    from lfm2_mm.checkpoint import locate

    try:
        locate("nano-colbert", fetch=False)
    except LfmError as error:
        pytest.skip(f"no bundled checkpoint: {error}")
    queries, texts = list(tiny.CORPUS), documents()
    reference = scores(open_encoder("nano-colbert", device="cpu", dtype="fp32"), queries, texts)
    lower = scores(open_encoder("nano-colbert", device="cpu", dtype="int8"), queries, texts)
    assert overlap(lower, reference) >= 0.9
    assert (lower.argmax(1) == reference.argmax(1)).all()


# --- identity and errors --------------------------------------------------------------------------


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_fingerprint_is_of_content_and_of_nothing_else(causal: Path, tmp_path: Path) -> None:
    folder = copied(causal, tmp_path / "copy")
    original = fingerprint_of(causal)
    assert fingerprint_of(folder) == original == opened(folder).fingerprint
    (folder / "README.md").write_text("told differently")
    assert fingerprint_of(folder) == original
    change(folder / "1_Dense/config.json", note="changed")
    assert fingerprint_of(folder) != original


def test_fingerprint_sees_one_changed_weight(causal: Path, tmp_path: Path) -> None:
    folder = copied(causal, tmp_path / "copy")
    path = folder / "model.safetensors"
    before = fingerprint_of(folder)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fingerprint_of(folder) != before


def test_fingerprint_imports_no_torch(causal: Path) -> None:
    code = (
        "import sys; from retrieval.encoder import fingerprint_of; "
        f"print(len(fingerprint_of({str(causal)!r}))); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("64", 0), done.stderr


def test_name_opens_the_same_encoder_again(causal: Path) -> None:
    encoder = opened(causal)
    assert open_encoder(encoder.name, device="cpu").fingerprint == encoder.fingerprint


def test_a_chat_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"modules\.json and config_sentence_transformers\.json"):
        open_encoder(tiny.lfm2_folder(tmp_path / "chat"))


def set_weight(folder: Path, name: str, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / name)
    edit(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})


def break_nan(folder: Path) -> None:
    set_weight(folder, "1_Dense/model.safetensors", lambda w: w["linear.weight"].fill_(np.nan))


def break_missing(folder: Path) -> None:
    set_weight(folder, "1_Dense/model.safetensors", lambda w: w.update(x=w.pop("linear.weight")))


def break_trunk(folder: Path) -> None:
    set_weight(folder, "model.safetensors", lambda w: w.pop("layers.2.self_attn.k_proj.weight"))


def break_shape(folder: Path) -> None:
    change(folder / "1_Dense/config.json", out_features=17)


def break_width(folder: Path) -> None:
    change(folder / "1_Dense/config.json", in_features=65)
    set_weight(
        folder,
        "1_Dense/model.safetensors",
        lambda w: w.update({"linear.weight": torch.ones(16, 65)}),
    )


def break_vocabulary(folder: Path) -> None:
    change(folder / "config.json", vocab_size=481)
    set_weight(
        folder,
        "model.safetensors",
        lambda w: w.update({"embed_tokens.weight": w["embed_tokens.weight"][:481].clone()}),
    )


def setting(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config_sentence_transformers.json", **settings)


def break_pooling(folder: Path) -> None:
    rows = [*tiny.MODULES, {"idx": 2, "name": "2", "path": "2_P", "type": "x.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(rows))


def break_path(folder: Path) -> None:
    rows = [tiny.MODULES[0], {**tiny.MODULES[1], "path": "../1_Dense"}]
    (folder / "modules.json").write_text(json.dumps(rows))


def break_activation(folder: Path) -> None:
    change(folder / "1_Dense/config.json", activation_function="os.abort")


def break_architecture(folder: Path) -> None:
    change(folder / "config.json", architectures=["Lfm9Model"])


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        (break_nan, CheckpointDamaged, "not finite"),
        (break_missing, CheckpointDamaged, "linear.weight"),
        (break_trunk, CheckpointDamaged, "layers.2.self_attn.k_proj"),
        (break_shape, CheckpointDamaged, "1_Dense"),
        (break_width, CheckpointDamaged, "65 features and is given 64"),
        (break_vocabulary, CheckpointDamaged, "481 rows"),
        (setting(query_prefix="[QUERY] "), CheckpointDamaged, "[QUERY] "),
        (setting(document_length="long"), CheckpointDamaged, "document_length is 'long'"),
        (setting(prompts={"q": "search: "}, default_prompt_name="q"), BadInput, "search: "),
        (setting(prompts=["x"]), CheckpointDamaged, "prompts is ['x'], which is no table"),
        (break_pooling, BadInput, "one vector a text"),
        (break_path, CheckpointDamaged, "../1_Dense"),
        (break_activation, BadInput, "os.abort"),
        (lambda f: change(f / "1_Dense/config.json", out_features=-1), CheckpointDamaged, "1 to"),
        (break_architecture, BadInput, "Lfm9Model"),
        (break_tokenizer, CheckpointDamaged, "tokenizer.json"),
    ],
)
def test_a_damaged_folder_is_told(
    causal: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[LfmError],
    told: str,
) -> None:
    folder = copied(causal, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(error) as caught:
        open_encoder(folder, device="cpu", dtype="fp32").encode_documents(["the fox"])
    assert told in str(caught.value)
