"""Fields of an adapter's configuration that decide where it acts, as all of PEFT's tuners read them.

A field that is neither known to the kind nor neutral is refused (BC207): dropped in silence it would be a wrong scale
or a missing term.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from blockc.tune.adapter import AdapterFiles
from blockc.tune.adapter_config import NOT_UNDERSTOOD, WITHOUT_EFFECT, is_neutral, short
from blockc.tune.patterns import Matcher
from blockc.tune.targets import TARGETING, Targets, malformed, targets_of

Problem = tuple[str, object, str]  # a field, its value, and why it is not served


def strange_fields(config: Mapping[str, Any], known: Collection[str], why: str = NOT_UNDERSTOOD) -> list[Problem]:
    """Fields that are neither known nor of training alone nor switched off."""
    return [
        (field, value, why)
        for field, value in sorted(config.items())
        if field not in known and field not in WITHOUT_EFFECT and not is_neutral(value)
    ]


def report_fields(files: AdapterFiles, problems: Iterable[Problem], help_: str) -> None:
    """Refuse fields (BC207)."""
    for field, value, why in problems:
        files.diags.report(
            "BC207", f"`{field} = {short(value)}` of {files.written} is not supported", at=files.at, notes=(why,),
            help=help_,
        )  # fmt: skip


def read_targets(
    files: AdapterFiles, *, applied: Collection[str] = (), names: Collection[str] = (), without_effect: Collection[str]
) -> Targets | None:
    """The modules that a configuration targets. Problems go to the files' diagnostics (BC207); then None.

    ``applied``: fields that the kind reads itself; ``names``: those of them that name modules; ``without_effect``:
    training settings of the kind. Raises `SlowPatternError`.
    """
    matcher = Matcher()
    problems = strange_fields(files.config, {*TARGETING, *applied, *names, *without_effect})
    wrong = malformed(files.config, matcher, *names)
    problems += [(field, files.config[field], f"it is not {wanted}") for field, wanted in wrong]
    report_fields(files, problems, "train without it, or merge the adapter with PEFT")
    return None if problems else targets_of(files.config, matcher)


def report_no_target(files: AdapterFiles, targets: Targets, what: str) -> None:
    """Say that a configuration targets nothing that the base has (BC211)."""
    files.diags.report(
        "BC211", f"the configuration of {files.written} targets no {what} of its base", at=files.at,
        notes=(f"target_modules = {targets}",), help="check which base the adapter was made for",
    )  # fmt: skip
