"""The kinds of blocks and their attributes: the one place to add one.

A :class:`Kind` says where it stands, whether it has a name and a parent, and what is in it. An
:class:`AttributeSpec` says its type, whether it is required, its default, and whether anything
acts on it yet: what nothing acts on is checked like everything else and warns BC804.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

from blockc.fine_tunes import KINDS
from blockc.spec.context import ValueType
from blockc.spec.deployment import LocalSource, Quantize, Sharing
from blockc.spec.device_kinds import DEVICE_KINDS
from blockc.spec.forms import Either, Form, Named
from blockc.spec.secrets import SecretName
from blockc.spec.sources import FileOf, PathOf, SourceOf
from blockc.spec.units import (
    BANDWIDTH,
    BYTES,
    DURATION,
    NUMBER,
    REQUEST_RATE,
    TOKEN_RATE,
    TOKENS,
)
from blockc.spec.valuetypes import Amount, Choice, Many, OneOf, RangeOfLayers, Share, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeSpec:
    """An attribute of a kind. ``default`` is what its type would give, in base units."""

    name: str
    type: ValueType
    doc: str
    required: bool = False
    default: object | None = None
    in_effect: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentSpec:
    """What may stand after the colon of a block's header."""

    type: ValueType
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of block. ``many``: may stand more than once where it stands."""

    name: str
    doc: str
    named: bool = False
    many: bool = False
    parent: ParentSpec | None = None
    attributes: tuple[AttributeSpec, ...] = ()
    blocks: tuple[Kind, ...] = ()
    in_effect: bool = True

    def attribute(self, name: str) -> AttributeSpec | None:
        """Return the attribute of this name, if there is one."""
        return next((spec for spec in self.attributes if spec.name == name), None)

    def block(self, name: str) -> Kind | None:
        """Return the kind of nested block of this name, if there is one."""
        return next((kind for kind in self.blocks if kind.name == name), None)


def _attribute(
    name: str,
    type_: ValueType,
    doc: str,
    *,
    required: bool = False,
    default: object | None = None,
    in_effect: bool = True,
) -> AttributeSpec:
    return AttributeSpec(name=name, type=type_, doc=doc, required=required, default=default, in_effect=in_effect)


_ZERO = Fraction(0)
_ONE = Fraction(1)

_SIZE = Amount(dimension=BYTES, whole=True, above=_ZERO)
_RATE = Amount(dimension=REQUEST_RATE, above=_ZERO)
_TOKEN_RATE = Amount(dimension=TOKEN_RATE, above=_ZERO)
_TOKEN_COUNT = Amount(dimension=TOKENS, whole=True, plain_too=True, least=_ONE)
_COUNT = Amount(dimension=NUMBER, whole=True, least=_ONE)
_POSITIVE = Amount(dimension=NUMBER, above=_ZERO)
_FRACTION = Amount(dimension=NUMBER, least=_ZERO, most=_ONE)
_HEADROOM = Amount(dimension=NUMBER, least=_ZERO, most=Fraction(9, 10))
_TIME = Amount(dimension=DURATION, above=_ZERO)
_BANDWIDTH = Amount(dimension=BANDWIDTH, above=_ZERO)

_DTYPES = (
    Choice(word="bf16", meaning="bfloat16"),
    Choice(word="bfloat16", meaning="bfloat16"),
    Choice(word="fp16", meaning="float16"),
    Choice(word="float16", meaning="float16"),
    Choice(word="fp32", meaning="float32"),
    Choice(word="float32", meaning="float32"),
)
# What people call kinds that have another word here.
_ALSO = {"dora": "lora", "rslora": "lora", "bitfit": "bias", "houlsby": "bottleneck", "pfeiffer": "bottleneck"}

_DTYPE = OneOf(noun="dtype", choices=_DTYPES)
_KV_DTYPE = OneOf(
    noun="dtype",
    choices=(
        Choice(word="auto", meaning="auto"),
        *_DTYPES,
        Choice(word="fp8", meaning="float8_e4m3fn"),
    ),
)
_FINE_TUNE_KIND = OneOf(
    noun="kind of fine-tune",
    choices=(
        *(Choice(word=word, meaning=word) for word in KINDS),
        *(Choice(word=word, meaning=meaning) for word, meaning in _ALSO.items()),
    ),
)
_ASSUMED_KIND = OneOf(
    noun="kind of fine-tune",
    choices=(Choice(word="lora", meaning="lora"), Choice(word="full", meaning="full")),
)
_DEVICE_TYPE = OneOf(
    noun="device type",
    choices=tuple(Choice(word=name, meaning=name) for name in DEVICE_KINDS),
)


def _words(*words: str, noun: str = "value") -> OneOf:
    return OneOf(noun=noun, choices=tuple(Choice(word=word, meaning=word) for word in words))


_MERGE = _words("never", "auto", "always", noun="choice")


def _integers(bits: int, group: int | None) -> Callable[[Mapping[str | int, object]], Quantize]:
    """``int8`` or ``int4``, with the group that it has unless it says another."""

    def make(given: Mapping[str | int, object]) -> Quantize:
        probe = cast("LocalSource | None", given.get("probe"))
        return Quantize(bits=bits, group=cast("int | None", given.get("group", group)), probe=probe)

    return make


_GROUP = Amount(dimension=NUMBER, whole=True, least=Fraction(8), most=Fraction(1 << 16))
_QUANTIZE = Either(
    otherwise=_words("none", noun="precision"),
    forms=tuple(
        Form(
            name=f"int{bits}",
            named={"group": _GROUP, "probe": FileOf()},
            bare=True,
            make=_integers(bits, group),
            example=example,
        )
        for bits, group, example in ((8, None, "int8"), (4, 64, "int4(group = 64)"))
    ),
)

BLOCKC = Kind(
    name="blockc",
    doc="the edition of the language that a file is written in",
    many=True,
    attributes=(
        _attribute(
            "edition",
            Amount(dimension=NUMBER, whole=True, least=_ONE, most=_ONE),
            "1 is the only edition",
            default=1,
        ),
    ),
)

BASE = Kind(
    name="base",
    doc="a base model",
    named=True,
    many=True,
    parent=ParentSpec(type=SourceOf(bare=False), required=True),
    attributes=(
        _attribute("dtype", _DTYPE, "of weights and activations", default="bfloat16"),
        _attribute(
            "kv_cache_dtype",
            _KV_DTYPE,
            "`auto` is the dtype; `fp8` halves what bf16 takes, and rounds keys and values to e4m3",
            default="auto",
        ),
        _attribute("max_model_len", _TOKEN_COUNT, "longest sequence; without it, the model's own"),
        _attribute("quantize", _QUANTIZE, "matrices as integers, of its full fine-tunes too", default="none"),
    ),
)

ASSUME = Kind(
    name="assume",
    doc="stands in for `weights` that do not exist yet: plans for `--target sim` only",
    attributes=(
        _attribute("kind", _ASSUMED_KIND, "what it will be", required=True),
        _attribute("rank", _COUNT, "of a LoRA, at every module; required for one"),
        _attribute(
            "targets",
            Many(of=Text()),
            'modules that a LoRA changes, named as in PEFT, or `["all-linear"]`; required for one',
        ),
        _attribute("changed_layers", RangeOfLayers(), "layers that a full fine-tune changes; without it, everything"),
    ),
)

FINETUNE = Kind(
    name="finetune",
    doc="a fine-tune of a base, or of another fine-tune",
    named=True,
    many=True,
    parent=ParentSpec(type=Named(kinds=("base", "finetune")), required=True),
    attributes=(
        _attribute("weights", SourceOf(bare=True), "folder or hub repository of its files; required unless assumed"),
        _attribute("kind", _FINE_TUNE_KIND, "read from the files; if stated, checked against them"),
        _attribute("merge", _MERGE, "private weights in place of a shared base's; without it, as the policy says"),
    ),
    blocks=(ASSUME,),
)

_RESERVE = Share(of=_SIZE)

DEVICE = Kind(
    name="device",
    doc="a device of a node",
    named=True,
    many=True,
    parent=ParentSpec(type=_DEVICE_TYPE, required=True),
    attributes=(
        _attribute("memory", _SIZE, "what the device has; required for `cpu` and `cuda`, other kinds bring their own"),
        _attribute("reserve", _RESERVE, "what a plan may not use: a size, or a share of `memory`"),
    ),
)
NODE = Kind(name="node", doc="a machine", named=True, many=True, blocks=(DEVICE,))
NETWORK = Kind(
    name="network",
    doc="links between devices",
    attributes=(
        _attribute("intra_node", _BANDWIDTH, "from one device of a node to another; without it, as the catalogue says"),
        _attribute("inter_node", _BANDWIDTH, "between nodes", in_effect=False),
        _attribute("latency", _TIME, "of one message", in_effect=False),
    ),
)
CLUSTER = Kind(name="cluster", doc="the devices", named=True, blocks=(NETWORK, NODE))

TRAFFIC = Kind(
    name="traffic",
    doc="the load that an app expects: with a `rate`, what it takes of devices decides how many there are",
    attributes=(
        _attribute("rate", _RATE, "requests, on average"),
        _attribute("prompt", _TOKEN_COUNT, "tokens of a prompt, on average"),
        _attribute("output", _TOKEN_COUNT, "tokens of an answer, on average"),
        _attribute(
            "arrival",
            Either(
                otherwise=_words("poisson", noun="arrival process"),
                forms=(
                    Form(
                        name="gamma",
                        named={"cv": _POSITIVE},
                        required=("cv",),
                        make=lambda given: given["cv"],
                        example="gamma(cv = 3.0)",
                    ),
                    Form(
                        name="trace",
                        positional=(PathOf(),),
                        make=lambda given: given[0],
                        example='trace("requests.csv")',
                    ),
                ),
            ),
            "how requests are spread over time, when simulated; a trace gives lengths, too (`simulate.md`)",
        ),
    ),
)
SLO_PERCENTILES = ("p50", "p90", "p95", "p99")
SLO = Kind(
    name="slo",
    doc="latency targets: placement keeps to those of apps with a `rate`, a tenant's requests go by when their first "
    "token is due, `blockc simulate` judges by all",
    attributes=tuple(
        _attribute(f"{metric}_{percentile}", _TIME, f"{meaning}, {percentile}")
        for metric, meaning in (
            ("ttft", "time to first token"),
            ("tpot", "time per further token"),
            ("e2e", "time to the last token"),
        )
        for percentile in SLO_PERCENTILES
    ),
)
PROFILE = Kind(
    name="profile",
    doc="traffic and slo that several apps share: `app chat : NAME`",
    named=True,
    many=True,
    blocks=(TRAFFIC, SLO),
)
APP = Kind(
    name="app",
    doc="what clients call: the `model` of a request is `tenant/app`",
    named=True,
    many=True,
    parent=ParentSpec(type=Named(kinds=("profile",)), required=False),
    attributes=(
        _attribute("model", Named(kinds=("base", "finetune")), "what answers", required=True),
        _attribute("pin", Text(), 'where it runs: a node or a device of one, `"n0"` or `"n0/g1"`'),
        _attribute("apart_from", Many(of=Text()), 'apps that it shares no device with: `["globex/chat"]`'),
    ),
    blocks=(TRAFFIC, SLO),
)
QUOTA = Kind(
    name="quota",
    doc="what a tenant may use, over a minute; a keys file may say otherwise",
    attributes=(
        _attribute("requests", _RATE, "requests that are let in"),
        _attribute("tokens", _TOKEN_RATE, "tokens that are let in"),
    ),
)
TENANT = Kind(
    name="tenant",
    doc="who pays for some apps, and shares or does not share with others",
    named=True,
    many=True,
    attributes=(
        _attribute("weight", _POSITIVE, "its part of what is scarce", default=_ONE),
        _attribute(
            "isolation",
            _words("tenant", "strict", "devices", noun="isolation"),
            "`strict` also separates its apps from each other; `devices`: its devices run nothing of others",
            default="tenant",
        ),
        _attribute("keys", Many(of=SecretName()), 'API keys: `[secret("ACME_KEY")]`', in_effect=False),
    ),
    blocks=(QUOTA, APP),
)


def _delta(given: Mapping[str | int, object]) -> Sharing:
    probe = cast("LocalSource | None", given.get("probe"))
    return Sharing(mode="delta", max_error=cast("Fraction", given["max_error"]), probe=probe)


def _approx(given: Mapping[str | int, object]) -> Sharing:
    metric = cast("Literal['kl', 'top1', 'perplexity']", given[0])
    bound, probe = cast("Fraction", given[1]), cast("LocalSource", given["probe"])
    return Sharing(mode="approx", metric=metric, bound=bound, probe=probe)


_LOSS = Amount(dimension=NUMBER, above=_ZERO, most=_ONE)
_SHARE = Either(
    otherwise=OneOf(noun="sharing mode", choices=(Choice(word="exact", meaning="exact"),)),
    forms=(
        Form(
            name="delta",
            named={"max_error": _LOSS, "probe": FileOf()},
            required=("max_error",),
            make=_delta,
            example="delta(max_error = 1%)",
        ),
        Form(
            name="approx",
            positional=(_words("kl", "top1", "perplexity", noun="metric"), _LOSS),
            named={"probe": FileOf()},
            required=("probe",),
            make=_approx,
            example='approx(kl, 1%, probe = file("./probe.txt"))',
        ),
    ),
)
_PREFILL = Either(
    otherwise=_words("chunked", noun="way to read prompts"),
    forms=(
        Form(
            name="layered",
            named={"parts": Amount(dimension=NUMBER, whole=True, least=Fraction(2), most=Fraction(64))},
            required=("parts",),
            make=lambda given: given["parts"],
            example="layered(parts = 4)",
        ),
    ),
)
BATCHING = Kind(
    name="batching",
    doc="limits of a step",
    attributes=(
        _attribute("max_batched_tokens", _TOKEN_COUNT, "tokens of a step", default=2048),
        _attribute("max_num_seqs", _COUNT, "requests of a step", default=64),
        _attribute("prefill", _PREFILL, "how a prompt is read that is too long for a step", default="chunked"),
    ),
)
KV = Kind(
    name="kv",
    doc="the KV cache",
    attributes=(
        _attribute(
            "page",
            Amount(dimension=TOKENS, whole=True, plain_too=True, least=_ONE, most=Fraction(1024)),
            "tokens of a page",
            default=16,
        ),
        _attribute(
            "share_group",
            _words("none", "tenant", noun="group"),
            "who may share pages",
            in_effect=False,
        ),
    ),
)
RESIDENCY = Kind(
    name="residency",
    doc="what stays in memory; the rest waits in the zoo until a request needs it",
    attributes=(_attribute("fine_tunes", _SIZE, "memory of a device for sides; without it, all of them stay"),),
)
SOLVER = Kind(
    name="solver",
    doc="how placement is searched for",
    attributes=(
        _attribute(
            "time_limit",
            Amount(dimension=DURATION, above=_ZERO, most=Fraction(86_400)),
            "after which the best plan so far is taken",
            default=Fraction(60),
        ),
        _attribute(
            "objective",
            Many(of=_words("slo", "devices", "communication", "memory", noun="objective")),
            "what matters, first things first",
            in_effect=False,
        ),
        _attribute("gap", _FRACTION, "good enough: this far from the bound", default=_ZERO),
        _attribute("headroom", _HEADROOM, "of every device's memory and time, left free", default=_ZERO),
    ),
)
REPLAN = Kind(
    name="replan",
    doc="what `blockc compile --from PLAN` may change of the plan before",
    attributes=(
        _attribute("move_budget", _SIZE, "weights that may be loaded to need fewer devices; without it, all of them"),
    ),
)
SPECULATION = Kind(
    name="speculation",
    doc="speculative decoding",
    in_effect=False,
    attributes=(
        _attribute("draft", _words("auto", "surrogate", "none", noun="draft"), "who drafts"),
        _attribute("max_tokens", _TOKEN_COUNT, "tokens of a draft"),
    ),
)
POLICY = Kind(
    name="policy",
    doc="how to compile",
    attributes=(
        _attribute("merge", _MERGE, "private weights for fine-tunes: `auto` where it pays and fits", default="never"),
        _attribute("share", _SHARE, "which blocks count as the same", default="exact"),
    ),
    blocks=(BATCHING, KV, REPLAN, RESIDENCY, SOLVER, SPECULATION),
)

EXPECT = Kind(
    name="expect",
    doc="what must hold of the plan, and of its load: judged when it is compiled, and by `blockc simulate`",
    many=True,
    attributes=(
        _attribute("memory_below", _SIZE, "memory that the plan takes"),
        _attribute(
            "slo_attainment", _FRACTION, "requests within the targets of their app, simulated under the spec's traffic"
        ),
    ),
)

ROOT = Kind(
    name="spec",
    doc="a file",
    blocks=(BLOCKC, BASE, FINETUNE, CLUSTER, TENANT, PROFILE, POLICY, EXPECT),
)


def all_kinds(root: Kind = ROOT) -> tuple[Kind, ...]:
    """Return every kind below ``root``, each once, in the order of the schema."""
    found: dict[str, Kind] = {}
    pending = list(root.blocks)
    while pending:
        kind = pending.pop(0)
        if kind.name not in found:
            found[kind.name] = kind
            pending[:0] = kind.blocks
    return tuple(found.values())
