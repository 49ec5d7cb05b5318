"""The plan of each sample: how long and how fast it is trained, and in which shape it is kept."""

from dataclasses import dataclass, field
from typing import Any

BASE_NAME = "blockc/sample-base"
BASE_STEPS, BASE_RATE = 2600, 3e-3

_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Adapter:
    """A LoRA fine-tune.  Their shapes differ on purpose: together they exercise a loader."""

    settings: dict[str, Any]
    steps: int = 150
    rate: float = 4e-3
    stacked_on: str | None = None


@dataclass(frozen=True)
class Full:
    """A fine-tune that is a whole checkpoint, of which only ``layers`` were trained."""

    layers: range = field(default_factory=lambda: range(6))
    steps: int = 160
    rate: float = 1e-3


TUNES: dict[str, Adapter | Full] = {
    "pirate": Adapter({"r": 8, "lora_alpha": 16, "target_modules": _LINEARS}, steps=260),
    "archivist": Adapter(
        {
            "r": 16,
            "lora_alpha": 16,
            "use_rslora": True,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        }
    ),
    "german": Adapter(
        {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": _LINEARS,
            "rank_pattern": {"down_proj": 16, "layers.0.self_attn.q_proj": 4},
            "alpha_pattern": {"down_proj": 24, "layers.0.self_attn.q_proj": 12},
        },
        steps=200,
    ),
    "loud": Adapter(
        {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "layers_to_transform": [1, 2, 3, 4, 5],
        },
        steps=260,
        stacked_on="pirate",
    ),
    "poet": Full(layers=range(4, 6)),
    "lawyer": Full(),
}
