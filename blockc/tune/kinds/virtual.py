"""What prompt tuning, p-tuning and prefix tuning have in common: virtual tokens before every prompt.

In: an adapter of one of these types. Out: how many virtual tokens it has, after its fields were understood in full.
Invariant: PEFT saves what its encoders yield (``prompt_embeddings``), not the encoders: fields that describe them, such
as ``prefix_projection``, have no effect on inference.
"""

from __future__ import annotations

from collections.abc import Collection

from blockc.tune.adapter import AdapterFiles
from blockc.tune.adapter_config import short
from blockc.tune.fields import report_fields, strange_fields

EMBEDDINGS = "prompt_embeddings"
_APPLIED = {"peft_type", "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"}
# For how many parts of a model there are virtual tokens: two in an encoder with a decoder.
_PARTS = "num_transformer_submodules"
_MOST = 1 << 20


def virtual_token_count(files: AdapterFiles, *, without_effect: Collection[str]) -> int | None:
    """How many virtual tokens there are. Problems go to the files' diagnostics (BC202, BC207, BC208); then None.

    ``without_effect``: training settings of the kind.
    """
    config, parent = files.config, files.parent
    problems = strange_fields(config, {*_APPLIED, *without_effect, _PARTS})
    count = config.get("num_virtual_tokens")
    if type(count) is not int or not 0 < count < _MOST:
        problems.append(("num_virtual_tokens", count, "it is no number of tokens"))
    if config.get("task_type") != "CAUSAL_LM":
        problems.append(("task_type", config.get("task_type"), "PEFT puts virtual tokens before other tasks otherwise"))
    if config.get(_PARTS) not in (None, 1):
        problems.append((_PARTS, config[_PARTS], "a decoder has one part"))
    report_fields(files, problems, "save the adapter again with PEFT, for a causal language model")
    if problems:
        return None
    assert isinstance(count, int)
    reason = None
    if not parent.path.kv_layers:
        reason = "its base reads a text as a whole and keeps no keys and values"
    elif parent.virtual_tokens:
        reason = "a fine-tune below has virtual tokens too, and PEFT does not say whose stand first"
    if reason is not None:
        files.diags.report(
            "BC208", f"{files.written} puts virtual tokens where they cannot stand", at=files.at, notes=(reason,),
            help="put it on a decoder without virtual tokens",
        )  # fmt: skip
        return None
    if count >= parent.path.max_model_len:
        files.diags.report(
            "BC202", f"{files.written} has {count} virtual tokens, its base takes {parent.path.max_model_len}",
            at=files.at, notes=("they take positions of their own, before every prompt",),
            help="raise `max_model_len` of the base",
        )  # fmt: skip
        return None
    return count


def expect(files: AdapterFiles, **sizes: int) -> None:
    """Report sizes that the configuration states otherwise than the base has them (BC202)."""
    for field, size in sizes.items():
        stated = files.config.get(field)
        if stated is not None and stated != size:
            files.misfit(f"{field} is {short(stated)}, its base has {size}")
