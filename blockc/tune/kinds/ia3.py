"""(IA)^3 in PEFT's layout (arXiv 2205.05638): a vector for each module.

At `feedforward_modules` it scales what the linear reads, elsewhere what it yields, the base's bias included.
"""

from __future__ import annotations

from blockc.ir import term
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.draft import Draft
from blockc.tune.fields import read_targets, report_no_target
from blockc.tune.kinds import saved, vocabulary
from blockc.tune.targets import names_of

_TRAINING = ("init_ia3_weights",)


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    targets = read_targets(files, names=("feedforward_modules",), without_effect=_TRAINING)
    if targets is None:
        return None
    inputs = names_of(files.config.get("feedforward_modules"))
    draft = Draft(files)
    vocabulary.read(files, draft, targets.saved)
    wanted = [module for module in draft.linears if module in targets]
    if not wanted:
        report_no_target(files, targets, "linear")
    for module in wanted:
        linear = draft.linears[module]
        scales_input = targets.matcher.matches(inputs, module)
        size = linear.in_features if scales_input else linear.out_features
        value = files.take(f"{module}.ia3_l", (1, size) if scales_input else (size, 1))
        if value is not None:
            codec = "in_scale" if scales_input else "out_scale"
            draft.add(linear.site, term(codec, {"value": files.store(value.flatten())}))
    saved.modules(files, draft, targets.saved)
    return draft.finish()
