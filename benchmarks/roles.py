"""What it brings that some instances read prompts for others: the same load, devices and router, simulated.

    python -m benchmarks.roles --json benchmarks/results/sim-roles.json

Four H100s, each with a Llama-3-8B shape, by the catalogue's rates; prompts and answers log-normal around their means.
Beside "shared" (everybody does both, in steps of 2,048 tokens) stands what else makes steps short: a budget of 512
tokens. Nothing was measured on a device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.rates import origin
from blockc.cli.compile import compile_file
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.simulate import Fleet, Load, Targets, fleet_of, generate, rates_of, report, simulate
from blockc.simulate.roles import with_readers

_DEVICES = 4
_CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
}  # fmt: skip
_SPEC = f"""
base chat : hf("./chat") {{ dtype = bf16 }}
tenant acme {{ app chat {{ model = chat  replicas = {_DEVICES}  traffic {{ rate = 1rps }} }} }}
cluster c {{ node n {{ for g in 0..{_DEVICES - 1} {{ device "g${{g}}" : h100_80g {{ }} }} }} }}
policy {{ batching {{ max_num_seqs = 256 }} }}
"""
_TARGETS = Targets(ttft_s=1.0, tpot_s=0.02)
# (requests a second, tokens of a prompt, of an answer)
_LOADS = ((8.0, 3000, 200), (12.0, 3000, 200), (16.0, 3000, 200), (6.0, 6000, 50), (30.0, 500, 300))


def _plan() -> ExecutionPlan:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "chat").mkdir()
        (root / "chat" / "config.json").write_text(json.dumps(_CONFIG))
        (root / "fleet.blk").write_text(_SPEC)
        return compile_file(root / "fleet.blk", root / "zoo", {}, target="sim")[0].plan


def _fleets(plan: ExecutionPlan) -> Iterator[tuple[str, Fleet]]:
    rates = rates_of(plan, diags=Diagnostics())
    shared = fleet_of(plan, rates)
    yield "shared", shared
    short = tuple(replace(item, limits=replace(item.limits, max_batched_tokens=512)) for item in shared.instances)
    yield "shared, 512 tokens", replace(shared, instances=short)
    for count in range(1, _DEVICES):
        yield f"{count} read", fleet_of(with_readers(plan, tuple(range(count))), rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plan = _plan()
    rows = []
    for rate, prompt, output in _LOADS:
        load = generate(
            [Load(app=0, rate_rps=rate, prompt_tokens=prompt, output_tokens=output)], seconds=options.seconds, seed=1
        )
        for name, fleet in _fleets(plan):
            run = simulate(fleet, load)
            total = report(run, {plan.apps[0].address: _TARGETS}).total
            assert total.ttft is not None
            assert total.tpot is not None
            rows.append({
                "requests_per_s": rate, "prompt_tokens": prompt, "output_tokens": output, "roles": name,
                "in_time_of_served": round(total.good / max(1, total.requests - total.refused), 4),
                "ttft_p95_ms": round(1000 * total.ttft.p95_s, 1), "tpot_p95_ms": round(1000 * total.tpot.p95_s, 2),
                "sent_gib": round(total.sent_bytes / 2**30, 1),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        found = {"origin": origin("benchmarks.roles"), "targets": {"ttft_s": 1.0, "tpot_s": 0.02}, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
