"""The kinds of fine-tune by the words that specs and plans use, and which of PEFT's types each is.

PEFT writes its type into `adapter_config.json` (`peft_type`). Types that are the same to whoever serves them have one
word; the others go by PEFT's own name in small letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# PEFT's type -> the word, where it is another.
_WORDS = {
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "prompt",
    "TRAINABLE_TOKENS": "tokens",
}
# Kinds that are no type of PEFT's: a whole checkpoint, AdapterHub's bottleneck adapters, biases alone (BitFit).
FULL, BOTTLENECK, BIAS = "full", "bottleneck", "bias"
# Of PEFT 0.21.
PEFT_TYPES = (
    "ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "C3A", "CARTRIDGE", "CPT", "DEFT", "DELORA", "FOURIERFT",
    "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS",
    "MULTITASK_PROMPT_TUNING", "OFT", "OSF", "PEANUT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "PSOFT", "PVERA",
    "P_TUNING", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA",
    "VBLORA", "VERA", "WAVEFT", "XLORA",
)  # fmt: skip


def kind_of(peft_type: str) -> str:
    """The word for a type of PEFT's."""
    return _WORDS.get(peft_type, peft_type.lower())


def kind_of_adapter(config: Mapping[str, Any]) -> str:
    """The word for an adapter by its ``adapter_config.json``. AdapterHub's have a configuration inside it."""
    if "peft_type" not in config and "config" in config and "model_type" in config:
        return BOTTLENECK
    return kind_of(str(config.get("peft_type"))[:40])


KINDS = (FULL, BOTTLENECK, BIAS, *sorted({kind_of(name) for name in PEFT_TYPES}))

# Types that PEFT merges into the weights, and what each is. All were tried (`tests/numeric/test_merged.py`).
MERGED = {
    "ADALORA": "LoRA with ranks chosen while training",
    "BOFT": "butterfly factors of an orthogonal matrix",
    "C3A": "circular convolution",
    "DEFT": "projections that remove and inject",
    "DELORA": "LoRA with a bounded norm",
    "FOURIERFT": "coefficients of a discrete Fourier transform",
    "FROD": "rotations from shared factors",
    "GLORA": "scales and shifts of weights and biases",
    "GRALORA": "LoRA by sub-blocks",
    "HIRA": "an elementwise product of the weight and a matrix of low rank",
    "HRA": "Householder reflections",
    "LOHA": "an elementwise product of two matrices of low rank",
    "LOKR": "a Kronecker product",
    "MISS": "one small matrix, repeated",
    "OFT": "an orthogonal matrix by blocks",
    "OSF": "a part of the weight's own singular directions",
    "PEANUT": "a small network over the weights",
    "PSOFT": "an orthogonal matrix in the principal subspace",
    "PVERA": "VeRA with a distribution, its mean at inference",
    "RANDLORA": "a sum of random matrices of low rank",
    "ROAD": "rotations of pairs of outputs",
    "SHIRA": "single values of the weight",
    "SUPERTUNING": "single values in shared factors",
    "TINYLORA": "very few values in frozen factors",
    "UNILORA": "one vector projected to all matrices",
    "VBLORA": "vectors from a shared bank",
    "WAVEFT": "coefficients of a wavelet transform",
}
# Types that are neither served beside shared weights nor merged.
REFUSED = {
    "ADAMSS": "PEFT needs scikit-learn to make one, and it has not been tried",
    "ADAPTION_PROMPT": "it changes attention by gated prompts of its own",
    "BEFT": "PEFT merges it into some biases and not into others",
    "CARTRIDGE": "a trained cache that PEFT cannot merge",
    "CPT": "virtual tokens that depend on the task's own examples",
    "LILY": "its matrices are chosen by what they read",
    "MULTITASK_PROMPT_TUNING": "each request would have to name a task",
    "POLY": "each request would have to name a task",
    "SHADOW": "a second network beside the first",
    "XLORA": "its adapters are mixed by what they read",
}

# What is served beside shared weights: PEFT's type or another kind -> what it is here, and where it acts.
SERVED = {
    "LORA": "low-rank terms at linears and the token table; DoRA, rsLoRA, rank and alpha patterns, trained biases, "
    "`lora_bias`, `modules_to_save`, `trainable_token_indices`, resized vocabularies",
    "IA3": "scales of what linears read or yield; `modules_to_save`",
    "VERA": "low-rank terms with the vectors folded in; the shared matrices must be in the file",
    "LN_TUNING": "vectors in place of those of norms",
    "TRAINABLE_TOKENS": "rows of the token table, and of a head that is tied to it",
    "PROMPT_TUNING": "virtual tokens with embeddings of their own",
    "P_TUNING": "virtual tokens with embeddings of their own, from the saved result of its encoder",
    "PREFIX_TUNING": "virtual tokens with keys and values of their own",
    BOTTLENECK: "AdapterHub's Houlsby, Pfeiffer and parallel adapters, before the sums into the residual stream",
    BIAS: "a checkpoint of vectors alone (BitFit)",
    FULL: "whole checkpoints: equal blocks shared, vectors and few rows beside shared blocks, the rest as policy says",
}
# Heads that a fine-tune brings, in place of that of its base: what it is -> what becomes of it.
HEADS = {
    "a classifier (`SEQ_CLS`) on a decoder": "served at `/v1/classify`, in one batch with generation over the same "
    "layers: scores at the last token, for as many classes as the saved matrix has rows",
    "a classifier (`SEQ_CLS`) on an encoder": "served at `/v1/classify`, on `BertModel`, on a masked-language "
    "checkpoint or on a classifier of other classes; parts of the head that nobody saved are refused",
    "a pooling (`modules.json`) beside an adapter of an encoder": "served at `/v1/embeddings`: the first token, the "
    "last one or the mean, scaled to length 1 or not",
    "a pooling (`modules.json`) beside an adapter or a checkpoint of a decoder": "served at `/v1/embeddings`, in one "
    "batch with generation over the same layers: that of the last token; any other is refused",
    "a whole checkpoint with a classifier": "as an adapter with one",
    "classes of each token (`TOKEN_CLS`), of an adapter or a whole checkpoint": "served at `/v1/classify`, which then "
    "has scores for every token; encoders and decoders, in one batch with everything else on the same layers",
    "where an answer begins and ends (`QUESTION_ANS`)": "refused",
}
# Fields of a LoRA configuration that are refused with a value that switches them on.
LORA_REFUSED = {
    "alora_invocation_tokens": "its matrices act from these tokens on; here a fine-tune acts on every token of its row",
    "arrow_config": "it chooses among several adapters token by token",
    "kasa_config": "it takes singular values out of the base's matrices: the base on disk is not the base in use",
    "layer_replication": "it repeats layers of the base, which makes another model of it",
    "target_parameters": "it adapts parameters that no linear reads",
    "use_bdlora": "its matrices are blocks on a diagonal, stored without what is between them",
    "use_qalora": "it adds up what a linear reads in groups, which only the quantised base does that it was trained on",
    "init_lora_weights": "pissa, olora, corda, loftq and lora_ga change the base that is on disk",
}
# Combinations that have no meaning of their own, or none that PEFT could be compared with.
COMBINATIONS = {
    "a fine-tune with virtual tokens on another": "refused: PEFT does not say whose stand first",
    "a prefix on a model that reads a text as a whole": "refused: it keeps no keys and values",
    "a head for classes on any stack without virtual tokens": "served: the layers as the stack leaves them, under it",
    "a head for classes on virtual tokens, or virtual tokens for classes": "refused: PEFT cannot say what they yield",
    "rows of tokens on a LoRA of the same table or head": "refused: which of them a row follows is not defined",
    "a LoRA of a table on rows of it that are replaced": "refused, for the same reason",
    "rows of tokens at a head that has a bias": "refused: PEFT leaves the bias out, unless it merges the adapter",
    "added tokens with LoRA, IA3, VeRA, norms, rows": "served where the files hold every row that was added",
    "added tokens with a prompt, a prefix, a merged type": "refused",
    "LoRA, DoRA, IA3, VeRA, norms, biases on each other": "composed at compile time, in the order of the stack",
    "LoRA below or on a prefix, a prompt, a bottleneck": "served: they act at different places",
    "any adapter on a full fine-tune": "served; on one that is kept as a delta, beside its changes",
}


def why_refused(peft_type: str) -> str:
    """Why a type of PEFT's is refused, in words that follow its name."""
    return REFUSED.get(peft_type, "which has not been tried with this version")


def _word(name: str) -> str:
    return kind_of(name) if name in PEFT_TYPES else name


def render_table() -> str:
    """`docs/fine-tunes.md`."""
    lines = [
        "# Fine-tunes",
        "",
        "By the `peft_type` of `adapter_config.json`, or by kind where PEFT has none. This page is made of",
        "`blockc/fine_tunes.py` (a test compares them). A kind, field or combination that is not here is refused.",
        "",
        "## Beside shared weights, all in one batch",
        "",
        "| kind | in a spec | what it is |",
        "|---|---|---|",
        *(
            f"| `{name}` | `{kind_of(name) if name in PEFT_TYPES else name}` | {text} |"
            for name, text in SERVED.items()
        ),
        "",
        "## Merged by PEFT at compile time",
        "",
        "What changed is kept beside the shared weights where it is sparse or of low rank, else as private blocks.",
        "",
        "| type | what it is |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in MERGED.items()),
        "",
        "## Refused",
        "",
        "| type | because |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in REFUSED.items()),
        "",
        "Fields of a LoRA that are refused when they are on:",
        "",
        "| field | because |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in LORA_REFUSED.items()),
        "",
        "## Heads",
        "",
        "Names of classes are those of `id2label` in the checkpoint's `config.json`, or in one beside an adapter.",
        "",
        "| head | |",
        "|---|---|",
        *(f"| {what} | {text} |" for what, text in HEADS.items()),
        "",
        "## Combinations",
        "",
        "| combination | |",
        "|---|---|",
        *(f"| {what} | {text} |" for what, text in COMBINATIONS.items()),
    ]
    return "\n".join(lines) + "\n"
