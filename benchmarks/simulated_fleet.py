"""How long and how much memory a plan without weights takes: ``python benchmarks/simulated_fleet.py``.

Two fleets, made from code: Llama-3-70B with 20 LoRA configurations on four 80 GB devices, and 1,000 LoRAs on 10 bases
of the Llama-3-8B shape. Each is compiled in a process of its own, imports included, beside one that only imports torch
and transformers: what no compiler that traces with them can be faster than.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
_70B = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672}
_8B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336}
_ADAPTER = {
    "peft_type": "LORA", "r": 16, "lora_alpha": 32,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
_LARGE = """
base llama70b : hf("./llama") { dtype = bf16 }
for i in 0..19 { finetune "a${i}" : llama70b { weights = "./a${i}" }  tenant "t${i}" { app chat { model = "a${i}" } } }
cluster c { node n { for g in 0..3 { device "g${g}" : h100_80g { } } } }
"""
_MANY = """
for b in 0..9 { base "b${b}" : hf("./b${b}") { dtype = bf16 } }
for b in 0..9 { for i in 0..99 {
  finetune "f${b}_${i}" : "b${b}" { assume { kind = lora  rank = 16  targets = ["q_proj", "v_proj"] } }
  tenant "t${b}_${i}" { app chat { model = "f${b}_${i}" } }
} }
cluster c { for n in 0..1 { node "n${n}" { for g in 0..7 { device "g${g}" : h100_80g { reserve = 6% } } } } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process: seconds by the clock, seconds of CPU, peak memory, what it printed."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


def run(*arguments: str) -> Run:
    """Run Python to its end."""
    program = f"import resource, sys\n{arguments[0]}\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments[1:]], capture_output=True, text=True, check=True, env=os.environ
    )
    wall_s = time.perf_counter() - start_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    output, _, peak = done.stdout.rstrip().rpartition("\n")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall_s=wall_s, cpu_s=cpu_s, peak_bytes=int(peak) * 1024, output=output)


def fleets(root: Path) -> dict[str, Path]:
    """Write both specs with their configurations."""
    _write(root / "large" / "llama" / "config.json", _LLAMA | _70B)
    for index in range(20):
        _write(root / "large" / f"a{index}" / "adapter_config.json", _ADAPTER)
    for index in range(10):
        _write(root / "many" / f"b{index}" / "config.json", _LLAMA | _8B)
    (root / "large" / "fleet.blk").write_text(_LARGE)
    (root / "many" / "fleet.blk").write_text(_MANY)
    return {
        "Llama-3-70B, 20 adapters, 4 devices": root / "large" / "fleet.blk",
        "10 bases of 8B, 1,000 adapters, 16 devices": root / "many" / "fleet.blk",
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def main(repeats: int = 3) -> None:
    """Print a table; medians of ``repeats`` runs, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        specs = fleets(Path(folder))
        runs: dict[str, list[Run]] = {name: [] for name in ("import torch, transformers", *specs)}
        for _ in range(repeats):
            # The model classes are what is slow to import; the package alone is lazy.
            runs["import torch, transformers"].append(
                run("import torch, transformers\nfrom transformers import AutoModelForCausalLM, LlamaForCausalLM")
            )
            for name, spec in specs.items():
                command = ["compile", "--target", "sim", "--json", str(spec), "-o", str(spec.with_name("plan.json"))]
                runs[name].append(run("from blockc.cli import main\nassert main(sys.argv[1:]) == 0", *command))
        base_s = statistics.median(item.wall_s for item in runs["import torch, transformers"])
        for name, items in runs.items():
            wall_s = statistics.median(item.wall_s for item in items)
            cpu_s = statistics.median(item.cpu_s for item in items)
            peak_mib = max(item.peak_bytes for item in items) >> 20
            print(f"{name}: {wall_s:.1f} s, {cpu_s:.1f} s of CPU, {wall_s / base_s:.2f} x the imports, {peak_mib} MiB")
            if name in specs:
                stages = json.loads(items[-1].output)["summary"]["stages_s"]
                size = specs[name].with_name("plan.json").stat().st_size
                print("  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))
                print(f"  plan of {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
