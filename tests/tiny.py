"""Tiny random checkpoints for tests, written by transformers and PyLate. Knows none of our code.

Weights are drawn wider than a fresh model's (and norm weights differ from one), so that a forgotten
norm, mask, bias or position shows in the numbers instead of drowning in 1e-3 activations.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

NAMED_SPECIALS = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|tool_list_start|>",
    "<|tool_list_end|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_response_start|>",
    "<|tool_response_end|>",
)
SPECIALS = NAMED_SPECIALS + tuple(f"<|reserved_{i - 10}|>" for i in range(len(NAMED_SPECIALS), 32))
CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "How do I stop two threads corrupting shared state? Hold a lock while you write.",
    "Preheat the oven to 200C, then butter a cake tin; whisk the eggs with the sugar.",
    "The capital of France is Paris. The river that runs through the city is the Seine.",
    "def search(query, documents):\n    return sorted(documents, key=score)  # best last\n",
)
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
CHAT_TEMPLATE = """{{- bos_token -}}
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools -%}
{%- set listed = 'List of tools: <|tool_list_start|>' + tools | tojson + '<|tool_list_end|>' -%}
{%- set system = system + '\\n' + listed if system else listed -%}
{%- endif -%}
{%- if system -%}{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{%- set content = message.content -%}
{%- else -%}{%- set content = message.content | map(attribute='text') | join -%}{%- endif -%}
{%- if message.role == 'tool' -%}
{{- '<|tool_response_start|>' + content + '<|tool_response_end|>' -}}
{%- else -%}{{- content -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
COMMON: dict[str, Any] = {
    "vocab_size": 512,  # rows beyond the tokenizer's ids, as in the published files
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"],
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
COLBERT: dict[str, Any] = {
    "model_type": "ColBERT",
    "prompts": {"query": "", "document": ""},
    "default_prompt_name": None,
    "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 12,
    "document_length": 48,
    "attend_to_expansion_tokens": False,
    "skiplist_words": list(string.punctuation),
    "do_query_expansion": True,
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
]
PLAIN = {
    "bias": False,
    "activation_function": "torch.nn.modules.linear.Identity",
    "use_residual": False,
}
DENSE: dict[str, Any] = {"block_ff_dim": 120, "block_multiple_of": 16}  # 2/3 of 120, rounded: 80
MOE: dict[str, Any] = {
    "intermediate_size": 80,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_dense_layers": 2,
}


def tokenizer(
    vocab_size: int = 480,
    corpus: Sequence[str] = CORPUS,
    specials: Sequence[str] = SPECIALS,
    pattern: str = PATTERN,
) -> Tokenizer:
    """A byte-level BPE tokenizer with the family's special tokens at their published ids."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    bos = SPECIALS[1]
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)]
    )
    return made


def tokenizer_files(
    path: Path | str,
    added: Sequence[str] = (),
    specials: Sequence[str] = SPECIALS,
    pattern: str = PATTERN,
) -> Path:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of the family, at `path`."""
    from transformers import PreTrainedTokenizerFast

    made = tokenizer(specials=specials, pattern=pattern)
    made.add_tokens(list(added))
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[7],
        pad_token=SPECIALS[0],
        add_bos_token=True,
        chat_template=CHAT_TEMPLATE,
        model_max_length=int(1e30),
    ).save_pretrained(path)
    return Path(path)


def lfm2_folder(path: Path | str, *, seed: int = 0, **settings: Any) -> Path:
    """A dense chat checkpoint (`Lfm2ForCausalLM`); `settings` override COMMON and DENSE."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return _save(Lfm2ForCausalLM(_config(Lfm2Config, DENSE, settings)), path, seed)


def moe_folder(path: Path | str, *, seed: int = 0, **settings: Any) -> Path:
    """A mixture-of-experts chat checkpoint (`Lfm2MoeForCausalLM`), two dense layers first."""
    from transformers import Lfm2MoeConfig, Lfm2MoeForCausalLM

    return _save(Lfm2MoeForCausalLM(_config(Lfm2MoeConfig, MOE, settings)), path, seed)


def trunk_folder(path: Path | str, *, seed: int = 0, **settings: Any) -> Path:
    """A dense checkpoint without a head (`Lfm2Model`, keys without prefix)."""
    from transformers import Lfm2Config, Lfm2Model

    return _save(Lfm2Model(_config(Lfm2Config, DENSE, settings)), path, seed)


def colbert_folder(
    path: Path | str,
    *,
    seed: int = 0,
    dim: int = 16,
    colbert: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A causal late-interaction checkpoint; `colbert` overrides COLBERT, its settings.

    Written here file by file, since PyLate is slow to import and caps transformers; test_pylate
    checks that PyLate saves the same.
    """
    path = Path(path)
    settings = {"vocab_size": tokenizer().get_vocab_size() + 2, **settings}
    trunk_folder(path, seed=seed, **settings)
    tokenizer_files(path, added=("[Q] ", "[D] "))
    hidden = json.loads((path / "config.json").read_text())["hidden_size"]
    dense = torch.nn.Linear(hidden, dim, bias=False)
    randomize(dense, seed + 1)
    (path / "1_Dense").mkdir(exist_ok=True)
    save_file({"linear.weight": dense.weight.data}, path / "1_Dense/model.safetensors")
    write_json(path / "1_Dense/config.json", {"in_features": hidden, "out_features": dim, **PLAIN})
    write_json(path / "modules.json", MODULES)
    write_json(path / "config_sentence_transformers.json", {**COLBERT, **(colbert or {})})
    lengths = {"max_seq_length": COLBERT["document_length"] - 1, "do_lower_case": False}
    write_json(path / "sentence_bert_config.json", lengths)
    return path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def bidirectional_colbert_folder(path: Path | str, **settings: Any) -> Path:
    """The same files with the architecture of LFM2.5-ColBERT, which transformers 5.3.0 lacks."""
    folder = colbert_folder(path, **settings)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Lfm2BidirectionalModel"]
    config["auto_map"] = {"AutoModel": "modeling_lfm2_bidirectional.Lfm2BidirectionalModel"}
    write_json(folder / "config.json", config)
    return folder


def bert_colbert_folder(path: Path | str, *, seed: int = 0, dim: int = 16) -> Path:
    """A late-interaction checkpoint over BERT, as PyLate saves it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = Path(path)
    trunk = path.with_name(path.name + "-trunk")
    torch.manual_seed(seed)
    words = sorted({w for line in CORPUS for w in line.lower().split() if w.isalpha()})
    pieces = [chr(c) for c in range(97, 123)] + [f"##{chr(c)}" for c in range(97, 123)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *pieces, *words]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(vocab))}
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(trunk)
    BertTokenizerFast(vocab=vocab, do_lower_case=True).save_pretrained(trunk)
    return saved_by_pylate(trunk, path, seed=seed, dim=dim)


def saved_by_pylate(
    trunk: Path | str, path: Path | str, *, seed: int = 0, dim: int = 16, **colbert: Any
) -> Path:
    """Put PyLate's markers and projection on a trunk's folder and save the whole at `path`."""
    from pylate import models as pylate_models

    torch.manual_seed(seed)
    lengths = {key: COLBERT[key] for key in ("query_length", "document_length")}
    made = pylate_models.ColBERT(
        str(trunk), device="cpu", embedding_size=dim, **{**lengths, **colbert}
    )
    made.save_pretrained(str(path), create_model_card=False)
    return Path(path)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights whose every part matters: matrices of gain about 1, norms about 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("inv_freq"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.2 * noise)
            elif name.endswith("expert_bias"):
                tensor.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(noise)  # the pad row too: it is not zero in the published weights
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)


def _config(kind: Any, own: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    merged = {**COMMON, **own, **settings}
    merged.setdefault("num_hidden_layers", len(merged["layer_types"]))
    return kind(**merged)


def _save(model: Any, path: Path | str, seed: int) -> Path:
    randomize(model, seed)
    model.save_pretrained(path)
    return tokenizer_files(path)
