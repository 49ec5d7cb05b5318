"""LN tuning in PEFT's layout (arXiv 2312.11420): norms with weights and biases of their own."""

from __future__ import annotations

from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.draft import Draft
from blockc.tune.fields import read_targets, report_no_target
from blockc.tune.kinds import saved, vocabulary

_PART = ".ln_tuning_layers."


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    targets = read_targets(files, without_effect=())
    if targets is None:
        return None
    draft = Draft(files)
    vocabulary.read(files, draft, targets.saved)
    wanted = [name for names in draft.path.parameters for name in names if name.rpartition(".")[0] in targets]
    if not wanted:
        report_no_target(files, targets, "module")
    for name in sorted(wanted):
        module, _, part = name.rpartition(".")
        saved.parameter(files, draft, f"{module}{_PART}{part}", name)
    saved.modules(files, draft, targets.saved)
    return draft.finish()
