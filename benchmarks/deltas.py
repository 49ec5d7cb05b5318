"""Eight full fine-tunes really trained from the shipped sample: bytes and quality under every way of sharing.

    python -m benchmarks.deltas [--models FOLDER] [--out results.json]

Each is trained on texts of its own kind (`domains.py`), with another rate and other parameters free: all, all but the
table, the last layers, one kind of matrix. Quality is measured on texts that none was trained on, on the chain that is
served, beside the checkpoint as it was trained: perplexity, and how often the likeliest token is the same. Bytes are
those of all tensors that a plan takes from the zoo, each once. PM: every model by itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.domains import DOMAINS, texts
from benchmarks.pairs import write
from blockc.compiler import Compiled, compile_deployment
from blockc.diag import Diagnostics
from blockc.evaluate import compare, logits
from blockc.plan import ExecutionPlan, plan_uses
from blockc.samples import root as samples
from blockc.spec.deployment import LocalSource, Policy, Sharing
from blockc.verify.evaluated import chain_of
from blockc.zoo import Zoo
from tests.support.deployments import deployment

_STEPS, _BATCH, _LENGTH = 120, 16, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """``free``: whether a parameter is trained, by its name."""

    rate: float
    free: Callable[[str], bool]
    what: str


def _layers(first: int) -> Callable[[str], bool]:
    return lambda name: any(f"layers.{layer}." in name for layer in range(first, 6))


TRAININGS: Mapping[str, Training] = {
    "sums": Training(rate=1e-3, free=lambda name: True, what="all, fast"),
    "records": Training(rate=3e-4, free=lambda name: True, what="all"),
    "queries": Training(rate=1e-3, free=_layers(0), what="layers, fast"),
    "logs": Training(rate=3e-4, free=_layers(0), what="layers"),
    "dates": Training(rate=1e-4, free=_layers(0), what="layers, slow"),
    "code": Training(rate=1e-3, free=_layers(4), what="last two layers"),
    "orders": Training(rate=1e-3, free=_layers(5), what="last layer"),
    "lists": Training(rate=5e-4, free=lambda name: "mlp" in name, what="MLPs"),
}


def train(domain: str, folder: Path) -> Path:
    """A checkpoint of the sample trained on one kind of texts, in bfloat16 as the sample is."""
    done, own = folder / domain, TRAININGS[domain]
    if (done / "model.safetensors").exists():
        return done
    torch.manual_seed(0)
    base = samples() / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tuned = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(own.free(name))
        if parameter.requires_grad:
            tuned.append(parameter)
    optimizer = torch.optim.AdamW(tuned, lr=own.rate, weight_decay=0.01)
    stream = torch.tensor([token for text in texts(domain, 2000, seed=1) for token in _ids(tokenizer, text)])
    model.train()
    for step in range(_STEPS):
        starts = torch.randint(0, len(stream) - _LENGTH - 1, (_BATCH,))
        batch = torch.stack([stream[start : start + _LENGTH] for start in starts.tolist()])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        if step % 40 == 0 or step == _STEPS - 1:
            print(f"  {domain} step {step}: loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(done)
    tokenizer.save_pretrained(done)
    return done


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text + "\n", add_special_tokens=False).input_ids]


def compiled(models: Mapping[str, Path], sharing: Sharing, zoo: Path) -> tuple[Compiled, float]:
    """With the seconds that it took."""
    what = deployment(
        samples() / "base", {name: ("base", path) for name, path in models.items()}, dtype="bfloat16",
        policy=replace(Policy(), share=sharing),
    )  # fmt: skip
    begin = time.perf_counter()
    made = compile_deployment(what, zoo=Zoo(zoo, create=True), diags=Diagnostics())
    return made, time.perf_counter() - begin


def kept_bytes(plan: ExecutionPlan, zoo: Zoo) -> int:
    """Of all tensors that the plan takes from the zoo."""
    uses = plan_uses(plan, zoo.blob, Diagnostics())
    return sum({use.digest: use.tensor.nbytes for use in uses if use.tensor is not None}.values())


def served(made: Compiled, model: str, probes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    assert made.zoo is not None
    chain = made.plan.models[model].chain
    assert chain is not None
    return logits(chain_of(made.plan, made.zoo, chain), made.zoo, probes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="where checkpoints are kept, or were")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.models or Path(folder) / "models", Path(folder))
    if options.out is not None:
        write(options.out, "benchmarks.deltas", found, device="cpu", commit=options.commit)


def measure(models: Path, folder: Path) -> dict[str, Any]:
    trained = {domain: train(domain, models) for domain in DOMAINS}
    tokenizer = AutoTokenizer.from_pretrained(samples() / "base")
    unseen = {domain: [_ids(tokenizer, text) for text in texts(domain, 24, seed=2)] for domain in DOMAINS}
    probe = folder / "probe.txt"
    probe.write_text("\n".join(text for domain in DOMAINS for text in texts(domain, 12, seed=3)))
    source = LocalSource(path=probe, written="./probe.txt")
    ways = {
        "exact": Sharing(),
        **{
            f"delta {percent}%": Sharing(mode="delta", max_error=Fraction(percent, 100), probe=source)
            for percent in (10, 30, 60)
        },
        "approx kl 2%": Sharing(mode="approx", metric="kl", bound=Fraction(2, 100), probe=source),
    }
    original: dict[str, list[torch.Tensor]] = {}
    found: dict[str, Any] = {}
    for way, sharing in ways.items():
        made, took_s = compiled(trained, sharing, folder / f"zoo-{len(found)}")
        assert made.zoo is not None
        pm = made.plan.baselines.pm_bytes
        own = kept_bytes(made.plan, made.zoo)
        rows: dict[str, Any] = {}
        for domain in DOMAINS:
            ours = served(made, domain, unseen[domain])
            agreement = compare(original.setdefault(domain, ours), ours, unseen[domain])
            rows[domain] = {
                "trained": TRAININGS[domain].what,
                "perplexity": agreement.perplexity, "as trained": agreement.original_perplexity,
                "same likeliest token": agreement.top1, "kl": agreement.kl_mean,
                "verdict": None if (sharing_ := made.plan.models[domain].sharing) is None else sharing_.verdict,
            }  # fmt: skip
            if way == "exact":
                base = served(made, "base", unseen[domain])
                rows[domain]["perplexity of the base"] = compare(ours, base, unseen[domain]).perplexity
        found[way] = {"bytes": own, "pm_bytes": pm, "bytes / PM": own / pm, "compile_s": took_s, "models": rows}
        report(way, found[way])
    return found


def report(way: str, found: Mapping[str, Any]) -> None:
    print(f"{way}: {found['bytes'] / 2**20:.1f} MiB, {found['bytes / PM']:.0%} of PM, {found['compile_s']:.0f} s")
    for name, row in found["models"].items():
        base = f", base {row['perplexity of the base']:.3g}" if "perplexity of the base" in row else ""
        print(
            f"  {name:8} {row['trained']:16} {row['verdict'] or 'private':8} perplexity {row['perplexity']:.3f} "
            f"(as trained {row['as trained']:.3f}{base}), same token {row['same likeliest token']:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
