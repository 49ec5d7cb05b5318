"""PEFT's trainable tokens as a kind of their own: rows of the token table, and of a head that is tied to it."""

from __future__ import annotations

from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.adapter_config import token_indices
from blockc.tune.draft import Draft
from blockc.tune.fields import read_targets
from blockc.tune.kinds import saved, vocabulary

_PART = "trainable_tokens_delta"


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    targets = read_targets(files, applied=("token_indices",), without_effect=("init_weights",))
    if targets is None:
        return None
    try:
        rows = token_indices(files.config.get("token_indices")).get("", ())
    except ValueError:
        rows = ()
    if not rows:
        files.diags.report(
            "BC207", f"`token_indices` of {files.written} is no list of token ids, each once", at=files.at,
            help="save the adapter again with PEFT",
        )  # fmt: skip
        return None
    draft = Draft(files)
    modules = [name.removesuffix(f".{_PART}") for name in files.plain_names if name.endswith(f".{_PART}")]
    vocabulary.read(files, draft, targets.saved, rows=dict.fromkeys(modules or [""], rows), part=_PART)
    saved.modules(files, draft, targets.saved)
    return draft.finish()
