"""The types of the schema's attributes: amounts with their bounds, words, and the forms that some of them take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal, cast

from blockc.fine_tunes import KINDS
from blockc.spec.deployment import LocalSource, Quantize, Sharing
from blockc.spec.device_kinds import DEVICE_KINDS
from blockc.spec.forms import Either, Form
from blockc.spec.sources import FileOf
from blockc.spec.units import (
    BANDWIDTH,
    BYTES,
    DURATION,
    NUMBER,
    PRICE,
    REQUEST_RATE,
    TOKEN_RATE,
    TOKENS,
)
from blockc.spec.valuetypes import Amount, Choice, OneOf, Share

ZERO = Fraction(0)
ONE = Fraction(1)

SIZE = Amount(dimension=BYTES, whole=True, above=ZERO)
RATE = Amount(dimension=REQUEST_RATE, above=ZERO)
TOKENS_PER_S = Amount(dimension=TOKEN_RATE, above=ZERO)
TOKEN_COUNT = Amount(dimension=TOKENS, whole=True, plain_too=True, least=ONE)
COUNT = Amount(dimension=NUMBER, whole=True, least=ONE)
REPLICAS = Amount(dimension=NUMBER, whole=True, least=ONE, most=Fraction(64))
POSITIVE = Amount(dimension=NUMBER, above=ZERO)
FRACTION = Amount(dimension=NUMBER, least=ZERO, most=ONE)
HEADROOM = Amount(dimension=NUMBER, least=ZERO, most=Fraction(9, 10))
PRIORITY = Amount(dimension=NUMBER, whole=True, least=ZERO, most=Fraction(1_000_000))
PRICE_PER_TIME = Amount(dimension=PRICE, above=ZERO)
TIME = Amount(dimension=DURATION, above=ZERO)
LINK_RATE = Amount(dimension=BANDWIDTH, above=ZERO)

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

DTYPE = OneOf(noun="dtype", choices=_DTYPES)
KV_DTYPE = OneOf(
    noun="dtype",
    choices=(
        Choice(word="auto", meaning="auto"),
        *_DTYPES,
        Choice(word="fp8", meaning="float8_e4m3fn"),
        Choice(word="int8", meaning="int8"),
    ),
)
FINE_TUNE_KIND = OneOf(
    noun="kind of fine-tune",
    choices=(
        *(Choice(word=word, meaning=word) for word in KINDS),
        *(Choice(word=word, meaning=meaning) for word, meaning in _ALSO.items()),
    ),
)
ASSUMED_KIND = OneOf(
    noun="kind of fine-tune",
    choices=(Choice(word="lora", meaning="lora"), Choice(word="full", meaning="full")),
)
DEVICE_TYPE = OneOf(
    noun="device type",
    choices=tuple(Choice(word=name, meaning=name) for name in DEVICE_KINDS),
)


def words(*words: str, noun: str = "value") -> OneOf:
    """One of some words, each meaning itself."""
    return OneOf(noun=noun, choices=tuple(Choice(word=word, meaning=word) for word in words))


MERGE = words("never", "auto", "always", noun="choice")


def _integers(bits: int, group: int | None) -> Callable[[Mapping[str | int, object]], Quantize]:
    """``int8`` or ``int4``, with the group that it has unless it says another."""

    def make(given: Mapping[str | int, object]) -> Quantize:
        probe = cast("LocalSource | None", given.get("probe"))
        return Quantize(bits=bits, group=cast("int | None", given.get("group", group)), probe=probe)

    return make


_GROUP = Amount(dimension=NUMBER, whole=True, least=Fraction(8), most=Fraction(1 << 16))
QUANTIZE = Either(
    otherwise=words("none", noun="precision"),
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

RESERVE = Share(of=SIZE)


def _delta(given: Mapping[str | int, object]) -> Sharing:
    probe = cast("LocalSource | None", given.get("probe"))
    return Sharing(mode="delta", max_error=cast("Fraction", given["max_error"]), probe=probe)


def _approx(given: Mapping[str | int, object]) -> Sharing:
    metric = cast("Literal['kl', 'top1', 'perplexity']", given[0])
    bound, probe = cast("Fraction", given[1]), cast("LocalSource", given["probe"])
    return Sharing(mode="approx", metric=metric, bound=bound, probe=probe)


_LOSS = Amount(dimension=NUMBER, above=ZERO, most=ONE)
SHARE = Either(
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
            positional=(words("kl", "top1", "perplexity", noun="metric"), _LOSS),
            named={"probe": FileOf()},
            required=("probe",),
            make=_approx,
            example='approx(kl, 1%, probe = file("./probe.txt"))',
        ),
    ),
)
PIPELINE = Either(
    otherwise=words("auto", "off", noun="way to divide models"),
    forms=(
        Form(
            name="stages",
            named={"count": Amount(dimension=NUMBER, whole=True, least=Fraction(1), most=Fraction(64))},
            required=("count",),
            make=lambda given: given["count"],
            example="stages(count = 2)",
        ),
    ),
)
PREFILL = Either(
    otherwise=words("chunked", noun="way to read prompts"),
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
