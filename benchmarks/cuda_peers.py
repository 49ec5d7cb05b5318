"""Decode steps of transformers and PEFT with the shapes of `benchmarks.cuda_step`, on the same card.

    python -m benchmarks.cuda_peers [--json FILE]

A step is what one more token costs in `generate`, of a batch of prompts of one length: the difference of two runs. With
LoRAs the batch is PEFT's, in which every row names its adapter; transformers' continuous batching knows the base alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.cuda_step import DEVICE, DTYPE, RANKS, Shape, wait
from benchmarks.fleet import SHAPES
from benchmarks.rates import origin

# Tokens of the two runs, which are made so often: with LoRAs a step of PEFT's launches some ten thousand kernels.
SHORT, LONG, TIMES = 4, 12, 2
SITES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model_of(shape: Shape) -> LlamaForCausalLM:
    """Random weights."""
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocab,
        max_position_embeddings=8192, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.set_default_dtype(DTYPE)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def with_loras(model: LlamaForCausalLM, count: int) -> PeftModel:
    """``count`` LoRAs of the ranks of `benchmarks.cuda_step`."""
    made: Any = None
    with torch.device(DEVICE):  # values are drawn there
        for i in range(count):
            rank = RANKS[i % len(RANKS)]
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=SITES, init_lora_weights=False)
            if made is None:
                made = get_peft_model(model, config, adapter_name="0")
            else:
                made.add_adapter(str(i), config)
    return made.to(DTYPE).eval()


def continuous(model: LlamaForCausalLM, prompts: list[list[int]], tokens: int) -> None:
    """Transformers' own continuous batching."""
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    found = model.generate_batch(prompts, generation_config=config)
    counts = [len(own.generated_tokens) for own in found.values()]
    if counts != [tokens] * len(prompts):
        raise ValueError(f"it has generated {counts} tokens")


def step_ms(run: Callable[[int], Any]) -> float:
    """What a token more costs; the least."""

    def seconds(tokens: int) -> float:
        wait()
        begin = time.perf_counter()
        run(tokens)
        wait()
        return time.perf_counter() - begin

    seconds(SHORT)
    return min((seconds(LONG) - seconds(SHORT)) / (LONG - SHORT) for _ in range(TIMES)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--loras", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = Shape(options.shape)
    report: dict[str, Any] = {"origin": origin("benchmarks.cuda_peers"), "cases": []}
    report["device"] = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"

    def told(peer: str, rows: int, loras: int, run: Callable[[int], Any]) -> None:
        try:
            took: float | str = round(step_ms(run), 3)
        except Exception as error:
            took = f"{type(error).__name__}: {error}"[:200]
        case = {"peer": peer, "rows": rows, "loras": loras, "ms": took}
        report["cases"].append(case)
        print(json.dumps(case), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=2) + "\n")

    with torch.no_grad():
        model = model_of(shape)
        prompts = torch.randint(1, shape.vocab, (max(options.rows), options.context), device=DEVICE)

        def batch(rows: int, **more: Any) -> Callable[[int], Any]:
            own = prompts[:rows]
            return lambda tokens: model.generate(
                input_ids=own, attention_mask=torch.ones_like(own), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, **more,
            )  # fmt: skip

        for rows in options.rows:
            told("transformers, a batch", rows, 0, batch(rows))
        if options.loras:
            model = with_loras(model, options.loras)
            for rows in (n for n in options.rows if n >= options.loras):
                names = [str(i % options.loras) for i in range(rows)]
                told("PEFT, a batch", rows, options.loras, batch(rows, adapter_names=names))
        del model
        model = model_of(shape)
        given = prompts.tolist()
        for rows in options.rows:
            told("transformers, continuous batching", rows, 0, partial(continuous, model, given[:rows]))


if __name__ == "__main__":
    main()
