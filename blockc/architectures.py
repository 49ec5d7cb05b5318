"""Architectures by transformers' ``model_type``: those that work, and why others do not.

Found out by trying, not by declaration: `tests/support/every_architecture.py` compiles a tiny random model of every
text-generation configuration of transformers, compares it with the model itself, and writes the lists. A model type
that has not been tried is refused: an architecture may trace without an error and still compute something else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

# Models that read a text as a whole and yield one vector for it; each is compared with transformers in the tests.
ENCODERS = (
    "albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert", "modernbert",
    "nomic_bert", "roberta", "xlm-roberta",
)  # fmt: skip

# BEGIN GENERATED
TRANSFORMERS = "5.23.0"

SUPPORTED: tuple[str, ...] = (
    "afmoe",
    "apertus",
    "arcee",
    "aria_text",
    "beam",
    "biogpt",
    "bitnet",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cwm",
    "deepseek_v3",
    "diffllama",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "flex_olmo",
    "flint",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt-sw3",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granite_swa",
    "granitemoe",
    "granitemoe_swa",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hy_v3",
    "hyperclovax",
    "internlm3",
    "iquestcoder",
    "jais2",
    "kolibri1",
    "laguna",
    "llama",
    "mellum",
    "mimo_v2_flash",
    "minicpm3",
    "minimax_m2",
    "minimax_m3_vl_text",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "modernbert-decoder",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "youtu",
)

REFUSED: dict[str, str] = {
    "bloom": "a value that pairs tokens with tokens outside attention",
    "falcon": "its attention does not pass transformers' attention interface",
}
# END GENERATED


def why_not(model_type: object) -> str | None:
    """Why a model type is not supported, in words that follow its name; None if it is."""
    if not isinstance(model_type, str):
        return "which is not a name"
    if model_type in SUPPORTED or model_type in ENCODERS:
        return None
    if model_type in REFUSED:
        return f"which is not supported: {REFUSED[model_type]}"
    near = difflib.get_close_matches(model_type, SUPPORTED, n=1)
    return "which has not been tried with this version" + (f"; did you mean {near[0]!r}?" if near else "")


def render_table(supported: Sequence[str], refused: Mapping[str, str]) -> str:
    """`docs/architectures.md`."""
    lines = [
        "# Architectures",
        "",
        "By the `model_type` of `config.json`. This page is generated (`make architectures`): every text-generation",
        f"configuration of transformers {TRANSFORMERS} was tried. One works if a tiny random model of it, saved,",
        "compiled and run block by block, equals the model itself in float32. There is no code per architecture.",
        "",
        f"## {len(supported)} that work",
        "",
        " ".join(f"`{name}`" for name in supported),
        "",
        f"## {len(ENCODERS)} encoders",
        "",
        "Texts to embeddings (`BertModel`, pooled as sentence-transformers' files say) and to scores of classes",
        "(`BertForSequenceClassification`):",
        "",
        " ".join(f"`{name}`" for name in ENCODERS),
        "",
        f"## {len(refused)} that are refused",
        "",
        "| model type | because |",
        "|---|---|",
        *(f"| `{name}` | {refused[name].replace('|', '/')} |" for name in refused),
    ]
    return "\n".join(lines) + "\n"
