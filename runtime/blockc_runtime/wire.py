"""Frames between server and engine, and the byte form of `Step` and `StepResult`.

In: frozen dataclasses. Out: length-prefixed msgpack of plain values, and back. A frame is a
big-endian 32-bit length followed by ``[WIRE_VERSION, kind, fields...]``. Invariant: whatever bytes
arrive, decoding yields a well-typed message or raises `ProtocolError`; nothing is unpickled, no
frame above `MAX_FRAME_BYTES` is buffered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgpack

from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.memory import MemoryUse
from blockc_runtime.request import EndEvent, Request, Sampling, Steering, TokenLogprob, TokensEvent
from blockc_runtime.step import Fault, Launch, Row, RowResult, SlotFill, Step, StepResult

WIRE_VERSION = 6
MAX_FRAME_BYTES = 64 * 1024 * 1024

_HEADER = struct.Struct(">I")
_T = TypeVar("_T")


class ProtocolError(Exception):
    """The peer sent, or we were asked to send, something that is not a frame of this version."""


# --- messages, server to engine -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Take on a request."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop working on a request. Unknown ids are fine: it may have ended meanwhile."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsQuery:
    """Ask for one `Stats`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Make one more plan ready: the file ``plan`` with the SHA-256 ``plan_digest``, to be called ``epoch``.

    ``alone``: in the place of all others, which have nothing unfinished; else beside them. Answered by one `Loaded` or
    `LoadFailed`. A requests' ``epoch`` says which plan it is for.
    """

    epoch: int
    plan: str
    plan_digest: str
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """No more requests come for this plan. It goes, with what no other plan has, when its last one has ended."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take on nothing more, finish what there is, then end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """End now."""


# --- messages, engine to server -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The engine has loaded the plan whose file has this SHA-256 and can serve it."""

    plan_digest: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One more plan is ready.

    ``kept_bytes`` and ``loaded_bytes``: of its weights and fine-tunes, those that were in memory already and those that
    were read. Of its ``kv_groups`` so many go on in pages of the plan before (``kv_kept``), with what is cached in
    them. ``longest_turn_s``: the most that requests had to wait for the engine in one piece while it loaded.
    """

    epoch: int
    plan_digest: str
    kept_bytes: int
    loaded_bytes: int
    kv_groups: int
    kv_kept: int
    load_s: float
    longest_turn_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """A plan cannot be served, and nothing has changed. ``is_crowded``: it fits, and not beside the others."""

    epoch: int
    code: str
    message: str
    is_crowded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """How full a step was. ``chains``: distinct chains among its rows."""

    rows: int
    tokens: int
    launches: int
    chains: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What one step yielded, for all requests together.

    ``started``: requests that had their first row in it.
    """

    step: int
    load: StepLoad
    started: tuple[str, ...]
    events: tuple[TokensEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Requests that ended, each exactly once. Follows the `Tokens` of the same step."""

    events: tuple[EndEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The engine's state between two steps.

    ``pages`` by KV group. ``preemptions`` and ``side_loads``: so many ever. ``memory`` is None where the executor or
    the system does not say.
    """

    unfinished: int
    steps: int
    preemptions: int
    side_loads: int
    pages: tuple[PageUsage, ...]
    memory: MemoryUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineError:
    """The engine cannot go on and ends after this. ``code`` is a diagnostic's: ``BC905``."""

    code: str
    message: str


# --- codecs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Codec(Generic[_T]):
    """``pack`` yields what msgpack can write, None: the value itself; ``unpack`` checks."""

    pack: Callable[[Any], object] | None
    unpack: Callable[[object], _T]


def _scalar(kind: type[_T]) -> _Codec[_T]:
    def unpack(value: object) -> _T:
        # `type is`, not isinstance: True is no integer on the wire.
        if type(value) is not kind:
            raise ProtocolError(f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    return _Codec(None, unpack)


def _scalars(*kinds: type) -> _Codec[tuple[Any, ...]]:
    """Encode a flat tuple of scalars, checked at C speed: prompts are long."""
    allowed = frozenset(kinds)

    def unpack(value: object) -> tuple[Any, ...]:
        if type(value) is not tuple or not allowed.issuperset(map(type, value)):
            raise ProtocolError("expected a flat list of " + " or ".join(sorted(k.__name__ for k in kinds)))
        return value

    return _Codec(None, unpack)


def _choice(*allowed: str) -> _Codec[Any]:
    def unpack(value: object) -> str:
        if type(value) is not str or value not in allowed:
            raise ProtocolError(f"expected one of {', '.join(allowed)}")
        return value

    return _Codec(None, unpack)


def _optional(inner: _Codec[_T]) -> _Codec[_T | None]:
    def pack(value: Any) -> object:
        return value if value is None or inner.pack is None else inner.pack(value)

    return _Codec(
        None if inner.pack is None else pack,
        lambda value: None if value is None else inner.unpack(value),
    )


def _many(inner: _Codec[_T]) -> _Codec[tuple[_T, ...]]:
    unpack_one = inner.unpack

    def pack(value: Any) -> object:
        return value if inner.pack is None else [inner.pack(item) for item in value]

    def unpack(value: object) -> tuple[_T, ...]:
        if type(value) is not tuple:
            raise ProtocolError(f"expected a list, found {type(value).__name__}")
        return tuple([unpack_one(item) for item in value])

    return _Codec(None if inner.pack is None else pack, unpack)


def _record(kind: type[_T], **fields: _Codec[Any]) -> _Codec[_T]:
    """Encode a dataclass as the list of its fields, in the order given here: the wire's."""
    names = tuple(fields)
    packers = tuple((name, codec.pack) for name, codec in fields.items())
    unpackers = tuple(codec.unpack for codec in fields.values())
    name = kind.__name__

    def pack(value: Any) -> object:
        return [getattr(value, name) if packer is None else packer(getattr(value, name)) for name, packer in packers]

    def unpack(value: object) -> _T:
        if type(value) is not tuple or len(value) != len(names):
            raise ProtocolError(f"malformed {name}")
        return kind(**{key: read(item) for key, read, item in zip(names, unpackers, value, strict=True)})

    return _Codec(pack, unpack)


_INT, _STR, _FLOAT, _BOOL = _scalar(int), _scalar(str), _scalar(float), _scalar(bool)
_INTS, _STRS, _FLOATS = _scalars(int), _scalars(str), _scalars(float)


def _pair(value: object) -> tuple[int, float]:
    if type(value) is not tuple or len(value) != 2:
        raise ProtocolError("expected a token with a number")
    return _INT.unpack(value[0]), _FLOAT.unpack(value[1])


_STEERING = _record(
    Steering,
    presence_penalty=_FLOAT,
    frequency_penalty=_FLOAT,
    repetition_penalty=_FLOAT,
    logit_bias=_many(_Codec(None, _pair)),
    min_tokens=_INT,
    stop_token_ids=_INTS,
    grammar=_optional(_STR),
)
_SAMPLING = _record(
    Sampling,
    temperature=_FLOAT,
    top_p=_FLOAT,
    top_k=_INT,
    seed=_INT,
    logprobs=_optional(_INT),
    min_p=_FLOAT,
    steering=_optional(_STEERING),
)
_REQUEST = _record(
    Request,
    id=_STR,
    app=_INT,
    chain=_INT,
    isolation_group=_STR,
    prompt=_INTS,
    emitted=_INT,
    max_tokens=_INT,
    stop_token_ids=_INTS,
    sampling=_SAMPLING,
    priority=_INT,
    session=_STR,
    keep_s=_FLOAT,
    prompt_logprobs=_optional(_INT),
    epoch=_INT,
)
_LOGPROBS = _many(_record(TokenLogprob, logprob=_FLOAT, top=_many(_Codec(None, _pair))))
_TOKENS_EVENT = _record(
    TokensEvent, request=_STR, tokens=_INTS, logprobs=_LOGPROBS, prompt_start=_INT, prompt_logprobs=_LOGPROBS
)
_END_EVENT = _record(
    EndEvent,
    request=_STR,
    reason=_choice("stop", "length", "cancelled", "error"),
    message=_STR,
    cached_tokens=_INT,
    scores=_FLOATS,
)
_PAGES = _record(PageUsage, total=_INT, free=_INT, idle=_INT, held=_INT, saved=_INT, evicted=_INT)
_MEMORY = _record(
    MemoryUse,
    runtime_bytes=_INT,
    weights_bytes=_INT,
    sides_bytes=_INT,
    kv_bytes=_INT,
    workspace_bytes=_INT,
    loading_peak_bytes=_INT,
)
_STEP_LOAD = _record(StepLoad, rows=_INT, tokens=_INT, launches=_INT, chains=_INT)

_STEP = _record(
    Step,
    id=_INT,
    epoch=_INT,
    rows=_many(
        _record(
            Row,
            request=_STR,
            chain=_INT,
            tokens=_INTS,
            start=_INT,
            pages=_many(_scalars(int, type(None))),
            samples=_INT,
            sampling=_optional(_SAMPLING),
            output_index=_INT,
            history=_INTS,
            given=_INTS,
            given_top=_INT,
            blocks=_optional(_INTS),
        )
    ),
    launches=_many(_record(Launch, instance=_INT, segment=_INT, micro_batch=_INT, rows=_INTS, blocks=_optional(_INTS))),
    fills=_many(_record(SlotFill, chain=_INT, slot=_INT)),
    parked=_STRS,
)
_FAULT = _record(Fault, scope=_choice("row", "launch", "worker"), message=_STR)
_STEP_RESULT = _record(
    StepResult,
    step=_INT,
    rows=_many(
        _record(RowResult, tokens=_INTS, logprobs=_LOGPROBS, fault=_optional(_FAULT), scores=_FLOATS, given=_LOGPROBS)
    ),
)

Message = (
    Submit | Cancel | StatsQuery | Load | Retire | Drain | Shutdown
    | Ready | Loaded | LoadFailed | Tokens | End | Stats | EngineError
)  # fmt: skip

_MESSAGES: dict[str, tuple[type, _Codec[Any]]] = {
    "submit": (Submit, _record(Submit, request=_REQUEST)),
    "cancel": (Cancel, _record(Cancel, request=_STR)),
    "stats?": (StatsQuery, _record(StatsQuery)),
    "load": (Load, _record(Load, epoch=_INT, plan=_STR, plan_digest=_STR, alone=_BOOL)),
    "retire": (Retire, _record(Retire, epoch=_INT)),
    "drain": (Drain, _record(Drain)),
    "shutdown": (Shutdown, _record(Shutdown)),
    "ready": (Ready, _record(Ready, plan_digest=_STR, capabilities=_STRS)),
    "loaded": (
        Loaded,
        _record(
            Loaded,
            epoch=_INT,
            plan_digest=_STR,
            kept_bytes=_INT,
            loaded_bytes=_INT,
            kv_groups=_INT,
            kv_kept=_INT,
            load_s=_FLOAT,
            longest_turn_s=_FLOAT,
        ),
    ),
    "load failed": (LoadFailed, _record(LoadFailed, epoch=_INT, code=_STR, message=_STR, is_crowded=_BOOL)),
    "tokens": (
        Tokens,
        _record(Tokens, step=_INT, load=_STEP_LOAD, started=_STRS, events=_many(_TOKENS_EVENT)),
    ),
    "end": (End, _record(End, events=_many(_END_EVENT))),
    "stats": (
        Stats,
        _record(
            Stats,
            unfinished=_INT,
            steps=_INT,
            preemptions=_INT,
            side_loads=_INT,
            pages=_many(_PAGES),
            memory=_optional(_MEMORY),
        ),
    ),
    "error": (EngineError, _record(EngineError, code=_STR, message=_STR)),
}
_KINDS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    kind: (name, codec.pack) for name, (kind, codec) in _MESSAGES.items() if codec.pack is not None
}


# --- bytes --------------------------------------------------------------------------------------


def _dump(value: object) -> bytes:
    try:
        payload: bytes = msgpack.packb(value, use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(f"cannot be encoded: {error}") from error
    return payload


def _load(payload: bytes | bytearray | memoryview) -> object:
    try:
        value: object = msgpack.unpackb(payload, use_list=False, raw=False, strict_map_key=True)
    except (
        ValueError,
        TypeError,
        msgpack.UnpackException,
    ) as error:  # truncated, trailing, nested, not UTF-8
        raise ProtocolError(f"not msgpack: {type(error).__name__}") from error
    return value


def encode(message: Message) -> bytes:
    """Return the frame, header included. Raises `ProtocolError` above `MAX_FRAME_BYTES`."""
    kind, pack = _KINDS[type(message)]
    payload = _dump([WIRE_VERSION, kind, *pack(message)])
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"{kind} frame of {len(payload)} bytes exceeds {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(payload)) + payload


def decode(payload: bytes | bytearray | memoryview) -> Message:
    """Return the message of a frame given without its header."""
    value = _load(payload)
    if type(value) is not tuple or len(value) < 2 or type(value[0]) is not int:
        raise ProtocolError("not a frame")
    if value[0] != WIRE_VERSION:
        raise ProtocolError(f"peer speaks version {value[0]} of the wire, this is version {WIRE_VERSION}")
    entry = _MESSAGES.get(value[1]) if type(value[1]) is str else None
    if entry is None:
        raise ProtocolError("unknown kind of frame")
    message: Message = entry[1].unpack(value[2:])
    return message


class FrameBuffer:
    """Cuts a byte stream into messages. ``feed`` returns those that the new bytes complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Add bytes as they came. Raises `ProtocolError`, after which the stream is lost."""
        buffer = self._bytes
        buffer += data
        messages = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            messages.append(decode(bytes(buffer[start + _HEADER.size : end])))
            start = end
        del buffer[:start]
        return messages


def encode_step(step: Step) -> bytes:
    """Return the bytes of a step."""
    assert _STEP.pack is not None
    return _dump([WIRE_VERSION, _STEP.pack(step)])


def decode_step(data: bytes) -> Step:
    """Return the step that `encode_step` wrote."""
    return _STEP.unpack(_versioned(data))


def encode_step_result(result: StepResult) -> bytes:
    """Return the bytes of a step's result."""
    assert _STEP_RESULT.pack is not None
    return _dump([WIRE_VERSION, _STEP_RESULT.pack(result)])


def decode_step_result(data: bytes) -> StepResult:
    """Return the result that `encode_step_result` wrote."""
    return _STEP_RESULT.unpack(_versioned(data))


def _versioned(data: bytes) -> object:
    value = _load(data)
    if type(value) is not tuple or len(value) != 2 or value[0] != WIRE_VERSION:
        raise ProtocolError(f"not data of version {WIRE_VERSION} of the wire")
    return value[1]
