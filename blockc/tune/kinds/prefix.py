"""Prefix tuning (arXiv 2101.00190) in PEFT's layout: keys and values of each layer at the first positions.

PEFT puts them into the cache as they are, after the rotary embedding of keys, and real tokens start after them. The
file holds ``[n, layers * 2 * kv_heads * head_dim]``: for each virtual token the keys and then the values of each layer
in turn. Layers with a window see them as they see any token: as long as they are near enough.
"""

from __future__ import annotations

from blockc.ir import Site, term
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.draft import Draft
from blockc.tune.kinds.virtual import EMBEDDINGS, expect, virtual_token_count

# What is computed at these positions reaches nobody: any token will do.
TOKEN = 0
_TRAINING = ("prefix_projection", "encoder_hidden_size", "init_weights")


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    count = virtual_token_count(files, without_effect=_TRAINING)
    if count is None:
        return None
    caches = [
        (Site(occurrence=occurrence, name=place.name), place.shape)
        for occurrence, block in enumerate(files.parent.path.blocks)
        for place in block.places.values()
        if place.kind == "cache"
    ]
    layers = len(files.parent.path.kv_layers)
    shapes = {shape for _, shape in caches}
    if len(caches) != layers or len(shapes) != 1:
        files.diags.report(
            "BC208", f"{files.written} is a prefix for a base whose layers cache keys and values of several shapes",
            at=files.at, notes=("PEFT then skips some of its layers, or cuts what it has for them",),
            help="use prompt tuning or LoRA on this base",
        )  # fmt: skip
        return None
    heads, size = shapes.pop()
    expect(files, num_layers=layers, num_attention_heads=heads, token_dim=heads * size)
    draft = Draft(files)
    whole = files.take(EMBEDDINGS, (count, layers * 2 * heads * size))
    if whole is not None:
        parts = whole.view(count, layers, 2, heads, size)
        for layer, (site, _) in enumerate(caches):
            keys, values = (files.store(parts[:, layer, part].contiguous()) for part in range(2))
            draft.add(site, term("cached", {"keys": keys, "values": values}))
    tuned = draft.finish()
    if tuned is None:
        return None
    return Tuned(path=tuned.path, sides=tuned.sides, virtual_tokens=(TOKEN,) * count)
