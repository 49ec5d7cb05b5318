"""Checkpoints that hold vectors alone (BitFit, arXiv 2106.10199): trained biases, or the weights of norms.

Names are those of the model's own parameters. Everything else is the base's.
"""

from __future__ import annotations

from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.draft import Draft
from blockc.tune.kinds import saved


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    draft = Draft(files)
    for name in files.plain_names:
        if draft.has_parameter(name):
            saved.parameter(files, draft, name, name)
    first = next(iter(files.plain_names), "")
    return draft.finish(f"the base has no parameter `{first}`" if first else "")
