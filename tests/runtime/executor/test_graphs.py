"""Decode steps by recorded graphs, with CUDA's kernels in Triton's interpreter.

A recorder that calls the function again stands for CUDA's: like a graph it sees what it was recorded with, and what of
the step was copied to where that lies. Nothing else of a step can reach it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from blockc.ir import parse_structure
from blockc.ir import recorded as recorded_sizes
from blockc.ir.recorded import Paged, buckets_of, recorded_bytes, shared_bytes
from blockc_runtime.executor import graph_store, graphs, warm
from blockc_runtime.executor import model as executor_model
from blockc_runtime.executor.recorder import CudaRecorder, Outputs, recorder_for
from blockc_runtime.executor.torch_ import StepCounts, TorchExecutor
from blockc_runtime.kv.pool import kv_pools
from blockc_runtime.ops.attention import paged_cuda
from blockc_runtime.ops.branch import Branch
from blockc_runtime.ops.linear import grouped_cuda
from blockc_runtime.ops.table import op_table
from blockc_runtime.step import Launch, Row, SlotFill, Step
from tests.runtime.executor.driver import Driver, Sequence_, new_zoo
from tests.runtime.executor.models import gpt2_spec, llama_spec, make_gpt2, make_llama
from tests.runtime.executor.plans import ModelSpec, Part, PlanBuilder, Term
from tests.runtime.executor.test_sides import ALL, check, make_lora, terms_of
from tests.support.device import DEVICE


class Again:
    """Runs what was recorded. ``recorded`` counts; ``fails`` stands for an operation that cannot be recorded."""

    def __init__(self, fails: bool = False) -> None:
        self.recorded, self.fails = 0, fails

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        outputs = tuple(None if out is None else torch.full_like(out, True) for out in run())

        def replay() -> None:
            for to, new in zip(outputs, run(), strict=True):
                if to is not None:
                    to.copy_(new)

        return replay, outputs  # type: ignore[return-value]


class Counted(Again):
    """CUDA's own, on hardware."""

    def __init__(self) -> None:
        super().__init__()
        self._own = CudaRecorder(torch.device(DEVICE))

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        return self._own.record(run)


def recorder_here() -> Again:
    return Counted() if DEVICE == "cuda" else Again()


@pytest.fixture
def cuda_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_model, "op_table", lambda device: op_table(torch.device("cuda")))
    monkeypatch.setattr(executor_model, "kv_pools", partial(kv_pools, scratch=True))
    if DEVICE == "cpu":  # the interpreter takes its time over each program
        monkeypatch.setattr(paged_cuda, "_PROGRAMS", 1)
        monkeypatch.setattr(grouped_cuda, "_PROGRAMS", 1)


@pytest.mark.skipif(DEVICE != "cuda", reason="a GPU's own recorder")
def test_a_graph_is_recorded_while_threads_take_memory() -> None:
    """As those do that read fine-tunes."""
    device, problems, ended = torch.device(DEVICE), list[Exception](), threading.Event()

    def read() -> None:
        size = 0
        while not ended.is_set():
            size += 1 << 16  # never what is in a cache
            try:
                torch.zeros(size).pin_memory().to(device, non_blocking=True)
            except Exception as error:
                problems.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    values = torch.ones(64, 64, device=device)
    try:
        for _ in range(20):
            replay, (found, _) = CudaRecorder(device).record(lambda: (values @ values, None))
            replay()
            assert found[0, 0].item() == 64
    finally:
        ended.set()
        thread.join()
    assert not problems


@pytest.mark.skipif(DEVICE != "cuda", reason="a GPU's own recorder")
def test_a_recording_that_fails_leaves_others_to_be_made() -> None:
    """What asks for a value ends a recording, and so does a branch that is not joined."""
    device = torch.device(DEVICE)
    recorder, values = CudaRecorder(device), torch.ones(64, 64, device=device)
    stream = torch.cuda.current_stream(device)

    def asks() -> Outputs:
        if torch.cuda.is_current_stream_capturing():
            (values @ values).sum().item()
        return values, None

    def leaves() -> Outputs:
        branch = Branch(device)
        with branch:
            product = values @ values
        if torch.cuda.is_current_stream_capturing():
            raise ValueError("before it has joined")
        branch.join()
        return product, None

    for run in (asks, leaves, asks):
        with pytest.raises((RuntimeError, ValueError)):
            recorder.record(run)
        assert torch.cuda.current_stream(device) == stream
        replay, (found, _) = recorder.record(lambda: (values @ values, None))
        replay()
        assert found[0, 0].item() == 64


def driver_of(builder: PlanBuilder, recorder: Again | None) -> Driver:
    driver = Driver(builder.build(), builder.zoo)
    driver.executor = TorchExecutor(
        driver.plan, builder.zoo, device=DEVICE, logits_tap=driver._tap, recorder=lambda device: recorder
    )
    return driver


def decode(driver: Driver, sequences: list[Sequence_]) -> None:
    """A token of each that is left, and none else."""
    driver.advance([(sequence, 1) for sequence in sequences])


@pytest.fixture(scope="module")
def tuned() -> list[Any]:
    adapters = [(4, ("q_proj", "v_proj", "up_proj")), (16, ("down_proj", "q_proj")), (16, ALL), (8, ("lm_head",))]
    return [make_lora(seed, rank=rank, targets=targets) for seed, (rank, targets) in enumerate(adapters)]


@pytest.mark.usefixtures("cuda_ops")
@pytest.mark.parametrize(
    ("rooms", "decoding", "recorded"),
    [
        ((0, 8, 32, 128), ([0, 1, 2], [0, 1, 2, 3], [1], [3, 4], [2, 4, 1], [1]), 9),
        ((0, 1, 2, 128), ([0, 1, 2], [0, 1, 2, 3]), 4),
    ],
)
def test_rows_come_and_go_and_each_keeps_its_fine_tune(
    tmp_path: Path,
    tuned: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    rooms: tuple[int, ...],
    decoding: tuple[list[int], ...],
    recorded: int,
) -> None:
    """Three segments; banks of three ranks; buckets of 1, 2 and 4 rows, filled up or not, with sides or without.

    Where rooms are small, a bucket has graphs for few fine-tunes and for many.
    """
    monkeypatch.setattr(graphs, "_TILES", rooms)
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama(), cuts=(1, 4)), sides=((), *map(terms_of, tuned)))
    recorder = recorder_here()
    driver = driver_of(builder, recorder)
    chains, prompts = [2, 0, 1, 4, 3], [[7, 8, 9], [1], [5, 6, 7, 8, 9], [4, 2], [3]]
    sequences = [driver.start(*pair) for pair in zip(chains, prompts, strict=True)]
    driver.advance([(s, len(s.tokens)) for s in sequences])
    assert driver.executor.counts.op_by_op == ("a size of steps with prompts that is rare",) * 3
    for members in decoding:
        decode(driver, [sequences[i] for i in members])
        counts = driver.executor.counts
        assert (counts.launches, counts.replays, counts.op_by_op) == (3, 3, ())
    # (bucket 4 and 2 with sides, bucket 1 without) of three segments; of the first segment nobody's side is in use. In
    # the last one a fourth row has one, too, for which a room of two is too small.
    assert recorder.recorded == driver.recorded == recorded
    for sequence, prompt in zip(sequences, prompts, strict=True):
        check(sequence, prompt, tuned)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time over each token."""
    monkeypatch.setattr(recorded_sizes, "_CHUNKED", (8, 12))
    monkeypatch.setattr(recorded_sizes, "_BESIDE", (0, 3, 5))
    monkeypatch.setattr(recorded_sizes, "MOST_CHUNKS", 2)
    monkeypatch.setattr(graphs, "_TILES", (0, 4, 128))


@pytest.mark.usefixtures("cuda_ops", "small_buckets")
def test_prompts_beside_rows_that_decode_are_replayed(tmp_path: Path, tuned: list[Any]) -> None:
    """Prompts whole and in chunks, some of them on fine-tunes; a size that comes again is recorded."""
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama(), cuts=(1, 4)), sides=((), *map(terms_of, tuned)))
    driver = driver_of(builder, recorder_here())
    chains, prompts = [2, 0, 3, 4], [[7, 8, 9], [1, 2], [3, 4, 5, 6, 7, 8, 9, 1], [9, 8, 7, 6, 5]]
    one, two, three, four = sequences = [driver.start(*pair) for pair in zip(chains, prompts, strict=True)]
    steps = [
        [(one, 3), (two, 2)],  # two prompts
        [(one, 1), (three, 5)],  # a row that decodes, and a part of a prompt
        [(two, 1), (three, 3), (four, 4)],  # its end, and a part of another one
        [(one, 1), (three, 1), (four, 1)],  # whose end is a row of one token
    ]
    replays = []
    for work in steps:
        driver.advance(work)
        counts = driver.executor.counts
        assert counts.replays + len(counts.op_by_op) == counts.launches == 3
        assert set(counts.op_by_op) <= {"a size of steps with prompts that is rare"}
        replays.append(counts.replays)
    assert replays[:2] == [0, 0]
    assert replays[2] > 0
    assert replays[3] == 3
    for sequence, prompt in zip(sequences, prompts, strict=True):
        check(sequence, prompt, tuned)


@pytest.mark.usefixtures("cuda_ops", "small_buckets")
def test_what_is_recorded_before_requests_come(
    tmp_path: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of few rows need nothing more, whoever they belong to, and what was written meanwhile is nobody's."""
    monkeypatch.setattr(graphs, "_MOST_WARM", 6)
    monkeypatch.setattr(graphs, "_TILES", (0, 8))
    monkeypatch.setattr(warm, "_TOKENS", 5)
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama(), cuts=(1,)), sides=((), terms_of(tuned[0])))
    driver = driver_of(builder, recorder := recorder_here())
    made = driver.executor.warm_up()
    assert made == recorder.recorded >= 6
    sequences = [driver.start(chain, [5 + chain]) for chain in (0, 1)]
    for members in (sequences[:1], sequences, sequences[1:]):
        decode(driver, members)
        assert driver.executor.counts.replays == 2
    assert recorder.recorded == made
    for sequence in sequences:
        check(sequence, sequence.tokens[:1], tuned)


@pytest.mark.usefixtures("cuda_ops", "small_buckets")
def test_what_a_step_with_prompts_may_ask_of_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of three tokens of a prompt are more than there is room for; three prompts, and thirteen tokens, too."""
    monkeypatch.setattr(graph_store, "_AGAIN", 1)
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama(layers=1)))
    driver = driver_of(builder, recorder_here())
    reasons = []
    for counts, samples in (((6,), 0), ((6,), 2), ((6,), 3), ((2,) * 3, 1), ((13,), 1), ((4, 3), 1)):
        rows = [driver.row(driver.start(0, range(1, 1 + count)), count, samples=samples) for count in counts]
        assert all(result.fault is None for result in driver.step(rows))
        reasons.append(driver.executor.counts.op_by_op)
    assert reasons == [
        (),
        (),
        ("more logits than are recorded",),
        ("more tokens of prompts than are recorded",),
        ("more tokens of prompts than are recorded",),
        (),
    ]


@pytest.mark.usefixtures("cuda_ops", "small_buckets")
def test_fine_tunes_that_take_turns_in_a_slot(tmp_path: Path) -> None:
    """One graph, one slot: what is in the slot when it is replayed counts, not when it was recorded."""
    tuned = [make_lora(seed, rank=8, targets=ALL) for seed in range(2)]
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama()), sides=((), *map(terms_of, tuned)))
    plan = builder.build()
    limited = plan.model_copy(
        update={
            "chains": tuple(chain.model_copy(update={"bank": 0 if chain.sides else None}) for chain in plan.chains),
            "instances": (plan.instances[0].model_copy(update={"side_slots": {0: 1}}),),
        }
    )
    recorder = recorder_here()
    driver = Driver(limited, builder.zoo)
    driver.executor = TorchExecutor(
        limited, builder.zoo, device=DEVICE, logits_tap=driver._tap, recorder=lambda device: recorder
    )
    prompts = [[7, 8, 9], [1, 2]]
    sequences = [driver.start(chain, prompt) for chain, prompt in enumerate(prompts, 1)]
    (refused,) = driver.step([driver.row(sequences[0], 1)])
    assert refused.fault is not None
    assert refused.fault.message == "its fine-tune is in no slot"
    for turn in (0, 1, 0, 1):
        driver.fills = (SlotFill(chain=turn + 1, slot=0),)
        if not sequences[turn].cached:
            driver.advance([(sequences[turn], len(prompts[turn]))])
        decode(driver, [sequences[turn]])
        assert driver.executor.counts.replays == 1
    assert recorder.recorded == 2  # of decode steps, and of prompts when the second came
    for sequence, prompt in zip(sequences, prompts, strict=True):
        check(sequence, prompt, tuned)


@pytest.mark.usefixtures("cuda_ops")
@pytest.mark.parametrize(("make", "to_spec"), [(make_llama, llama_spec), (make_gpt2, gpt2_spec)])
def test_equals_the_model_alone(tmp_path: Path, make: Callable[[], Any], to_spec: Callable[..., ModelSpec]) -> None:
    model = make()
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(to_spec(model))
    driver = driver_of(builder, recorder_here())
    prompts = [[1, 2, 3, 4, 5, 6, 7], [9], [11, 12, 13]]
    sequences = [driver.start(0, prompt) for prompt in prompts]
    driver.generate(sequences, 3)
    assert driver.executor.counts.replays == 1
    for sequence, prompt in zip(sequences, prompts, strict=True):
        with torch.no_grad():
            wanted = model(torch.tensor([sequence.tokens])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(sequence.logits), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("cuda_ops")
def test_rows_that_fill_up_a_bucket_touch_nobodys_pages(tmp_path: Path) -> None:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=20)
    builder.add(llama_spec(make_llama(layers=1)))
    driver = driver_of(builder, recorder_here())
    sequences = [driver.start(0, [3 + i, 4, 5]) for i in range(3)]
    driver.advance([(s, 3) for s in sequences])
    model = driver.executor._model
    assert model is not None
    (pool,) = model.pools
    before = pool.memory[0].clone()
    decode(driver, sequences)  # of a bucket of 4
    slots = {s.pages[0][3 // 4] * 4 + 3 % 4 for s in sequences}  # type: ignore[operator]
    changed = (pool.memory[0] != before).flatten(3).any(-1).any(0).any(0).nonzero()[:, 0].tolist()
    assert set(changed) == slots | {pool.scratch * pool.page_tokens}
    assert pool.scratch == pool.pages


def in_parts(driver: Driver, rows: list[Row], cuts: tuple[int, ...], parked: tuple[str, ...] = ()) -> StepCounts:
    """One step whose rows pass runs of the one segment's blocks: each run with whoever passes it."""
    launches = [
        Launch(instance=0, segment=0, micro_batch=0, rows=members, blocks=run)
        for run in pairwise(cuts)
        if (members := tuple(i for i, row in enumerate(rows) if row.blocks in (None, run)))
    ]
    driver.executor.submit(Step(id=0, epoch=0, rows=tuple(rows), launches=tuple(launches), parked=parked))
    assert all(result.fault is None for result in driver.executor.collect().rows)
    return driver.executor.counts


@pytest.mark.usefixtures("cuda_ops")
def test_rows_beside_a_prompt_that_goes_in_parts_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of blocks that only decode rows pass are graphs, and the one where the prompt is goes op by op."""
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama()))
    recorder, found = recorder_here(), []
    for own in (recorder, None):
        driver = driver_of(builder, own)
        last = driver.plan.segments[0].count
        runs = ((0, 2), (2, 5), (5, last))
        ones, prompt = [driver.start(0, tokens) for tokens in ([7, 8, 9], [4, 2])], driver.start(0, range(3, 12))
        driver.advance([(one, len(one.tokens)) for one in ones])
        logits, said = [], []
        for blocks in runs:
            rows = [driver.row(one, 1, samples=1) for one in ones]
            reaches = blocks[1] == last
            row = driver.row(prompt, len(prompt.tokens), samples=int(reaches))
            rows.append(replace(row, request="prompt", blocks=blocks))
            parked = () if reaches else ("prompt",)
            said.append(in_parts(driver, rows, (0, 2, 5, last), parked))
            logits += [driver.tapped[i] for i in sorted(driver.tapped)]
            driver.tapped = {}
            for one in ones:
                one.tokens.append(5)
                one.cached += 1
        found.append((said, logits))
    (said, ours), (_, wanted) = found
    assert [(counts.replays, counts.op_by_op) for counts in said] == [(2, ("prompts that stop between blocks",))] * 3
    assert recorder.recorded == 3
    assert len(ours) == len(wanted) == 7
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    # A bound keeps those that were replayed last.
    monkeypatch.setattr(graph_store, "_MOST_PARTS", 1)
    driver = driver_of(builder, recorder := recorder_here())
    one = driver.start(0, [7])
    for _ in range(2):
        in_parts(driver, [driver.row(one, 1, samples=1)], (0, 2, last))
    assert recorder.recorded == 4


@pytest.mark.usefixtures("cuda_ops")
def test_what_graphs_share_is_what_a_plan_counts(tmp_path: Path) -> None:
    """And a pool's page for rows that only fill up a bucket: the workspace of CUDA's plans has both."""
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=20)
    builder.add(llama_spec(make_llama(layers=1)))
    driver = driver_of(builder, recorder_here())
    last, plan = driver.plan.segments[0].count, driver.plan
    for count in (1, 3):  # of two buckets, by parts and at once
        rows = [driver.row(driver.start(0, [i]), 1, samples=1) for i in range(count)]
        in_parts(driver, rows, (0, 1, last))
        driver.step(rows)
    own, model = driver.executor._graphs, driver.executor._model
    assert own is not None
    assert model is not None
    (limits,), (group,) = model.limits, plan.kv_groups
    paged = Paged(positions=limits.positions, page_tokens=group.page_tokens, window=group.window)
    most = {"max_rows": plan.batching.max_rows, "max_tokens": plan.batching.max_batched_tokens}
    (path,) = plan.paths.values()
    structures = [parse_structure(plan.structures[plan.blocks[b].structure]) for b in path.blocks]
    shared = shared_bytes(structures, buckets=buckets_of(**most), groups=[paged], segments=1)
    assert own.nbytes == shared
    assert shared < recorded_bytes(structures, **most, groups=[paged], segments=1)
    (pool,) = model.pools
    assert pool.nbytes == (pool.pages + 1) * group.page_bytes
    assert pool.scratch_bytes == group.page_bytes


@pytest.mark.usefixtures("cuda_ops")
def test_what_cannot_be_recorded_is_run_op_by_op_and_said(tmp_path: Path) -> None:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama(layers=1)))
    driver = driver_of(builder, Again(fails=True))
    sequence = driver.start(0, [5, 6])
    driver.generate([sequence], 3)
    (why,) = driver.executor.counts.op_by_op
    assert "stream is capturing" in why
    with torch.no_grad():
        wanted = make_llama(layers=1)(torch.tensor([sequence.tokens])).logits[0, 1:-1]
    torch.testing.assert_close(torch.stack(sequence.logits), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("cuda_ops", "small_buckets")
def test_decode_steps_are_recorded_where_prompts_cannot_be(tmp_path: Path) -> None:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama(layers=1)))
    driver = driver_of(builder, recorder := recorder_here())
    recorder.fails = True
    sequences = [driver.start(0, [5 + i, 6]) for i in range(3)]
    for sequence in sequences[:2]:
        driver.advance([(sequence, 2)])
    recorder.fails = False
    driver.advance([(sequences[2], 2)])
    (why,) = driver.executor.counts.op_by_op
    assert "stream is capturing" in why
    decode(driver, sequences)
    assert (driver.executor.counts.replays, recorder.recorded) == (1, 1)


@pytest.mark.usefixtures("cuda_ops")
def test_other_kinds_of_fine_tune_are_run_op_by_op(tmp_path: Path) -> None:
    """And rows beside them in their step, but not the steps without them. Scales and biases are replayed."""
    made = torch.Generator().manual_seed(0)

    def at_q(codec: str, **tensors: torch.Tensor) -> Part:
        return Part(occurrence=1, site="self_attn.q_proj", kind="linear", codec=codec, tensors=tensors)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made)

    low = Term(occurrence=1, site="self_attn.q_proj", a=random(4, 64), b=random(64, 4), scale=0.5)
    scaled = (at_q("out_scale", value=random(64)), at_q("bias", value=random(64)), low)
    inputs = Part(occurrence=2, site="mlp.down_proj", kind="linear", codec="in_scale", tensors={"value": random(96)})
    rows = at_q("rows", index=torch.tensor([3, 9]), weight=random(2, 64))
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama(layers=1)), sides=((), (rows,), scaled, (inputs,)))
    driver, plain = driver_of(builder, recorder_here()), driver_of(builder, None)
    results = []
    for own in (driver, plain):
        sequences = [own.start(chain, [5, 6, 7]) for chain in range(4)]
        own.advance([(s, 3) for s in sequences])
        decode(own, sequences)
        said = own.executor.counts
        decode(own, [sequences[0], *sequences[2:]])
        results.append((said, own.executor.counts, [s.logits for s in sequences]))
    (mixed, alone, ours), (_, none, wanted) = results
    assert mixed.op_by_op == ("fine-tunes of kinds that the host has to sort",)
    assert (alone.replays, alone.op_by_op) == (1, ())
    assert (none.replays, none.op_by_op) == (0, ())
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("cuda_ops")
def test_a_row_that_is_not_finite_faults_alone(tmp_path: Path) -> None:
    model = make_llama(layers=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[13] = float("nan")
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(model))
    driver = driver_of(builder, recorder_here())
    rows = [driver.row(driver.start(0, [token]), 1, samples=1) for token in (3, 13, 5)]
    results = driver.step(rows)
    assert driver.executor.counts.replays == 1
    assert [result.fault is None for result in results] == [True, False, True]


@pytest.mark.usefixtures("cuda_ops")
def test_rows_of_one_token_that_draw_nothing(tmp_path: Path) -> None:
    """The last prompt token but one, by itself: its row yields no logits to the step."""
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama(layers=1)))
    driver = driver_of(builder, recorder_here())
    one, other = driver.start(0, [5, 6]), driver.start(0, [7])
    results = driver.step([driver.row(one, 1), driver.row(other, 1, samples=1)])
    assert driver.executor.counts.replays == 1
    assert [len(result.tokens) for result in results] == [0, 1]
    with torch.no_grad():
        wanted = make_llama(layers=1)(torch.tensor([[7]])).logits[0]
    torch.testing.assert_close(driver.tapped[1], wanted, rtol=1e-5, atol=1e-4)


def test_a_cpu_has_none() -> None:
    assert recorder_for(torch.device("cpu")) is None
