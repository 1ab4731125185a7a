"""The nano-colbert recipe on a data folder made here, and the checkpoint it left in the package."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfm2_mm.backbone import Backbone
from lfm2_mm.checkpoint import locate
from lfm2_mm.errors import BadInput
from lfm2_mm.weights import count_parameters
from retrieval.encoder import open_encoder
from retrieval.evaluation import read_corpus, read_qrels, read_queries
from retrieval.scoring import maxsim
from tests.recipe_run import steps_told

pytest.importorskip("bm25s", reason="the recipe mines negatives with bm25s")
RECIPES = Path(__file__).parent.parent / "recipes"
TOWNS = ("Bremen", "Leipzig", "Florence", "Aarhus", "Nagoya", "Toledo", "Ghent", "Lyon")
TRADES = ("brewing", "weaving", "printing", "tanning", "smelting", "pottery", "fishing", "banking")


@pytest.fixture(scope="module", autouse=True)
def recipes() -> Iterator[None]:
    """The recipes are programs beside each other, not a package."""
    sys.path.insert(0, str(RECIPES))
    yield
    sys.path.remove(str(RECIPES))


def rows_of_each_kind() -> dict[str, list[dict[str, Any]]]:
    """A few rows of every file that the recipe reads, in the shape of the real ones."""
    facts = [
        (f"{town}/{trade}", f"Which town lived on {trade}?",
         f"The town of {town} lived on {trade} for 3{i}0 years. Its {trade} guild of {town} was "
         f"known abroad, and {trade} fed most houses. In 15{i}2 a fire ended the {trade} there.")
        for i, (town, trade) in enumerate((t, r) for t in TOWNS for r in TRADES)
    ]  # fmt: skip
    book = [{"book": "b", "title": f"Module {i}", "section": ["S"], "text": text}
            for i, (_, _, text) in enumerate(facts)]  # fmt: skip
    held = [r | {"book": "introduction-sociology", "text": f"Held out. {r['text']}"} for r in book]
    return {
        "retrieval/squad/passages": [{"id": n, "title": n, "text": t + "S"} for n, _, t in facts],
        "retrieval/squad/queries": [{"id": n, "q": q, "pos": n} for n, q, _ in facts],
        "retrieval/squad/sentence_pairs": [{"q": q, "pos": t, "src": "x"} for _, q, t in facts],
        "retrieval/qed_nq/pairs": [{"q": q, "title": n, "pos": t + n} for n, q, t in facts],
        "retrieval/medquad/pairs": [{"q": q, "pos": t + q, "focus": n} for n, q, t in facts],
        "retrieval/openstax/paragraphs": book + held,
        "retrieval/openstax/glossary": [
            {"book": "b", "title": "Module 1", "term": r, "def": f"a trade, {r}"} for r in TRADES
        ],
        "retrieval/openstax/objectives": [
            {"book": r["book"], "title": r["title"], "objective": "Explain how trades fed a town"}
            for r in [*book[:9], *held[:9]]
        ],
        "retrieval/openstax/review_questions": [
            {"book": "b", "title": "Module 1", "q": "Who belonged to a guild?"}
        ],
        "retrieval/tldr/en": [
            {"cmd": f"{r}-{t.lower()}", "desc": f"Start {r}.", "examples": [["Run it", f"{r} -v"]]}
            for r in TRADES for t in TOWNS
        ],
        "retrieval/factbook/fields": [
            {"country": t, "section": "Economy", "field": "Industries", "text": r}
            for t in TOWNS for r in TRADES
        ],
        "retrieval/wordnet/synsets": [
            {"lemmas": ["town", "borough"], "def": "a place where people live", "ex": ["a town"]}
        ],
        "text/onestop_english": [{"level": "Adv-Txt", "name": n, "text": t} for n, _, t in facts],
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in rows_of_each_kind().items():
        path = folder / f"{name}.jsonl.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    (folder / "retrieval/python").mkdir()
    for trade in TRADES:
        code = f'def start_{trade}(town):\n    """Start {trade} in the town."""\n    return town\n'
        (folder / f"retrieval/python/{trade}.py").write_text(code)
    with lzma.open(folder / "text/wikitext2_valid.txt.xz", "wt", encoding="utf-8") as file:
        for town in TOWNS:
            file.write(f" = {town} = \n\n {town} is a town . {'It has houses . ' * 20}\n")
    return folder


SMALL = ["--vocabulary", "700", "--hidden", "64", "--layers", "ca", "--dim", "16", "--documents"]
SMALL += ["6", "--device", "cpu", "--report", "1"]


def trained(data: Path, out: Path, *more: str, stop_at: int | None = None) -> list[float]:
    """The losses the recipe prints. `stop_at`: interrupted after that step, as by Ctrl-C."""
    from nano_colbert import parser, train

    args = parser().parse_args(["--data", str(data), "--out", str(out), *SMALL, *more])
    told = steps_told(train, args, stop_at)
    return [float(line.split(" loss ")[1].split()[0]) for line in told]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("whole")
    return out, trained(data, out, "--steps", "5")


def test_the_same_seed_gives_the_same_losses(
    data: Path, run: tuple[Path, list[float]], tmp_path: Path
) -> None:
    again = trained(data, tmp_path, "--steps", "5")
    assert len(again) == 5
    np.testing.assert_allclose(again, run[1], atol=1e-3)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    data: Path, run: tuple[Path, list[float]], tmp_path: Path
) -> None:
    first = trained(data, tmp_path, "--steps", "5", stop_at=2)
    rest = trained(data, tmp_path, "--steps", "5")
    np.testing.assert_allclose(first + rest, run[1], atol=1e-4)  # printed with four digits
    for name in ("model.safetensors", "1_Dense/model.safetensors"):
        left, right = (folder / "checkpoint" / name for folder in (run[0], tmp_path))
        assert left.read_bytes() == right.read_bytes()


def test_other_settings_do_not_go_on_in_the_same_folder(
    data: Path, run: tuple[Path, list[float]]
) -> None:
    with pytest.raises(BadInput, match="choose another --out"):
        trained(data, run[0], "--steps", "6", "--seed", "1")


def test_our_encoder_opens_what_the_recipe_saved(run: tuple[Path, list[float]]) -> None:
    encoder = open_encoder(run[0] / "checkpoint", device="cpu", dtype="fp32")
    (query,) = encoder.encode_queries(["Which town lived on weaving?"])
    assert query.shape == (32, 16) and encoder.document_length == 300
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-5)


def test_the_recipe_computes_what_the_encoder_computes(run: tuple[Path, list[float]]) -> None:
    """Same ids, masks and arithmetic in training and in use, up to the order of float32 sums."""
    from nano_colbert_batches import Batch
    from nano_colbert_model import Batcher, NanoColbert, shape
    from tokenizers import Tokenizer

    folder = run[0] / "checkpoint"
    encoder = open_encoder(folder, device="cpu", dtype="fp32")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = NanoColbert(shape(tokenizer.get_vocab_size(), 64, "ca"), 16)
    model.backbone = Backbone.open(folder, device="cpu", dtype="fp32")
    dense = encoder.head[0].linear.weight  # type: ignore[attr-defined]
    model.dense.weight = torch.nn.Parameter(dense.clone())
    documents = ["Ghent, and its weaving (15th century).", "printing " * 400, "x"]
    queries = ["Who wove?", "What of printing and of weaving in the old town?"]
    from nano_colbert import Loss

    batch = Batch("x", documents, queries, [0, 1])
    with torch.no_grad():
        loss = Loss(model, Batcher(tokenizer, torch.device("cpu")), 300, 2, None)
        scores = loss.scores(batch).numpy()
    found = encoder.encode_documents(documents)
    expected = [maxsim(query, found) for query in encoder.encode_queries(queries)]
    np.testing.assert_allclose(scores, np.stack(expected), atol=1e-4)


def test_a_teacher_hides_negatives_that_it_likes_as_much() -> None:
    from nano_colbert import teach
    from nano_colbert_batches import Batch

    angles = {"q": 0.0, "own": 0.5, "twin": 0.45, "near": 0.52, "far": 1.5}

    class Readable:
        def encode(self, texts: list[str], *, normalize_embeddings: bool) -> np.ndarray:
            assert normalize_embeddings
            return np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts])

    taught = teach(Readable(), Batch("x", ["own", "twin", "near", "far"], ["q"], [0]))
    assert taught.isinf().tolist() == [[False, True, True, False]]
    assert taught[0, 0].item() == pytest.approx(np.cos(0.5) / 0.05)


@pytest.mark.parametrize(
    "text", ["naïve Ωmega", "日本語 🙂", "getFileName_2(x)", "a\u0301b ß ﬁ", "–"]
)
def test_the_tokenizer_loses_no_character(run: tuple[Path, list[float]], text: str) -> None:
    from nano_colbert_tokenizer import CONTINUED
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file(str(run[0] / "checkpoint/tokenizer.json"))
    encoding = tokenizer.encode(text, add_special_tokens=False)
    joined = "".join(token.removeprefix(CONTINUED) for token in encoding.tokens)
    plain = tokenizer.normalizer.normalize_str(text).split()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert joined == "".join(level.pre_tokenize_str(word)[0][0] for word in plain)


def test_one_word_is_one_token_wherever_it_stands(run: tuple[Path, list[float]]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(run[0] / "checkpoint/tokenizer.json"))
    ids = tokenizer.encode("Weaving weaving (weaving) WEAVING,wEaving\nroomWeaving").ids
    word = tokenizer.token_to_id("weaving")
    assert word is not None and ids.count(word) == 5  # "wEaving" is parted before its capital


def test_the_first_weights_make_rare_words_decide() -> None:
    from nano_colbert_model import word_table
    from nano_colbert_tokenizer import train_tokenizer

    texts = ["the guild"] * 3 + ["the town"] * 200 + ["the towns"] * 20
    tokenizer = train_tokenizer(texts, 600)
    table = word_table(tokenizer, texts, 256).numpy()
    rows = table / np.linalg.norm(table, axis=1, keepdims=True)

    def cosine(one: str, other: str) -> float:
        return float(rows[tokenizer.token_to_id(one)] @ rows[tokenizer.token_to_id(other)])

    lost = [1 - cosine(word, "[D] ") for word in ("the", "town", "guild")]  # when it is not found
    assert lost[0] < 0.1 and lost == sorted(lost) and lost[2] > 0.5
    assert cosine("town", "towns") > cosine("town", "guild") + 0.1  # one stem


def test_cc_by_sa_sources_can_be_left_out(data: Path) -> None:
    from nano_colbert_data import load

    free = {source.name for source in load(data, sharealike=False)}
    every = {source.name for source in load(data)}
    assert every - free == {"squad", "squad-sentences", "qed", "wikitext", "onestop"}


def test_docstrings_ask_for_their_function_without_its_docstring() -> None:
    from nano_colbert_data import functions

    docstring = '"""Cut the rope in\n        two parts.\n\n        More."""'
    code = f"class A:\n    def cut(self, n):\n        {docstring}\n        return n\n"
    (found,) = functions(code, "m.py")
    assert found.queries == ["Cut the rope in two parts."]
    assert found.text == "def cut(self, n):\n    return n"


def test_docstrings_are_parted_into_question_and_body() -> None:
    from nano_colbert_heldout import halves

    body = "It counts. " * 31
    docstring = f"Count the words of a text.\n\n{body}\n\nReferences\n----------\nNone."
    code = f'def f():\n    """{docstring}"""\n\ndef g():\n    """Too short.\n\nYes."""\n'
    assert halves(code) == {"Count the words of a text.": body.strip()}


def test_no_training_passage_is_measured(data: Path, tmp_path: Path) -> None:
    check_no_leak(data)
    from nano_colbert_heldout import collections

    collection = collections(data)[0]
    collection.write(tmp_path)
    judgements = read_qrels(tmp_path)
    assert judgements == collection.judgements and judgements
    assert read_queries(tmp_path, judgements) == collection.queries
    assert {i: text for i, text, _ in read_corpus(tmp_path)} == collection.corpus


def check_no_leak(data: Path) -> None:
    from nano_colbert_data import load
    from nano_colbert_heldout import collections

    seen = {p.text for source in load(data) if source.name != "wikitext" for p in source.passages}
    names = ("encyclopaedia", "textbook", "medical", "commands", "python")
    for collection in collections(data):
        if collection.name in names:
            leaked = [text for text in collection.corpus.values() if text in seen]
            assert not leaked, (collection.name, leaked[:3])


# The bundled checkpoint


def test_the_bundled_checkpoint_is_small_and_has_a_card() -> None:
    folder = locate("nano-colbert", fetch=False)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 10_000_000
    assert count_parameters(folder) < 5_000_000
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for word in ("CC BY-SA 4.0", "OpenStax", "MedQuAD", "nDCG@10", "Limits"):
        assert word in card


def test_pylate_gives_the_bundled_checkpoint_the_same_vectors_and_ranking() -> None:
    models = pytest.importorskip("pylate.models", reason="extra `pylate` is not installed")
    folder = locate("nano-colbert", fetch=False)
    reference = models.ColBERT(str(folder), device="cpu")
    encoder = open_encoder(folder, device="cpu", dtype="fp32")
    rows = reference[0].auto_model.embed_tokens.weight.shape[0]
    assert rows == len(reference.tokenizer) == encoder.backbone.config.vocab_size  # type: ignore[attr-defined]
    queries = ["How do I stop two threads corrupting shared state?", "capital of France"]
    documents = ["Hold a lock while you write, so that no two threads meet.",
                 "Paris is the capital; naïve getFileName().", "x " * 700, "!?"]  # fmt: skip
    # Batches of two queries and more: one alone is where transformers 5.3.0 goes wrong.
    expected = reference.encode(queries, is_query=True, batch_size=2)
    expected_documents = reference.encode(documents, is_query=False, batch_size=4)
    found, found_documents = encoder.encode_queries(queries), encoder.encode_documents(documents)
    pairs = zip([*expected, *expected_documents], [*found, *found_documents], strict=True)
    for left, right in pairs:
        np.testing.assert_allclose(left, right, atol=1e-5)  # float32, sums in another order
    for query, other in zip(expected, found, strict=True):
        ranking = np.argsort(
            -maxsim(np.asarray(query), [np.asarray(d) for d in expected_documents])
        )
        assert ranking.tolist() == np.argsort(-maxsim(other, found_documents)).tolist()


@pytest.fixture(scope="module")
def real_data() -> Path:
    folder = os.environ.get("LFM2_MM_DATA")
    if not folder:
        pytest.skip("LFM2_MM_DATA does not name the data folder")
    return Path(folder)


def test_no_real_training_passage_is_measured(real_data: Path) -> None:
    check_no_leak(real_data)


def test_the_bundled_checkpoint_answers_held_out_questions(real_data: Path) -> None:
    """A floor well under the card's figure, over 40 questions: a damaged file falls below it."""
    pytest.importorskip("pytrec_eval")
    from measure_colbert import per_query
    from nano_colbert_data import READERS, is_held_out
    from nano_colbert_heldout import asked

    read = {name: reader for name, _, reader, _, _ in READERS}["squad"]
    passages = [p for p in read(real_data) if is_held_out("squad", p)]
    collection = asked("encyclopaedia", passages[:150], 40)
    encoder = open_encoder("nano-colbert", device="cpu", dtype="fp32")
    documents = encoder.encode_documents(list(collection.corpus.values()))
    names = list(collection.corpus)

    def rank(query: str) -> list[str]:
        scores = maxsim(encoder.encode_queries([query])[0], documents)
        return [names[i] for i in np.argsort(-scores)[:10]]

    assert per_query(collection, rank).mean() > 0.75


def test_the_shipped_weights_are_those_of_the_card() -> None:
    folder = locate("nano-colbert", fetch=False)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
