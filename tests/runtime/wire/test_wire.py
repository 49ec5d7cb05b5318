"""Frames survive the trip, and nothing else does."""

from __future__ import annotations

import math
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc_runtime.counts import Counts
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.memory import MemoryUse
from blockc_runtime.request import EndEvent, Request, Sampling, Steering, TokenLogprob, TokensEvent
from blockc_runtime.step import Fault, Feed, Launch, Launched, Row, RowResult, Step, StepResult
from blockc_runtime.wire import codecs, frames, messages

ints = st.integers(-(2**63), 2**64 - 1)
ids = st.integers(0, 2**31)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
floats = st.floats(allow_nan=False)
token_tuples = st.lists(ids, max_size=8).map(tuple)


memories = st.builds(
    MemoryUse, runtime_bytes=ids, weights_bytes=ids, sides_bytes=ids, kv_bytes=ids, workspace_bytes=ints,
    loading_peak_bytes=ids, blocks_bytes=ids,
)  # fmt: skip


def many(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(strategy, max_size=4).map(tuple)


steerings = st.builds(
    Steering, presence_penalty=floats, frequency_penalty=floats, repetition_penalty=floats,
    logit_bias=many(st.tuples(ids, floats)), min_tokens=ids, stop_token_ids=token_tuples, grammar=st.none() | texts,
)  # fmt: skip
samplings = st.builds(
    Sampling, temperature=floats, top_p=floats, top_k=ids, seed=ints, logprobs=st.none() | ids, min_p=floats,
    steering=st.none() | steerings,
)  # fmt: skip
requests = st.builds(
    Request, id=texts, app=ids, chain=ids, isolation_group=texts, prompt=token_tuples, emitted=ids,
    max_tokens=ids, stop_token_ids=token_tuples, sampling=samplings, priority=ids, session=texts, keep_s=floats,
    prompt_logprobs=st.none() | ids, epoch=ids,
)  # fmt: skip
logprobs = many(st.builds(TokenLogprob, logprob=floats, top=many(st.tuples(ids, floats))))
token_events = st.builds(
    TokensEvent, request=texts, tokens=token_tuples, logprobs=logprobs, prompt_start=ids, prompt_logprobs=logprobs
)
end_events = st.builds(
    EndEvent, request=texts, reason=st.sampled_from(["stop", "length", "cancelled", "error"]),
    message=texts, cached_tokens=ids, scores=st.lists(floats, max_size=4).map(tuple),
)  # fmt: skip
any_message = st.one_of(
    st.builds(messages.Submit, request=requests),
    st.builds(messages.Cancel, request=texts, is_done=st.booleans()),
    st.just(messages.StatsQuery()),
    st.builds(messages.Load, epoch=ids, plan=texts, plan_digest=texts, alone=st.booleans()),
    st.builds(messages.Retire, epoch=ids),
    st.just(messages.Drain()),
    st.just(messages.Shutdown()),
    st.builds(messages.Ready, plan_digest=texts, capabilities=many(texts)),
    st.builds(
        messages.Loaded, epoch=ids, plan_digest=texts, kept_bytes=ids, loaded_bytes=ids, kv_groups=ids, kv_kept=ids,
        load_s=floats, longest_turn_s=floats,
    ),
    st.builds(messages.LoadFailed, epoch=ids, code=texts, message=texts, is_crowded=st.booleans()),
    st.builds(
        messages.Tokens, step=ids,
        load=st.builds(messages.StepLoad, rows=ids, tokens=ids, launches=ids, chains=ids),
        started=many(texts), events=many(token_events),
    ),
    st.builds(messages.End, events=many(end_events)),
    st.builds(
        messages.Stats, unfinished=ids, steps=ids,
        pages=many(st.builds(PageUsage, total=ids, free=ids, idle=ids, held=ids, saved=ids, evicted=ids)),
        counts=st.builds(
            Counts, preemptions=ids, side_loads=ids, block_loads=ids, block_evictions=ids, residency_wait_s=floats,
            overlapped=ids, waits=st.dictionaries(texts, ids), replays=ids, op_by_op=st.dictionaries(texts, ids),
            recorded=ids, recording_s=floats,
        ),
        memory=st.none() | memories,
        sessions=ids, sessions_lost=ids,
    ),
    st.builds(messages.EngineError, code=texts, message=texts),
)  # fmt: skip
faults = st.builds(Fault, scope=st.sampled_from(["row", "launch", "worker"]), message=texts)
steps = st.builds(
    Step, id=ids, epoch=ids,
    rows=many(
        st.builds(
            Row, request=texts, chain=ids, tokens=token_tuples, start=ids,
            pages=many(many(st.none() | ids)), samples=ids, sampling=st.none() | samplings,
            output_index=ids, history=token_tuples, given=token_tuples, given_top=ids,
            fed=st.none() | st.builds(Feed, step=ids, row=ids),
        )
    ),
    launches=many(
        st.builds(Launch, instance=ids, segment=ids, micro_batch=ids, rows=token_tuples)
    ),
)  # fmt: skip
results = st.builds(
    StepResult, step=ids,
    launched=st.builds(Launched, replays=ids, op_by_op=many(texts), recorded=ids, recording_s=floats),
    rows=many(
        st.builds(
            RowResult, tokens=token_tuples, logprobs=logprobs, fault=st.none() | faults,
            scores=st.lists(floats, max_size=4).map(tuple), given=logprobs,
        )
    ),
)  # fmt: skip


@given(st.lists(any_message, max_size=4), st.integers(1, 50))
def test_messages_survive_however_the_stream_is_cut(sent, piece):
    stream = b"".join(frames.encode(message) for message in sent)
    buffer = frames.FrameBuffer()
    received = []
    for start in range(0, len(stream), piece):
        received += buffer.feed(stream[start : start + piece])
    assert received == sent


@given(steps)
def test_steps_survive(step):
    assert frames.decode_step(frames.encode_step(step)) == step


@given(results)
def test_step_results_survive(result):
    assert frames.decode_step_result(frames.encode_step_result(result)) == result


@given(st.binary(max_size=64))
def test_random_bytes_are_a_protocol_error(data):
    for decode in (frames.decode, frames.decode_step, frames.decode_step_result):
        with pytest.raises(codecs.ProtocolError):
            decode(data)


json_like = st.recursive(
    st.none() | st.booleans() | ints | floats | texts | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@given(any_message, st.data())
def test_a_changed_field_is_refused_or_another_message(message, data):
    frame = msgpack.unpackb(frames.encode(message)[4:])
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] = data.draw(json_like)
    try:
        decoded = frames.decode(msgpack.packb(frame))
    except codecs.ProtocolError:
        return
    assert frames.decode(frames.encode(decoded)[4:]) == decoded


@given(any_message, st.data())
def test_a_truncated_frame_is_refused(message, data):
    payload = frames.encode(message)[4:]
    with pytest.raises(codecs.ProtocolError):
        frames.decode(payload[: data.draw(st.integers(0, len(payload) - 1))])


@pytest.mark.parametrize(
    "frame",
    [
        [frames.WIRE_VERSION - 1, "drain"],
        ["1", "drain"],
        [True, "drain"],
        [frames.WIRE_VERSION, "unload"],
        [frames.WIRE_VERSION, b"drain"],
        [frames.WIRE_VERSION, ["drain"]],
        [frames.WIRE_VERSION, "drain", 0],
        [frames.WIRE_VERSION, "stats", 0, 0, [], [0, 0, 0, 0, 0.0, 0, [["a", 1], ["a", 2]], 0, [], 0, 0.0], None, 0, 0],
        [frames.WIRE_VERSION, "stats", 0, 0, [], [0, 0, 0, 0, 0.0, 0, [["pages"]], 0, [], 0, 0.0], None, 0, 0],
        [frames.WIRE_VERSION, "cancel"],
        [frames.WIRE_VERSION, "cancel", 7, False],
        [frames.WIRE_VERSION, "cancel", "r", 1],
        [frames.WIRE_VERSION, "stats", 1, 1, 0, 0, [[1, 1, 0, 0, 0, "x"]]],
        [frames.WIRE_VERSION, "stats", 1, True, 0, 0, []],
        [frames.WIRE_VERSION, "end", [["r", "finished", "", 0, []]]],
        [1],
        [],
        {"version": 1},
        None,
    ],
)
def test_malformed_frames_are_refused(frame):
    with pytest.raises(codecs.ProtocolError):
        frames.decode(msgpack.packb(frame))


def test_version_mismatch_says_both_versions():
    with pytest.raises(codecs.ProtocolError, match=f"version 99 of the wire, this is version {frames.WIRE_VERSION}"):
        frames.decode(msgpack.packb([99, "drain"]))


def test_deep_nesting_is_refused():
    with pytest.raises(codecs.ProtocolError):
        frames.decode(b"\x91" * 100_000)


def test_oversized_frames_are_refused_before_they_are_buffered():
    buffer = frames.FrameBuffer()
    with pytest.raises(codecs.ProtocolError):
        buffer.feed(struct.pack(">I", frames.MAX_FRAME_BYTES + 1))


def test_what_cannot_be_written_is_refused(monkeypatch):
    with pytest.raises(codecs.ProtocolError):
        frames.encode(messages.Cancel(request="\ud800"))
    sampling = Sampling(seed=2**70)
    with pytest.raises(codecs.ProtocolError):
        frames.encode(
            messages.Submit(
                request=Request(
                    id="r", app=0, chain=0, isolation_group="", prompt=(1,), emitted=0,
                    max_tokens=1, stop_token_ids=(), sampling=sampling,
                )
            )
        )  # fmt: skip
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(codecs.ProtocolError, match="exceeds 100"):
        frames.encode(messages.Cancel(request="x" * 200))


def test_infinite_log_probabilities_survive():
    event = TokensEvent(request="r", tokens=(1,), logprobs=(TokenLogprob(logprob=-math.inf, top=()),))
    frame = messages.Tokens(
        step=0, load=messages.StepLoad(rows=1, tokens=1, launches=1, chains=1), started=(),
        events=(event,),
    )  # fmt: skip
    assert frames.decode(frames.encode(frame)[4:]) == frame
