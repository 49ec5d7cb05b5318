"""What server and engine say to each other over their socket, and steps as bytes."""

from __future__ import annotations

from blockc_runtime.wire.codecs import ProtocolError
from blockc_runtime.wire.frames import (
    MAX_FRAME_BYTES,
    WIRE_VERSION,
    FrameBuffer,
    decode,
    decode_step,
    decode_step_result,
    encode,
    encode_step,
    encode_step_result,
)  # fmt: skip
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

__all__ = [
    "MAX_FRAME_BYTES",
    "WIRE_VERSION",
    "Cancel",
    "Drain",
    "End",
    "EngineError",
    "FrameBuffer",
    "Load",
    "LoadFailed",
    "Loaded",
    "Message",
    "ProtocolError",
    "Ready",
    "Retire",
    "Shutdown",
    "Stats",
    "StatsQuery",
    "StepLoad",
    "Submit",
    "Tokens",
    "decode",
    "decode_step",
    "decode_step_result",
    "encode",
    "encode_step",
    "encode_step_result",
]
