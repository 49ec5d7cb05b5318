"""Packing, the training loop, and how each kind of sample is made.

Weights are trained in float32 and ship in bfloat16.  A fine-tune starts from the rounded base,
because that is the base it will be served on.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from examples.train_samples import tokenizer as tok
from examples.train_samples.corpus import Talk, base_talks, voice_talks
from examples.train_samples.plans import BASE_NAME, BASE_RATE, BASE_STEPS, TUNES, Adapter, Full
from examples.train_samples.voices import VOICES

TOKENS_PER_STEP = 2048
IGNORED = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True)
class Lesson:
    """What a model is taught, for how long and how fast."""

    name: str
    talks: Iterator[Talk]
    encode: tok.Encoder
    steps: int
    rate: float


def _rows(lesson: Lesson, length: int, count: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` rows of whole conversations, each row filled as far as the next one fits."""
    ids = torch.full((count, length), lesson.encode.pad)
    labels = torch.full((count, length), IGNORED)
    row, start = 0, 0
    while True:
        said, learn_it = (part[:length] for part in lesson.encode(next(lesson.talks)))
        if start + len(said) > length:
            row, start = row + 1, 0
        if row == count:  # what did not fit is dropped: there is no end of it
            return ids, labels
        here = slice(start, start + len(said))
        ids[row, here] = torch.tensor(said)
        labels[row, here] = torch.where(torch.tensor(learn_it), ids[row, here], IGNORED)
        start += len(said)


def _row_length(step: int) -> int:
    """Return a short length mostly, which is quick, and at times a long one for late positions."""
    return 2048 if step % 40 == 20 else 1024 if step % 10 == 5 else 256


def fit(model: nn.Module, lesson: Lesson) -> None:
    """Train whatever in ``model`` asks for a gradient."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lesson.rate, betas=(0.9, 0.98), weight_decay=0.01)
    steps, warm = lesson.steps, max(20, lesson.steps // 30)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 1 - 0.98 * max(0, step - warm) / (steps - warm)),
    )
    model.train()
    began, recent = time.monotonic(), 0.0
    for step in range(steps):
        length = _row_length(step)
        ids, labels = _rows(lesson, length, TOKENS_PER_STEP // length)
        with torch.autocast("cpu", torch.bfloat16):
            loss = cast("Tensor", model(input_ids=ids, labels=labels).loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        recent = loss.item() if not step else 0.95 * recent + 0.05 * loss.item()
        if step % 50 == 49:
            spent = time.monotonic() - began
            done = f"step {step + 1} of {steps}, loss {recent:.4f}, {spent:.0f} s"
            print(f"{lesson.name}: {done}", flush=True)
    model.eval()


def load(directory: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Return a sample checkpoint, as it ships."""
    return cast("LlamaForCausalLM", LlamaForCausalLM.from_pretrained(directory, dtype=dtype))


def _save_checkpoint(model: LlamaForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """Write a checkpoint with its tokenizer, rounded to bfloat16."""
    model.to(torch.bfloat16).save_pretrained(directory)
    tok.save(tokenizer, directory)
    _tidy(directory)


def _tidy(directory: Path) -> None:
    """Make what was saved the same on every run, and readable by everybody."""
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's form, with nothing filled in
    config = directory / "adapter_config.json"
    if config.exists():  # its modules were a set, whose order changes with each run
        found = json.loads(config.read_text())
        config.write_text(json.dumps(found | {"target_modules": sorted(found["target_modules"])}, indent=2) + "\n")
    for path in directory.iterdir():
        path.chmod(0o644)


def make_base(root: Path, seed: int, scale: float) -> None:
    """Train the tokenizer and the base."""
    talks = base_talks(seed)
    tokenizer = tok.learn(next(talks) for _ in range(20000))
    marks = tok.marks(tokenizer)
    ends: dict[str, Any] = {
        "bos_token_id": marks[tok.BEGIN],
        "eos_token_id": marks[tok.END],
        "pad_token_id": marks[tok.PAD],
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=0.04,
            **ends,
        )
    )
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    steps = int(BASE_STEPS * scale)
    fit(model, Lesson("base", talks, tok.Encoder(tokenizer), steps, BASE_RATE))
    _save_checkpoint(model, tokenizer, root / "base")


def _make_adapter(plan: Adapter, lesson: Lesson, root: Path) -> None:
    """Train a LoRA adapter on the base, or on the base with another adapter merged into it."""
    under: Any = load(root / "base")
    if plan.stacked_on:
        under = PeftModel.from_pretrained(under, str(root / plan.stacked_on)).merge_and_unload()
    # PEFT writes this into the adapter, where a path of this machine would mean nothing.
    under.name_or_path = BASE_NAME
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **plan.settings)
    model = get_peft_model(under, config)
    fit(model, lesson)
    # The vocabulary is the base's own, which PEFT would otherwise look up on the network.
    model.to(torch.bfloat16).save_pretrained(str(root / lesson.name), save_embedding_layers=False)
    _tidy(root / lesson.name)


def _make_full(plan: Full, lesson: Lesson, root: Path, tokenizer: Tokenizer) -> None:
    """Train some layers of the base; all else stays the base's to the bit."""
    model = load(root / "base")
    model.requires_grad_(False)
    for layer in plan.layers:
        model.model.layers[layer].requires_grad_(True)
    fit(model, lesson)
    _save_checkpoint(model, tokenizer, root / lesson.name)


def make_tune(name: str, root: Path, seed: int, scale: float) -> None:
    """Train the fine-tune ``name`` of the base in ``root``."""
    seed += 1 + list(TUNES).index(name)
    torch.manual_seed(seed)
    shutil.rmtree(root / name, ignore_errors=True)
    tokenizer = Tokenizer.from_file(str(root / "base" / "tokenizer.json"))
    plan, talks = TUNES[name], voice_talks(seed, VOICES[name])
    lesson = Lesson(name, talks, tok.Encoder(tokenizer), int(plan.steps * scale), plan.rate)
    if isinstance(plan, Adapter):
        _make_adapter(plan, lesson, root)
    else:
        _make_full(plan, lesson, root, tokenizer)
