"""The kinds of blocks and their attributes: the one place to add one.

A :class:`Kind` says where it stands, whether it has a name and a parent, and what is in it. An
:class:`AttributeSpec` says its type, whether it is required, its default, and whether anything
acts on it yet: what nothing acts on is checked like everything else and warns BC804.
"""

from __future__ import annotations

from fractions import Fraction

from blockc.spec.attribute_types import (
    ASSUMED_KIND,
    COUNT,
    DEVICE_TYPE,
    DTYPE,
    FINE_TUNE_KIND,
    FRACTION,
    HEADROOM,
    KV_DTYPE,
    LINK_RATE,
    MERGE,
    ONE,
    PIPELINE,
    POSITIVE,
    PREFILL,
    PRICE_PER_TIME,
    PRIORITY,
    QUANTIZE,
    RATE,
    REPLICAS,
    RESERVE,
    SHARE,
    SIZE,
    TIME,
    TOKEN_COUNT,
    TOKENS_PER_S,
    ZERO,
    words,
)
from blockc.spec.forms import Either, Form, Named
from blockc.spec.kind import Kind, ParentSpec, attribute
from blockc.spec.secrets import SecretName
from blockc.spec.sources import PathOf, SourceOf
from blockc.spec.units import (
    DURATION,
    NUMBER,
    TOKENS,
)
from blockc.spec.valuetypes import Amount, Many, RangeOfLayers, Text

BLOCKC = Kind(
    name="blockc",
    doc="the edition of the language that a file is written in",
    many=True,
    attributes=(
        attribute(
            "edition",
            Amount(dimension=NUMBER, whole=True, least=ONE, most=ONE),
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
        attribute("dtype", DTYPE, "of weights and activations", default="bfloat16"),
        attribute(
            "kv_cache_dtype",
            KV_DTYPE,
            "`auto` is the dtype; `fp8` (e4m3) and `int8` (with a scale of 4 bytes for each head of each token) take"
            " half of bf16; `int8` loses less",
            default="auto",
        ),
        attribute("max_model_len", TOKEN_COUNT, "longest sequence; without it, the model's own"),
        attribute("quantize", QUANTIZE, "matrices as integers, of its full fine-tunes too", default="none"),
    ),
)

ASSUME = Kind(
    name="assume",
    doc="stands in for `weights` that do not exist yet: plans for `--target sim` only",
    attributes=(
        attribute("kind", ASSUMED_KIND, "what it will be", required=True),
        attribute("rank", COUNT, "of a LoRA, at every module; required for one"),
        attribute(
            "targets",
            Many(of=Text()),
            'modules that a LoRA changes, named as in PEFT, or `["all-linear"]`; required for one',
        ),
        attribute("changed_layers", RangeOfLayers(), "layers that a full fine-tune changes; without it, everything"),
    ),
)

FINETUNE = Kind(
    name="finetune",
    doc="a fine-tune of a base, or of another fine-tune",
    named=True,
    many=True,
    parent=ParentSpec(type=Named(kinds=("base", "finetune")), required=True),
    attributes=(
        attribute("weights", SourceOf(bare=True), "folder or hub repository of its files; required unless assumed"),
        attribute("kind", FINE_TUNE_KIND, "read from the files; if stated, checked against them"),
        attribute("merge", MERGE, "private weights in place of a shared base's; without it, as the policy says"),
        attribute(
            "residency",
            words("pin", "stream", "cold", noun="residency"),
            "of its own blocks: always on the device, or while nobody uses them in the host's memory or in the zoo; "
            "without it, whatever `residency { blocks }` of the policy has room for",
        ),
    ),
    blocks=(ASSUME,),
)

DEVICE = Kind(
    name="device",
    doc="a device of a node",
    named=True,
    many=True,
    parent=ParentSpec(type=DEVICE_TYPE, required=True),
    attributes=(
        attribute("memory", SIZE, "what the device has; required for `cpu` and `cuda`, other kinds bring their own"),
        attribute("reserve", RESERVE, "what a plan may not use: a size, or a share of `memory`"),
        attribute("price", PRICE_PER_TIME, "money for a time, such as `2.50 / 1h`; in one currency everywhere"),
    ),
)
NODE = Kind(name="node", doc="a machine", named=True, many=True, blocks=(DEVICE,))
NETWORK = Kind(
    name="network",
    doc="links between devices",
    attributes=(
        attribute("intra_node", LINK_RATE, "from one device of a node to another; without it, as the catalogue says"),
        attribute("inter_node", LINK_RATE, "from one node to another; without it, nothing travels between nodes"),
        attribute("latency", TIME, "of one message between nodes; without it, 20 us"),
    ),
)
CLUSTER = Kind(name="cluster", doc="the devices", named=True, blocks=(NETWORK, NODE))

TRAFFIC = Kind(
    name="traffic",
    doc="the load that an app expects: with a `rate`, what it takes of devices decides how many there are",
    attributes=(
        attribute("rate", RATE, "requests, on average"),
        attribute("prompt", TOKEN_COUNT, "tokens of a prompt, on average"),
        attribute("output", TOKEN_COUNT, "tokens of an answer, on average"),
        attribute(
            "arrival",
            Either(
                otherwise=words("poisson", noun="arrival process"),
                forms=(
                    Form(
                        name="gamma",
                        named={"cv": POSITIVE},
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
        attribute(f"{metric}_{percentile}", TIME, f"{meaning}, {percentile}")
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
        attribute("model", Named(kinds=("base", "finetune")), "what answers", required=True),
        attribute("pin", Text(), 'where it runs: a node or a device of one, `"n0"` or `"n0/g1"`'),
        attribute("apart_from", Many(of=Text()), 'apps that it shares no device with: `["globex/chat"]`'),
        attribute(
            "priority",
            PRIORITY,
            "the lowest goes first: its requests among its tenant's, unless they say another, and its load "
            "where not all fits",
            default=0,
        ),
        attribute("replicas", REPLICAS, "instances that it runs in, at least", default=1),
        attribute(
            "spread",
            words("device", "node", noun="spread"),
            "what each of its `replicas` has of its own: devices, or a node",
            default="device",
        ),
    ),
    blocks=(TRAFFIC, SLO),
)
QUOTA = Kind(
    name="quota",
    doc="what a tenant may use, over a minute; a keys file may say otherwise",
    attributes=(
        attribute("requests", RATE, "requests that are let in"),
        attribute("tokens", TOKENS_PER_S, "tokens that are let in"),
    ),
)
TENANT = Kind(
    name="tenant",
    doc="who pays for some apps, and shares or does not share with others",
    named=True,
    many=True,
    attributes=(
        attribute("weight", POSITIVE, "its part of what is scarce", default=ONE),
        attribute(
            "isolation",
            words("tenant", "strict", "devices", noun="isolation"),
            "`strict` also separates its apps from each other; `devices`: its devices run nothing of others",
            default="tenant",
        ),
        attribute("keys", Many(of=SecretName()), "its API keys: names of secrets, which `blockc serve` looks up"),
    ),
    blocks=(QUOTA, APP),
)


BATCHING = Kind(
    name="batching",
    doc="limits of a step",
    attributes=(
        attribute("max_batched_tokens", TOKEN_COUNT, "tokens of a step", default=2048),
        attribute("max_num_seqs", COUNT, "requests of a step", default=64),
        attribute("prefill", PREFILL, "how a prompt is read that is too long for a step", default="chunked"),
        attribute(
            "overlap",
            words("auto", "on", "off", noun="overlap"),
            "whether a step is issued while the one before runs; `auto`: on CUDA",
            default="auto",
        ),
    ),
)
KV = Kind(
    name="kv",
    doc="the KV cache",
    attributes=(
        attribute(
            "page",
            Amount(dimension=TOKENS, whole=True, plain_too=True, least=ONE, most=Fraction(1024)),
            "tokens of a page",
            default=16,
        ),
        attribute(
            "share_group",
            words("none", "tenant", noun="group"),
            "who may share pages",
            in_effect=False,
        ),
    ),
)
RESIDENCY = Kind(
    name="residency",
    doc="what stays in memory; the rest waits in the zoo until a request needs it",
    attributes=(
        attribute("fine_tunes", SIZE, "memory of a device for sides; without it, all of them stay"),
        attribute("blocks", SIZE, "memory of a device for fine-tunes' own blocks; without it, all of them stay"),
        attribute(
            "host",
            SIZE,
            "memory of its host for those that wait and have been read before; none beside a `cpu`",
        ),
    ),
)
SOLVER = Kind(
    name="solver",
    doc="how placement is searched for",
    attributes=(
        attribute(
            "time_limit",
            Amount(dimension=DURATION, above=ZERO, most=Fraction(86_400)),
            "after which the best plan so far is taken",
            default=Fraction(60),
        ),
        attribute(
            "objective",
            Many(of=words("slo", "devices", "cost", "communication", "memory", "peak_load", noun="objective")),
            "what there is to be little of, first things first; without it, `[devices, peak_load]`",
        ),
        attribute("gap", FRACTION, "good enough: this far from the bound", default=ZERO),
        attribute("headroom", HEADROOM, "of every device's memory and time, left free", default=ZERO),
        attribute(
            "roles",
            words("shared", "auto", noun="way to give out roles"),
            "`auto`: some instances of a model read prompts for others, where more requests are in time so",
            default="shared",
        ),
    ),
)
REPLAN = Kind(
    name="replan",
    doc="what `blockc compile --from PLAN` may change of the plan before",
    attributes=(
        attribute("move_budget", SIZE, "weights that may be loaded to need fewer devices; without it, all of them"),
    ),
)
SPECULATION = Kind(
    name="speculation",
    doc="speculative decoding",
    in_effect=False,
    attributes=(
        attribute("draft", words("auto", "surrogate", "none", noun="draft"), "who drafts"),
        attribute("max_tokens", TOKEN_COUNT, "tokens of a draft"),
    ),
)
POLICY = Kind(
    name="policy",
    doc="how to compile",
    attributes=(
        attribute(
            "merge", MERGE, "private weights for fine-tunes, rounded: `auto` where it pays and fits", default="never"
        ),
        attribute("share", SHARE, "which blocks count as the same", default="exact"),
        attribute(
            "overload",
            words("refuse", "shed", noun="way with too much load"),
            "where not all expected load fits: no plan, or one without load of the apps with the highest `priority`",
            default="refuse",
        ),
        attribute(
            "pipeline",
            PIPELINE,
            "models in stages on devices of one or several nodes; `auto`: those that fit no cell of a node",
            default="auto",
        ),
    ),
    blocks=(BATCHING, KV, REPLAN, RESIDENCY, SOLVER, SPECULATION),
)

EXPECT = Kind(
    name="expect",
    doc="what must hold of the plan, and of its load: judged when it is compiled, and by `blockc simulate`",
    many=True,
    attributes=(
        attribute("memory_below", SIZE, "memory that the plan takes"),
        attribute(
            "slo_attainment", FRACTION, "requests within the targets of their app, simulated under the spec's traffic"
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
