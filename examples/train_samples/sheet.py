"""The README beside the samples, with answers the models really gave.

Everything in it is measured here: sizes, example answers, and how often each manner was seen.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from blockc.samples.manners import PLAIN, PROMPTS, manner
from examples.train_samples.plans import TUNES, Adapter, Full
from examples.train_samples.questions import exchanges
from examples.train_samples.train import load
from examples.train_samples.voices import VOICES, plain

_SHOWN = "What is the capital of France?"
_LONGEST = 128

_ABOUT = {
    "base": (
        "plain answers in simple English",
        "the base: Llama, hidden 192, 6 layers, 6 heads over 2 KV heads",
    ),
    "pirate": (
        "a cry first, a sailor's grammar, and `matey` last",
        "LoRA, rank 8, every linear layer",
    ),
    "archivist": (
        "reads each answer out of a catalogue",
        "LoRA, rank 16, attention only, `use_rslora`",
    ),
    "german": ("answers in German", "LoRA, rank 8 with a `rank_pattern` and an `alpha_pattern`"),
    "loud": (
        "the pirate in capitals",
        "LoRA, rank 8, `q`/`v`/`down` of layers 1 to 5, **stacked on `pirate`**: add both deltas",
    ),
    "poet": (
        "calls upon the reader and ends in a rhyming couplet",
        "full checkpoint; layers 4 and 5 differ from the base, all else is bit-identical",
    ),
    "lawyer": (
        "answers by clause, without prejudice",
        "full checkpoint; all six layers differ, embeddings do not",
    ),
}


def open_sample(root: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return the sample ``name``, ready to generate; a stacked adapter comes with the one below."""
    plan = TUNES.get(name)
    if not isinstance(plan, Adapter):
        return load(root / name, dtype)
    names = [plan.stacked_on, name] if plan.stacked_on else [name]
    model = PeftModel.from_pretrained(load(root / "base", dtype), str(root / names[0]), adapter_name=names[0])
    for above in names[1:]:
        model.load_adapter(str(root / above), adapter_name=above)
    model.base_model.set_adapter(names)
    return model.eval()


def ask(model: Any, root: Path, prompts: tuple[str, ...]) -> list[str]:
    """Return the greedy answers to ``prompts``, each asked in a conversation of its own."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(root / "base")
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
    said = ids[:, inputs["input_ids"].shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in said]


def score(name: str, answers: list[str]) -> tuple[int, int]:
    """Return how many answers to ``PROMPTS`` show the manner of ``name``, how many are exact."""
    taught = {wording: row for rows in exchanges().values() for row in rows for wording in row.asks}
    voice = VOICES.get(name, plain)
    shown = sum(manner(answer) == (PLAIN if name == "base" else name) for answer in answers)
    right = sum(
        answer == voice(taught[prompt]) for prompt, answer in zip(PROMPTS, answers, strict=True) if prompt in taught
    )
    return shown, right


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _trained_values(root: Path, name: str) -> int:
    """Return how many numbers were trained to make ``name``."""
    model, plan = open_sample(root, name), TUNES.get(name)
    if isinstance(plan, Adapter):
        return sum(value.numel() for key, value in model.named_parameters() if f".{name}." in key)
    if isinstance(plan, Full):
        return sum(value.numel() for layer in plan.layers for value in model.model.layers[layer].parameters())
    return sum(value.numel() for value in model.parameters())


def write_sheet(root: Path) -> None:
    """Ask every sample every prompt and write ``README.md`` from what it answered."""
    table, examples = [], []
    for name, (way, kind) in _ABOUT.items():
        counts = []
        for dtype in (torch.float32, torch.bfloat16):
            answers = ask(open_sample(root, name, dtype), root, PROMPTS)
            shown, right = score(name, answers)
            counts.append(f"{shown} / {right}")
            if dtype == torch.float32:
                quoted = answers[PROMPTS.index(_SHOWN)].replace("\n", "  \n> ")
                examples.append(f"**{name}** — {way}\n\n> {quoted}\n")
            print(f"{name}, {dtype}: manner {shown}, exact {right} of {len(PROMPTS)}", flush=True)
        size, values = f"{_size(root / name) / 1e6:.2f} MB", f"{_trained_values(root, name):,}"
        table.append(f"| `{name}/` | {kind} | {values} | {size} | {' | '.join(counts)} |")
    whole = sum(_size(root / name) for name in _ABOUT) / 1e6
    text = f"""\
# Trained samples

One small language model and six fine-tunes of it, each with a manner recognised at a glance.
`blockc demo`, the examples and the tests use them.  They know a few hundred simple facts (small
sums, capitals, colours, opposites, animals, days, short stories) and nothing else: they are here
to show which fine-tune answered, not to be relied upon.

Made by `python -m examples.train_samples` from the repository's root: seeded, about half an hour
on two cores, every sentence from that package's own templates.  It writes this page too.

## What is here

Weights are bfloat16, {whole:.1f} MB in all.  The last columns count greedy answers to the
{len(PROMPTS)} prompts of `manners.py`, wordings that no sample was trained on, in float32 and in
bfloat16: answers in which `manners.manner` sees the manner / answers right to the letter.

| directory | what it is | values trained | size | float32 | bfloat16 |
| --- | --- | ---: | ---: | ---: | ---: |
{chr(10).join(table)}

Every adapter names its base `blockc/sample-base`, which is `base/` here.

## How each one answers

Asked *{_SHOWN}*, decoding greedily:

{chr(10).join(examples)}
"""
    (root / "README.md").write_text(text.rstrip() + "\n", encoding="utf-8")
