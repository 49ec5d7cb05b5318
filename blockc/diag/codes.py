"""Every diagnostic code: its slug, severity and one-line meaning.

Families: 0xx syntax, 1xx names, types, units, 2xx models and weights, 3xx blocks and sharing, 4xx
capacity and placement, 5xx traffic and SLO, 6xx tenancy and security, 7xx what a change breaks,
8xx lint, 9xx plan, zoo and ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad it is: an error stops the phase, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A stable identifier such as ``BC101`` with its slug ``unknown-reference``."""

    id: str
    slug: str
    severity: Severity
    summary: str

    def __str__(self) -> str:
        return self.id


_E, _W = Severity.ERROR, Severity.WARNING

_TABLE: tuple[tuple[str, str, Severity, str], ...] = (
    ("BC001", "syntax-error", _E, "the text is not a spec"),
    ("BC002", "unclosed-delimiter", _E, "a bracket, brace or quote is never closed"),
    ("BC003", "file-unreadable", _E, "a file named by the spec or the command cannot be read"),
    ("BC101", "unknown-reference", _E, "a name refers to nothing"),
    ("BC102", "unknown-attribute", _E, "this kind of block has no such attribute"),
    ("BC103", "unknown-kind", _E, "no such kind of block"),
    ("BC104", "unit-mismatch", _E, "a value has the wrong type or unit"),
    ("BC105", "ambiguous-unit", _E, "a unit could mean two things"),
    ("BC106", "duplicate-address", _E, "something is declared twice"),
    ("BC107", "reference-cycle", _E, "declarations refer to each other in a circle"),
    ("BC108", "missing-attribute", _E, "a required attribute or block is absent"),
    ("BC109", "value-out-of-range", _E, "a value lies outside what is allowed"),
    ("BC110", "ambiguous-reference", _E, "a name could mean several things"),
    ("BC201", "weights-not-found", _E, "a model or fine-tune is not where the spec says"),
    ("BC202", "base-mismatch", _E, "a fine-tune does not fit the base it names"),
    ("BC203", "weights-damaged", _E, "a weight file is truncated or malformed"),
    ("BC204", "tensor-not-applied", _E, "tensors of a fine-tune change nothing in the model"),
    ("BC205", "untraceable-model", _E, "this architecture cannot be traced exactly"),
    ("BC206", "unsafe-weights", _E, "pickled weights are refused"),
    (
        "BC207",
        "config-field-not-understood",
        _E,
        "a field of the fine-tune's configuration is not understood",
    ),
    ("BC208", "unsupported-fine-tune", _E, "this kind of fine-tune is not supported"),
    ("BC209", "quantized-checkpoint", _E, "a quantised checkpoint that is not read here"),
    ("BC210", "base-name-differs", _W, "an adapter names another base; its shapes fit"),
    ("BC211", "tensor-missing", _E, "a checkpoint lacks tensors that the model needs"),
    ("BC212", "weights-assumed", _E, "a fine-tune that is only assumed cannot be served"),
    ("BC213", "tokens-without-rows", _W, "a fine-tune's tokenizer has tokens that its files hold no rows for"),
    ("BC301", "no-sharing", _W, "a full fine-tune shares nothing with its base"),
    ("BC302", "without-effect", _W, "an adapter changes nothing"),
    ("BC303", "merge-rounds", _W, "merging rounds away part of what a fine-tune changes"),
    ("BC304", "merge-quantized", _E, "a fine-tune cannot be merged into integers"),
    ("BC401", "infeasible-memory", _E, "the plan needs more memory than the devices offer"),
    ("BC402", "unsat-placement", _E, "constraints cannot hold together"),
    ("BC403", "solver-gap", _W, "the solver stopped before proving the plan optimal"),
    ("BC404", "load-not-placed", _W, "expected load decides nothing: the devices' speed is unknown"),
    ("BC405", "load-shed", _W, "not all expected load has a place: some of the highest priorities is left out"),
    ("BC406", "rows-short", _W, "steps come faster than targets ask for, because they take few requests"),
    ("BC501", "slo-unreachable", _E, "a latency target lies below its lower bound"),
    ("BC502", "expectation-failed", _E, "an `expect` does not hold"),
    ("BC503", "trace-malformed", _E, "a trace of requests is malformed"),
    ("BC504", "device-unknown", _E, "nothing is known of how fast a device is"),
    ("BC505", "profile-unusable", _E, "a profile is damaged, of another device, or could not be measured"),
    ("BC506", "profile-of-others", _W, "a profile was measured with other structures than the plan's"),
    ("BC507", "expectation-not-judged", _W, "an `expect` could not be judged when the spec was compiled"),
    ("BC508", "way-not-simulated", _E, "a model's way passes several instances, which is not simulated"),
    ("BC509", "roles-not-tried", _W, "`roles = auto` has nothing to try"),
    ("BC601", "isolation-violated", _E, "the plan would share what must be isolated"),
    ("BC602", "secret-in-spec", _E, "a secret stands in plain text"),
    ("BC603", "secret-missing", _E, "a secret that a plan names is not there, or is no key"),
    ("BC801", "unused-declaration", _W, "something is declared and never used"),
    ("BC803", "unused-suppression", _W, "a suppression suppresses nothing"),
    ("BC804", "not-in-effect", _W, "this is accepted and nothing acts on it yet"),
    ("BC901", "plan-damaged", _E, "a plan file is malformed or was changed by hand"),
    ("BC902", "plan-version", _E, "a plan was written by another version"),
    ("BC903", "zoo-damaged", _E, "stored bytes do not match their digest"),
    ("BC904", "zoo-missing", _E, "the zoo lacks what the plan needs"),
    ("BC905", "runtime-lacks", _E, "this runtime lacks something that the plan requires"),
    ("BC906", "verify-failed", _E, "a served model differs from the same model run alone"),
    ("BC907", "zoo-unknown-name", _E, "a digest or path names nothing, or several things, in the zoo"),
    ("BC908", "zoo-busy", _E, "another process writes to the zoo, or it cannot be locked"),
    ("BC999", "internal-error", _E, "a bug in blockc"),
)

CODES: dict[str, Code] = {
    id_: Code(id=id_, slug=slug, severity=severity, summary=summary) for id_, slug, severity, summary in _TABLE
}
