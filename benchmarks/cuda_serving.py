"""Requests over HTTP to a Llama shape on a GPU: output tokens a second, times to tokens, what steps and processes took.

    python -m benchmarks.cuda_serving [--shape 1b] [--seconds 150] [--json FILE]

Makes a checkpoint of random weights and 16 LoRAs of ranks 8, 16 and 64, compiles them, serves them with
``blockc serve`` and asks from processes of their own: all requests of a case at once, and once more beforehand to warm
up. What comes first after a start is told apart: kernels are compiled and decode steps are recorded when they are first
needed. The limit is that of `benchmarks.cuda_step`, for the prompts and for each of the decode steps. What fails is
told beside what does not. Without CUDA it is the same on the CPU, to be tried with ``--shape tiny``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda_step import DEVICE, RANKS, limit_ms, rates
from benchmarks.cuda_step import Shape as StepShape
from benchmarks.fleet import SHAPES, Shape, spec_text, write_base, write_lora
from benchmarks.rates import origin
from benchmarks.server_overhead import cpu_s, cpu_s_with_children, serving
from benchmarks.streams import Answered, Asked, streamed

LORAS = 16
# Of a device's memory, for what a plan does not count.
RESERVE = 0.1
LOG_LINES = 40
# What `blockc compile` and `blockc serve` import, and what is imported late.
MODULES = ("blockc.compiler", "blockc_runtime.server.serve", "blockc_runtime.engine", "jinja2", "lark", "llguidance")

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``requests`` at once, on the base or on the LoRAs in turn. ``fields``: what they have besides what all have."""

    name: str
    requests: int
    loras: bool = False
    chat: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


# The most important ones first: time may be over before the last.
CASES = (
    Case(name="32 on the base", requests=32),
    Case(name="32 on 16 LoRAs", requests=32, loras=True),
    Case(name="128 on the base", requests=128),
    Case(name="128 on 16 LoRAs", requests=128, loras=True),
    Case(name="32 on the base, temperature 0.8, top_p 0.9", requests=32, fields={"temperature": 0.8, "top_p": 0.9}),
    Case(name="32 on the base, temperature 0.8", requests=32, fields={"temperature": 0.8}),
    Case(name="32 on the base, as chats", requests=32, chat=True),
)
FIRST = Case(name="one on the base", requests=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the requests of all cases have in common."""

    vocab: int
    prompt: int
    output: int
    clients: int

    def asked(self, case: Case, turn: str) -> list[Asked]:
        """The requests of a case; other prompts in each turn, so that nothing comes from a cache."""
        return [self._asked(case, row, random.Random(f"{case.name}/{turn}/{row}")) for row in range(case.requests)]

    def _asked(self, case: Case, row: int, numbers: random.Random) -> Asked:
        prompt = numbers.choices(range(3, self.vocab), k=self.prompt)
        fields: dict[str, Any] = {
            "model": f"t/a{row % LORAS}" if case.loras else "t/base", "max_tokens": self.output, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, **case.fields,
        }  # fmt: skip
        if not case.chat:
            return Asked(path="/v1/completions", fields={**fields, "prompt": prompt})
        messages = [{"role": "user", "content": " ".join(f"w{token}" for token in prompt)}]
        return Asked(path="/v1/chat/completions", fields={**fields, "messages": messages})


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server, and what of it is read before and after a case."""

    process: int
    url: str

    def metrics(self) -> dict[str, float]:
        """Its counters now."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.url}/metrics", timeout=60) as answer:
            return samples(answer.read().decode())

    def cpu_s(self) -> tuple[float, float]:
        """(of the server, of its engine)."""
        server = cpu_s(self.process)
        return server, cpu_s_with_children(self.process) - server


def samples(text: str) -> dict[str, float]:
    """Prometheus' text as values by name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def grown(before: Metrics, after: Metrics) -> dict[str, float]:
    """What has come to counters since."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def labelled(values: Metrics, name: str) -> dict[str, float]:
    """By the value of its one label, those of a counter that are not 0."""
    return {
        key.removeprefix(name + "{").rstrip("}").partition("=")[2].strip('"'): value
        for key, value in values.items()
        if key.startswith(name + "{") and value
    }


def times(answered: Sequence[Answered]) -> dict[str, Any]:
    """What clients saw. The wall is from the first request that was sent to the last token."""
    wall_s = max(own.last_s for own in answered) - min(own.sent_s for own in answered)
    tokens = sum(own.tokens for own in answered)
    ttft_s = sorted(own.ttft_s for own in answered)
    return {
        "tokens": tokens,
        "wall_s": round(wall_s, 3),
        "tok_s": round(tokens / wall_s, 1),
        "ttft_p50_s": round(statistics.median(ttft_s), 4),
        "ttft_p95_s": round(ttft_s[min(len(ttft_s) - 1, int(0.95 * len(ttft_s)))], 4),
        "tpot_p50_ms": round(1e3 * statistics.median(own.tpot_s for own in answered), 3),
        "all_decode_ms": round(1e3 * all_decode_s(answered), 3),
    }


def all_decode_s(answered: Sequence[Answered]) -> float:
    """Of a token, of the request that began last: while it goes on, nobody reads a prompt."""
    return max(answered, key=lambda own: own.first_s).tpot_s


def steps(values: Metrics, wall_s: float) -> dict[str, Any]:
    """What the server counted of the steps in so long."""
    count = values.get("blockc:step_rows_count", 0.0)
    return {
        "steps": int(count),
        "step_ms": round(1e3 * wall_s / max(1.0, count), 3),
        "rows_a_step": round(values.get("blockc:step_rows_sum", 0.0) / max(1.0, count), 2),
        "launches": int(values.get("blockc:step_launches_sum", 0.0)),
        "replayed": int(values.get("blockc:launches_replayed_total", 0.0)),
        "op_by_op": labelled(values, "blockc:launches_op_by_op_total"),
        "recorded": int(values.get("blockc:graphs_recorded_total", 0.0)),
        "recording_s": round(values.get("blockc:recording_seconds_total", 0.0), 3),
        "engine_restarts": int(values.get("blockc:engine_restarts_total", 0.0)),
        "overlapped": int(values.get("blockc:steps_overlapped_total", 0.0)),
        "waits": labelled(values, "blockc:step_waits_total"),
    }


def limit_tok_s(shape: str, load: Load, case: Case, measured: dict[str, float]) -> float:
    """Output tokens a second if prompts and decode steps took what a copy and a product take."""
    own, ranks = StepShape(shape), ranks_of(LORAS) if case.loras else []
    prompts = limit_ms(own, measured, case.requests, ranks, 0, load.prompt)
    step = limit_ms(own, measured, case.requests, ranks, load.prompt + load.output // 2, 1)
    return 1e3 * case.requests * load.output / (prompts + (load.output - 1) * step)


def ranks_of(loras: int) -> list[int]:
    return [RANKS[i % len(RANKS)] for i in range(loras)]


def run_case(server: Running, load: Load, case: Case, turn: str) -> dict[str, Any]:
    """Ask once."""
    asked = load.asked(case, turn)
    before, (server_s, engine_s) = server.metrics(), server.cpu_s()
    found = times(answered := streamed(server.url, asked, load.clients))
    (server_after_s, engine_after_s), after = server.cpu_s(), server.metrics()
    if found["tokens"] != case.requests * load.output or len(answered) != case.requests:
        raise RuntimeError(f"{found['tokens']} tokens came of {case.requests} requests of {load.output}")
    found |= steps(grown(before, after), found["wall_s"])
    for name, spent_s in (("server", server_after_s - server_s), ("engine", engine_after_s - engine_s)):
        found[f"{name}_cpu_us_a_token"] = round(1e6 * spent_s / found["tokens"], 1)
        found[f"{name}_cores"] = round(spent_s / found["wall_s"], 2)
    return found


def modules() -> Mapping[str, Any]:
    """Raises RuntimeError where something is not installed: better at once than after minutes."""
    problems = []
    for name in MODULES:
        try:
            import_module(name)
        except ImportError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise RuntimeError("; ".join(problems))
    return {}


def make(root: Path, shape: Shape, options: argparse.Namespace) -> str:
    """Write the models and their spec, which is returned."""
    write_base(root / "base", shape, tied=options.tied, alike=options.alike, device=DEVICE)
    for index, rank in enumerate(ranks_of(LORAS)):
        write_lora(root / f"a{index}", shape, rank, seed=1 + index, device=DEVICE)
    limits = f"max_num_seqs = {options.rows}  max_batched_tokens = {options.step_tokens}tok"
    longest = -(-(options.prompt + options.output + 8) // 256) * 256
    text = spec_text(LORAS, device=device_text(), max_model_len=longest, batching=limits)
    (root / "fleet.blk").write_text(text)
    return "; ".join(line for line in text.splitlines() if line.startswith(("policy", "base", "cluster")))


def device_text() -> str:
    """The device as a spec has it: what it has, without what others hold and some of the rest."""
    if DEVICE == "cpu":
        return "cpu { memory = 4GiB }"
    torch.cuda.empty_cache()
    free, total = (size >> 20 for size in torch.cuda.mem_get_info())
    return f"cuda {{ memory = {total}MiB  reserve = {total - int((1 - RESERVE) * free)}MiB }}"


def compiled(spec: Path) -> tuple[Path, list[str]]:
    """Its plan, and what the compiler said. Raises RuntimeError with that."""
    plan = spec.with_name("plan.json")
    line = (sys.executable, "-m", "blockc", "compile", str(spec), "-o", str(plan))
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"blockc compile: {(done.stderr + done.stdout)[-2000:]}")
    return plan, [" ".join(line.split()) for line in (done.stderr + done.stdout).splitlines()][-LOG_LINES:]


class Report:
    """What was found so far, in a file after every part."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._path: Path | None = options.json
        self.values: dict[str, Any] = {
            **origin("benchmarks.cuda_serving"),
            "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
            "parts": [],
        }

    def part(self, name: str, run: Callable[[], Mapping[str, Any]]) -> bool:
        """Run it and tell how long that took; what goes wrong is told too. Whether it went well."""
        began_s = time.monotonic()
        found: dict[str, Any] = {"part": name}
        try:
            found |= run()
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            found["error"] = f"{type(error).__name__}: {error}"[:3000]
        found["part_s"] = round(time.monotonic() - began_s, 2)
        self.values["parts"].append(found)
        print(json.dumps(found), flush=True)
        self.write()
        return "error" not in found

    def write(self) -> None:
        """Write what there is."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.values, indent=1) + "\n")


@contextmanager
def started(plan: Path, report: Report, name: str) -> Iterator[Running]:
    """A server until the block ends. How long it took until it was ready is a part, and so is what it has said."""
    with tempfile.TemporaryFile("w+") as log:
        began_s = time.monotonic()
        try:
            with serving(plan, None, "--drain", "2", log=log) as (process, url):
                ready_s = round(time.monotonic() - began_s, 2)
                report.part(name, lambda: {"ready_s": ready_s})
                yield Running(process=process.pid, url=url)
        finally:
            log.seek(0)
            lines = log.read().splitlines()
            report.values.setdefault("logs", {})[name] = lines[:LOG_LINES] + lines[LOG_LINES:][-LOG_LINES:]
            report.write()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--tied", action="store_true", help="the head has the weights of the embedding")
    parser.add_argument("--alike", action="store_true", help="layers share their weights: 8b is loaded in less time")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--output", type=int, default=128, help="tokens")
    parser.add_argument("--rows", type=int, default=128, help="the most of a step")
    parser.add_argument("--step-tokens", type=int, default=4096, help="the most of a step")
    parser.add_argument("--requests", type=int, help="the most of a case; others are left out")
    parser.add_argument("--clients", type=int, default=4, help="processes that ask")
    parser.add_argument("--seconds", type=float, default=150, help="after which nothing more is begun")
    parser.add_argument("--work", type=Path, help="where the models are made")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    end_s = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        run(Path(folder), options, Report(options), end_s)


def run(root: Path, options: argparse.Namespace, report: Report, end_s: float) -> None:
    """All parts that there is time for."""
    shape, measured, plans = SHAPES[options.shape], dict[str, float](), list[Path]()
    load = Load(vocab=shape.vocab, prompt=options.prompt, output=options.output, clients=options.clients)

    def measure_rates() -> Mapping[str, Any]:
        measured.update(rates(5))
        return measured

    def compile_it() -> Mapping[str, Any]:
        plan, said = compiled(root / "fleet.blk")
        plans.append(plan)
        return {"said": said}

    def once(server: Running, case: Case) -> Mapping[str, Any]:
        warm_up = {} if case is FIRST else {"warm_up": run_case(server, load, case, "warm-up")}
        found = warm_up | run_case(server, load, case, str(time.monotonic()))
        if not measured:
            return found
        limit = limit_tok_s(options.shape, load, case, measured)
        return found | {"limit_tok_s": round(limit, 1), "of_limit": round(found["tok_s"] / limit, 3)}

    if not report.part("modules", modules):
        return
    report.part("rates", measure_rates)
    if not report.part("make", lambda: {"spec": make(root, shape, options)}):
        return
    if not report.part("compile", compile_it):
        return
    report.part("serve", lambda: serve(plans[0], options, report, end_s, once))


def serve(
    plan: Path, options: argparse.Namespace, report: Report, end_s: float,
    once: Callable[[Running, Case], Mapping[str, Any]],
) -> Mapping[str, Any]:  # fmt: skip
    """All cases with one server, and the first request again with another, for which kernels are compiled already."""
    most = options.requests or max(case.requests for case in CASES)
    with started(plan, report, "start") as server:
        for name in ("first request", "second request"):
            report.part(name, lambda: once(server, FIRST))
        for case in CASES:
            if time.monotonic() < end_s and case.requests <= most:
                report.part(case.name, lambda case=case: once(server, case))  # type: ignore[misc]
    if time.monotonic() < end_s:
        with started(plan, report, "start again") as server:
            report.part("first request again", lambda: once(server, FIRST))
    return {}


if __name__ == "__main__":
    main()
