"""Frames between server and engine, and the byte form of `Step` and `StepResult`.

In: messages, steps and their results. Out: length-prefixed msgpack of plain values, and back. A frame is a big-endian
32-bit length followed by ``[WIRE_VERSION, kind, fields...]``. Invariant: whatever bytes arrive, decoding yields a
well-typed message or raises `ProtocolError`; nothing is unpickled, no frame above `MAX_FRAME_BYTES` is buffered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgpack

from blockc_runtime.counts import Counts
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.memory import MemoryUse
from blockc_runtime.request import EndEvent, Request, Sampling, Steering, TokenLogprob, TokensEvent
from blockc_runtime.step import Fault, Feed, Launch, Launched, Row, RowResult, SlotFill, Step, StepResult
from blockc_runtime.wire.codecs import Codec, ProtocolError, choice, many, optional, record, scalar, scalars, table
from blockc_runtime.wire.messages import (
    Cancel,
    Drain,
    End,
    EngineError,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Ready,
    Retire,
    Shutdown,
    Stats,
    StatsQuery,
    StepLoad,
    Submit,
    Tokens,
)  # fmt: skip

WIRE_VERSION = 10
MAX_FRAME_BYTES = 64 * 1024 * 1024

_HEADER = struct.Struct(">I")

_INT, _STR, _FLOAT, _BOOL = scalar(int), scalar(str), scalar(float), scalar(bool)
_INTS, _STRS, _FLOATS = scalars(int), scalars(str), scalars(float)


def _pair(value: object) -> tuple[int, float]:
    if type(value) is not tuple or len(value) != 2:
        raise ProtocolError("expected a token with a number")
    return _INT.unpack(value[0]), _FLOAT.unpack(value[1])


_STEERING = record(
    Steering,
    presence_penalty=_FLOAT,
    frequency_penalty=_FLOAT,
    repetition_penalty=_FLOAT,
    logit_bias=many(Codec(None, _pair)),
    min_tokens=_INT,
    stop_token_ids=_INTS,
    grammar=optional(_STR),
)
_SAMPLING = record(
    Sampling,
    temperature=_FLOAT,
    top_p=_FLOAT,
    top_k=_INT,
    seed=_INT,
    logprobs=optional(_INT),
    min_p=_FLOAT,
    steering=optional(_STEERING),
)
_REQUEST = record(
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
    prompt_logprobs=optional(_INT),
    epoch=_INT,
)
_LOGPROBS = many(record(TokenLogprob, logprob=_FLOAT, top=many(Codec(None, _pair))))
_TOKENS_EVENT = record(
    TokensEvent, request=_STR, tokens=_INTS, logprobs=_LOGPROBS, prompt_start=_INT, prompt_logprobs=_LOGPROBS
)
_END_EVENT = record(
    EndEvent,
    request=_STR,
    reason=choice("stop", "length", "cancelled", "error"),
    message=_STR,
    cached_tokens=_INT,
    scores=_FLOATS,
)
_PAGES = record(PageUsage, total=_INT, free=_INT, idle=_INT, held=_INT, saved=_INT, evicted=_INT)
_MEMORY = record(
    MemoryUse,
    runtime_bytes=_INT,
    weights_bytes=_INT,
    sides_bytes=_INT,
    kv_bytes=_INT,
    workspace_bytes=_INT,
    loading_peak_bytes=_INT,
    blocks_bytes=_INT,
)
_COUNTS = record(
    Counts,
    preemptions=_INT,
    side_loads=_INT,
    block_loads=_INT,
    block_evictions=_INT,
    residency_wait_s=_FLOAT,
    overlapped=_INT,
    waits=table(_STR, _INT),
    replays=_INT,
    op_by_op=table(_STR, _INT),
    recorded=_INT,
    recording_s=_FLOAT,
)
_STEP_LOAD = record(StepLoad, rows=_INT, tokens=_INT, launches=_INT, chains=_INT)

_STEP = record(
    Step,
    id=_INT,
    epoch=_INT,
    rows=many(
        record(
            Row,
            request=_STR,
            chain=_INT,
            tokens=_INTS,
            start=_INT,
            pages=many(scalars(int, type(None))),
            samples=_INT,
            sampling=optional(_SAMPLING),
            output_index=_INT,
            history=_INTS,
            given=_INTS,
            given_top=_INT,
            blocks=optional(_INTS),
            each=_BOOL,
            fed=optional(record(Feed, step=_INT, row=_INT)),
        )
    ),
    launches=many(record(Launch, instance=_INT, segment=_INT, micro_batch=_INT, rows=_INTS, blocks=optional(_INTS))),
    fills=many(record(SlotFill, chain=_INT, slot=_INT)),
    parked=_STRS,
)
_FAULT = record(Fault, scope=choice("row", "launch", "worker"), message=_STR)
_STEP_RESULT = record(
    StepResult,
    step=_INT,
    rows=many(
        record(RowResult, tokens=_INTS, logprobs=_LOGPROBS, fault=optional(_FAULT), scores=_FLOATS, given=_LOGPROBS)
    ),
    launched=record(Launched, replays=_INT, op_by_op=many(_STR), recorded=_INT, recording_s=_FLOAT),
)

_MESSAGES: dict[str, tuple[type, Codec[Any]]] = {
    "submit": (Submit, record(Submit, request=_REQUEST)),
    "cancel": (Cancel, record(Cancel, request=_STR, is_done=_BOOL)),
    "stats?": (StatsQuery, record(StatsQuery)),
    "load": (Load, record(Load, epoch=_INT, plan=_STR, plan_digest=_STR, alone=_BOOL)),
    "retire": (Retire, record(Retire, epoch=_INT)),
    "drain": (Drain, record(Drain)),
    "shutdown": (Shutdown, record(Shutdown)),
    "ready": (Ready, record(Ready, plan_digest=_STR, capabilities=_STRS)),
    "loaded": (
        Loaded,
        record(
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
    "load failed": (LoadFailed, record(LoadFailed, epoch=_INT, code=_STR, message=_STR, is_crowded=_BOOL)),
    "tokens": (
        Tokens,
        record(Tokens, step=_INT, load=_STEP_LOAD, started=_STRS, events=many(_TOKENS_EVENT)),
    ),
    "end": (End, record(End, events=many(_END_EVENT))),
    "stats": (
        Stats,
        record(
            Stats,
            unfinished=_INT,
            steps=_INT,
            pages=many(_PAGES),
            counts=_COUNTS,
            memory=optional(_MEMORY),
            sessions=_INT,
            sessions_lost=_INT,
        ),
    ),
    "error": (EngineError, record(EngineError, code=_STR, message=_STR)),
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
