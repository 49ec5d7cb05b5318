"""Output tokens per second and time to first token of blockc and of llama.cpp's ``llama-server``, in turns.

    python -m benchmarks.cpu_peers --llama-server build/bin/llama-server [--shapes small mid] [--json FILE]

Both get the requests of `benchmarks.serving`, over HTTP on OpenAI's route, with the same weights, adapters and threads.
llama.cpp reads the matrices as bfloat16, which they are, and as float16, for which it has other kernels. It has a field
for the LoRAs of a request; rows with different ones do not share its steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.fleet import SHAPES, Shape, compiled_fleet
from benchmarks.gguf import write_base, write_lora
from benchmarks.rates import origin
from benchmarks.serving import OUTPUT_TOKENS, PROMPT_TOKENS, Case, Measured, Server, measure, serving

CONTEXT_TOKENS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--shapes", choices=sorted(SHAPES), nargs="+", default=["small", "mid"])
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 16], help="requests, each on a LoRA of its own")
    parser.add_argument("--base-batches", type=int, nargs="*", default=[1, 8, 16], help="requests on the base")
    parser.add_argument("--dtypes", choices=["bf16", "f16"], nargs="+", default=["bf16", "f16"], help="of llama.cpp's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep the models here between runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    cases = [Case(requests=count, loras=False) for count in options.base_batches]
    cases += [Case(requests=count, loras=True) for count in options.batches]
    report: dict[str, Any] = {
        **origin("benchmarks.cpu_peers"),
        "llama_server": version(options.llama_server),
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.shapes:
            root, most = (options.work or Path(scratch)) / name, max(case.requests for case in cases)
            plan = compiled_fleet(root, SHAPES[name], most)
            with ExitStack() as stack:
                servers = {"blockc": stack.enter_context(serving(plan))}
                for dtype in options.dtypes:
                    files = gguf_files(root, SHAPES[name], most, dtype)
                    line = command(options.llama_server, files, most)
                    servers[f"llama_{dtype}"] = stack.enter_context(llama_serving(line))
                for case in cases:
                    found = asyncio.run(measure(servers, SHAPES[name], case, options.repeats))
                    row = {"shape": name, "requests": case.requests, "loras": case.loras}
                    row["load_average"] = round(os.getloadavg()[0], 1)
                    report["rows"].append(row | told(name, case, found))
                    if options.json:
                        options.json.write_text(json.dumps(report, indent=2) + "\n")


def told(name: str, case: Case, found: dict[str, Measured]) -> dict[str, float]:
    """A case's figures, which are printed too."""
    row = {}
    for server, got in found.items():
        row[f"{server}_tok_s"] = round(got.tokens_per_s, 1)
        row[f"{server}_cpu_ms"] = round(1e3 * statistics.median(got.cpu_s), 3)
        row[f"{server}_ttft_p50_s"] = round(got.ttft(0.5), 3)
        row[f"{server}_ttft_p95_s"] = round(got.ttft(0.95), 3)
        text = f"first token after {got.ttft(0.5):.2f} s (p95 {got.ttft(0.95):.2f})"
        if server != "blockc":
            row[f"over_{server}"] = round(found["blockc"].over(got), 2)
            text += f"; blockc is {row[f'over_{server}']} times as fast"
        rates = f"{got.tokens_per_s:.1f} tok/s, {row[f'{server}_cpu_ms']} ms of CPU a token"
        print(f"{name} {case.title:>16}: {server:>10} {rates}, {text}", flush=True)
    return row


def version(binary: Path) -> str:
    """What it says of itself, in one line."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return "; ".join(line for line in (said.stdout + said.stderr).splitlines() if re.match("version|built", line))


def gguf_files(root: Path, shape: Shape, adapters: int, dtype: str) -> list[Path]:
    """The base under ``root`` and its first adapters, written unless they are there."""
    files = [root / f"base-{dtype}.gguf", *(root / f"a{index}-{dtype}.gguf" for index in range(adapters))]
    if not files[0].is_file():
        write_base(root / "base", shape, dtype, files[0])
    for index, file in enumerate(files[1:]):
        if not file.is_file():
            write_lora(root / f"a{index}", shape, dtype, file)
    return files


def command(binary: Path, files: list[Path], requests: int) -> list[str]:
    """``requests`` places for requests at once; adapters apply to requests that scale them."""
    base, *adapters = files
    threads = str(torch.get_num_threads())
    line = [str(binary), "--host", "127.0.0.1", "--port", "0", "--offline", "--no-ui", "--model", str(base)]
    line += ["--threads", threads, "--threads-batch", threads]
    line += ["--parallel", str(requests), "--ctx-size", str(requests * CONTEXT_TOKENS), "--cache-ram", "0"]
    return [*line, "--lora-scaled", ",".join(f"{adapter}:0" for adapter in adapters)]


def fields(model: str) -> dict[str, Any]:
    """What a request on ``t/base`` or ``t/a3`` has besides what all have: no cache of prompts, no needless samplers."""
    _, _, index = model.partition("t/a")
    loras = [{"id": int(index), "scale": 1.0}] if index else []
    return {"lora": loras, "cache_prompt": False, "samplers": ["temperature"]}


@contextmanager
def llama_serving(line: list[str]) -> Iterator[Server]:
    """A server on loopback, once its model is loaded."""
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not (found := re.search(r"listening on (http://\S+)\n", told := Path(log.name).read_text())):
                if process.poll() is not None:
                    raise SystemExit(f"{line[0]} did not start:\n{told[-2000:]}")
                time.sleep(0.1)
            yield Server(process=process.pid, url=found[1], fields=fields)
        finally:
            process.terminate()
            process.wait(timeout=30)


if __name__ == "__main__":
    main()
