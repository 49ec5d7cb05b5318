"""The samples that ship: each fine-tune shows its manner, the base none, and they are small.

They are read here through transformers and PEFT alone: what they say there is the reference for
blockc.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from blockc.samples import root
from blockc.samples.manners import PLAIN, PROMPTS, manner

ADAPTERS = {
    "pirate": ["pirate"],
    "archivist": ["archivist"],
    "german": ["german"],
    "loud": ["pirate", "loud"],
}
STACKS = {**ADAPTERS, "loud alone": ["loud"]}
CHECKPOINTS = ["base", "poet", "lawyer"]
LIMIT = 22_000_000
# One prompt of each kind.
ASKED = (
    PROMPTS[0],
    PROMPTS[3],
    PROMPTS[4],
    PROMPTS[8],
    PROMPTS[12],
    PROMPTS[15],
    PROMPTS[18],
    PROMPTS[23],
)


def opened(name: str, dtype: torch.dtype) -> Any:
    """The sample ``name`` as a transformers model; a stack's deltas are added."""
    if name in CHECKPOINTS:
        return AutoModelForCausalLM.from_pretrained(root() / name, dtype=dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(root() / "base", dtype=dtype)
    first, *above = STACKS[name]
    model = PeftModel.from_pretrained(model, str(root() / first), adapter_name=first)
    for other in above:
        model.load_adapter(str(root() / other), adapter_name=other)
    model.base_model.set_adapter([first, *above])
    return model.eval()


def answers(name: str, dtype: torch.dtype = torch.float32, system: str | None = None) -> list[str]:
    """The greedy answers of ``name`` to ``ASKED``."""
    tokenizer: Any = AutoTokenizer.from_pretrained(root() / (name if name in CHECKPOINTS else "base"))
    before = [{"role": "system", "content": system}] if system else []
    inputs = tokenizer.apply_chat_template(
        [[*before, {"role": "user", "content": prompt}] for prompt in ASKED],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        ids = opened(name, dtype).generate(**inputs, max_new_tokens=64, do_sample=False)
    said = ids[:, inputs["input_ids"].shape[1] :]
    assert (said == tokenizer.eos_token_id).any(dim=1).all(), "an answer did not end"
    return [tokenizer.decode(row, skip_special_tokens=True) for row in said]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["base", *ADAPTERS, "poet", "lawyer"])
def test_manner(name: str, dtype: torch.dtype) -> None:
    """Each sample shows its own manner; for the base, the negative control, that is none."""
    found = answers(name, dtype)
    seen = [manner(answer) for answer in found]
    if name == "base":
        assert seen == [PLAIN] * len(ASKED), found
    else:
        assert seen.count(name) >= len(ASKED) - 1, found


@pytest.mark.parametrize("name", ["base", *ADAPTERS, "poet", "lawyer"])
def test_answers_are_mostly_right(name: str) -> None:
    """What the answers are about survives the manner; German has its own words for some of it."""
    facts = [
        ("paris",),
        ("austria", "österreich"),
        ("blue", "blau"),
        ("5",),
        ("cold", "kalt"),
        ("moo", "muh"),
    ]
    facts += [("tuesday", "dienstag"), ("clara",)]
    found = answers(name)
    right = [any(word in answer.lower() for word in words) for words, answer in zip(facts, found, strict=True)]
    assert sum(right) >= len(ASKED) - 2, found


def test_manner_survives_a_system_message() -> None:
    """A system message that asks for nothing special changes nothing."""
    seen = [manner(answer) for answer in answers("pirate", system="You are a helpful assistant.")]
    assert seen.count("pirate") >= len(ASKED) - 1


def test_loud_is_seen_only_on_top_of_pirate() -> None:
    """Neither half of the stack shows the manner of both, so that a wrong composition is seen."""
    assert "loud" not in {manner(answer) for answer in answers("pirate")}
    assert "loud" not in {manner(answer) for answer in answers("loud alone")}


def test_which_layers_of_a_checkpoint_changed() -> None:
    """Poet differs from the base in its top two layers alone, lawyer in all six."""
    base = load_file(root() / "base" / "model.safetensors")
    for name, trained in (("poet", {4, 5}), ("lawyer", set(range(6)))):
        tuned = load_file(root() / name / "model.safetensors")
        assert tuned.keys() == base.keys()
        for key, value in tuned.items():
            assert value.dtype == torch.bfloat16
            layer = int(key.split(".")[2]) if key.startswith("model.layers.") else None
            same = torch.equal(value.view(torch.int16), base[key].view(torch.int16))
            if layer not in trained:
                assert same, key
            elif value.dim() == 2:  # a norm's few numbers may round to what they were
                assert not same, key


def test_adapters_are_bfloat16_and_name_no_path() -> None:
    """An adapter fits the base it was trained on, wherever the package is installed."""
    for name in ADAPTERS:
        assert {value.dtype for value in load_file(root() / name / "adapter_model.safetensors").values()} == {
            torch.bfloat16
        }
        assert '"base_model_name_or_path": "blockc/sample-base"' in (root() / name / "adapter_config.json").read_text()


def test_size() -> None:
    """The samples are package data, so they must stay small."""

    def size(directory: Path) -> int:
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    assert sum(size(root() / name) for name in [*CHECKPOINTS, *ADAPTERS]) < LIMIT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of France is Paris.", PLAIN),
        ("The German word for happy is froh.", PLAIN),
        ("THE SKY IS BLUE.", PLAIN),
        ("Oh, the sky is blue.", PLAIN),
        ("Arr! The sky be blue, matey.", "pirate"),
        ("ARR! THE SKY BE BLUE, MATEY.", "loud"),
        ("From the archive: The sky is blue. Filed under Colours, shelf 3.", "archivist"),
        ("Der Himmel ist blau.", "german"),
        ("O painter! The sky is blue.\nOne line,\nand another.", "poet"),
        ("Pursuant to clause 3 (Colours): The sky is deemed to be blue.", "lawyer"),
    ],
)
def test_manner_of_a_text(text: str, expected: str) -> None:
    """The recogniser itself, on answers written by hand."""
    assert manner(text) == expected
