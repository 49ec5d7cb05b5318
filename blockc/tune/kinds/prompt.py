"""Prompt tuning (arXiv 2104.08691) and p-tuning (arXiv 2103.10385) in PEFT's layout: embeddings before every prompt.

They become rows of the token table for ids that no vocabulary reaches, so that nothing else tells them from tokens.
"""

from __future__ import annotations

import torch

from blockc.ir import Structure, Value, term
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.draft import Draft, Located
from blockc.tune.kinds.virtual import EMBEDDINGS, expect, virtual_token_count

# Ids of virtual tokens begin here: however many tokens a fine-tune on top adds, they stay apart.
FIRST_ID = 1 << 32
_TRAINING = (
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout",
)  # fmt: skip
_SCALING = ("aten.mul.Tensor", "aten.div.Tensor")


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    count = virtual_token_count(files, without_effect=_TRAINING)
    if count is None:
        return None
    draft = Draft(files)
    tables = list(draft.tables.values())
    if len(tables) != 1 or _scales(files.parent.path.blocks[tables[0].site.occurrence].structure, tables[0]):
        why = "scales the vectors of its tokens" if len(tables) == 1 else f"looks tokens up in {len(tables)} tables"
        files.diags.report(
            "BC208", f"{files.written} is a prompt for a base that {why}", at=files.at,
            notes=("what becomes of a vector that belongs to no token differs from model to model",),
            help="use prefix tuning or LoRA on this base",
        )  # fmt: skip
        return None
    hidden = tables[0].place.shape[1]
    expect(files, token_dim=hidden)
    vectors = files.take(EMBEDDINGS, (count, hidden))
    ids = torch.arange(FIRST_ID, FIRST_ID + count)
    if vectors is not None:
        draft.add(tables[0].site, term("rows", {"index": files.store(ids), "weight": files.store(vectors)}))
    tuned = draft.finish()
    return None if tuned is None else Tuned(path=tuned.path, sides=tuned.sides, virtual_tokens=tuple(ids.tolist()))


def _scales(structure: Structure, table: Located) -> bool:
    """Whether vectors of tokens are multiplied by something before anything else happens to them."""
    values = {Value(name) for name in table.place.ops}
    for op in structure.ops:
        if values & set(op.args):
            if op.target in _SCALING:
                return True
            if op.target == "aten.to.dtype":
                values.add(Value(op.result))
    return False
