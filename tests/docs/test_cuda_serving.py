"""The benchmark of serving on a GPU: what it makes is what transformers and PEFT read, and what it counts is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.cuda_serving import CASES, Load, grown, samples, steps, times
from benchmarks.fleet import SHAPES, spec_text, write_base, write_lora
from benchmarks.streams import Answered, Asked, streamed
from blockc.spec import load
from blockc_runtime.counts import Counts
from blockc_runtime.server.metrics import EngineStats, Metrics
from blockc_runtime.wire.messages import Stats, StepLoad

TINY = SHAPES["tiny"]
EVENT = b'data: {"choices":[{"index":0,"text":"w%d ","finish_reason":%s}]}\n\n'
END = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("tied", [False, True])
def test_a_base_and_its_loras_are_read_as_they_were_written(tied: bool, tmp_path: Path) -> None:
    write_base(tmp_path / "base", TINY, tied=tied)
    write_lora(tmp_path / "a", TINY, 8)
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    tuned = PeftModel.from_pretrained(model, tmp_path / "a").state_dict()
    written = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert len(written) == 2 * 7 * TINY.layers
    for name, tensor in written.items():
        assert torch.equal(tuned[name.replace(".weight", ".default.weight")].bfloat16(), tensor)


def test_counters_are_the_servers() -> None:
    metrics = Metrics()
    metrics.observe_step(StepLoad(rows=9, tokens=9, launches=1, chains=1))
    before = samples(metrics.text(None).decode())
    for rows in (4, 8):
        metrics.observe_step(StepLoad(rows=rows, tokens=rows, launches=2, chains=1))
    counts = Counts(overlapped=1, waits={"pages": 3}, replays=5, op_by_op={"rows of several tokens": 2}, recorded=1)
    stats = Stats(unfinished=0, steps=0, pages=(), counts=counts)
    metrics.observe_stats([EngineStats(device="box/d0", stats=stats)])
    found = steps(grown(before, samples(metrics.text(None).decode())), wall_s=0.5)
    assert (found["steps"], found["rows_a_step"], found["step_ms"], found["launches"]) == (2, 6.0, 250.0, 4)
    assert (found["overlapped"], found["waits"]) == (1, {"pages": 3.0})
    assert (found["recorded"], found["recording_s"]) == (1, 0.0)
    assert (found["replayed"], found["op_by_op"]) == (5, {"rows of several tokens": 2.0})


def test_times_are_of_the_wall_and_of_each_request() -> None:
    answered = [
        Answered(sent_s=1.0, first_s=1.5, last_s=3.5, tokens=5, reads=5),
        Answered(sent_s=1.0, first_s=2.0, last_s=5.0, tokens=5, reads=5),
    ]
    found = times(answered)
    assert (found["tok_s"], found["ttft_p50_s"], found["ttft_p95_s"]) == (2.5, 0.75, 1.0)
    assert (found["tpot_p50_ms"], found["all_decode_ms"]) == (625.0, 750.0)


def test_requests_of_turns_have_other_prompts_of_one_length() -> None:
    own_load = Load(vocab=100, prompt=6, output=2, clients=1)
    prompts = [own.fields["prompt"] for turn in "ab" for own in own_load.asked(CASES[1], turn)]
    assert len({tuple(own) for own in prompts}) == len(prompts) == 64
    assert {len(own) for own in prompts} == {6}
    chats = own_load.asked(next(case for case in CASES if case.chat), "a")
    assert {len(own.fields["messages"][0]["content"].split()) for own in chats} == {6}


@contextmanager
def answering(parts: list[bytes]) -> Iterator[str]:
    """A server that gives everybody the same answer, in parts."""

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                for part in parts:
                    connection.sendall(part)

    with socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_streams_are_read_to_their_ends_from_several_processes() -> None:
    whole = (
        b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(EVENT % (n, b'"length"' if n == 2 else b"null") for n in range(3)) + END
    )
    with answering([whole[:70], whole[70:-9], whole[-9:]]) as url:
        answered = streamed(url, [Asked(path="/v1/completions", fields={"prompt": [1]})] * 3, 2)
    assert [own.tokens for own in answered] == [3, 3, 3]
    assert all(own.sent_s < own.first_s <= own.last_s for own in answered)


def test_a_refusal_is_told() -> None:
    with (
        answering([b"HTTP/1.1 404 Not Found\r\n\r\nno such model"]) as url,
        pytest.raises(RuntimeError, match="no such model"),
    ):
        streamed(url, [Asked(path="/v1/completions", fields={})], 1)


def test_the_spec_is_one(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    device = "cuda { memory = 81000MiB  reserve = 9000MiB }"
    (tmp_path / "fleet.blk").write_text(spec_text(2, device=device, batching="max_num_seqs = 128"))
    deployment = load(tmp_path / "fleet.blk", environ={}).require()
    assert [own.kind for own in deployment.cluster.devices] == ["cuda"]
    assert deployment.policy.max_rows == 128
    assert len(deployment.fine_tunes) == 2
