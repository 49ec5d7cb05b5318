"""VeRA in PEFT's layout (arXiv 2310.11454): two matrices for all modules, and two vectors for each.

``b o (B (d o (A x)))`` with A and B cut to the module's size: a term of low rank with the vectors folded in. The
matrices must be in the file; drawn again from a seed they would be other ones on another version or device.
"""

from __future__ import annotations

from blockc.ir import low_rank
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.draft import Draft
from blockc.tune.fields import read_targets, report_no_target
from blockc.tune.kinds import saved, vocabulary

_APPLIED = ("r", "save_projection")
_TRAINING = ("vera_dropout", "d_initial", "projection_prng_key", "init_weights", "bias")


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    targets = read_targets(files, applied=_APPLIED, without_effect=_TRAINING)
    if targets is None:
        return None
    rank = files.config.get("r")
    if not isinstance(rank, int) or rank < 1 or files.config.get("bias") not in (None, "none"):
        field = "r" if not isinstance(rank, int) or rank < 1 else "bias"
        files.diags.report(
            "BC207", f"`{field} = {files.config.get(field)!r}` of {files.written} is not supported", at=files.at,
            help="train without it, or merge the adapter with PEFT",
        )  # fmt: skip
        return None
    if "vera_A" not in files or "vera_B" not in files:
        files.diags.report(
            "BC211", f"{files.written} lacks VeRA's matrices, which its configuration would draw from a seed",
            at=files.at, help="save the adapter with `save_projection = True`",
        )  # fmt: skip
        return None
    draft = Draft(files)
    vocabulary.read(files, draft, targets.saved)
    wanted = [module for module in draft.linears if module in targets]
    if not wanted:
        report_no_target(files, targets, "linear")
        return None
    linears = [draft.linears[module] for module in wanted]
    a = files.take("vera_A", (rank, max(linear.in_features for linear in linears)))
    b = files.take("vera_B", (max(linear.out_features for linear in linears), rank))
    for module, linear in zip(wanted, linears, strict=True):
        inner = files.take(f"{module}.vera_lambda_d", (rank,))
        outer = files.take(f"{module}.vera_lambda_b", (linear.out_features,))
        if a is not None and b is not None and inner is not None and outer is not None:
            own_a = inner.float()[:, None] * a[:, : linear.in_features].float()
            own_b = outer.float()[:, None] * b[: linear.out_features].float()
            stored = files.store(own_a.to(files.dtype)), files.store(own_b.to(files.dtype))
            draft.add(linear.site, low_rank(*stored, 1.0))
    saved.modules(files, draft, targets.saved)
    return draft.finish()
