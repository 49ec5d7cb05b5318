"""Try every text-generation configuration that transformers has, and write down which ones work and why others do not.

``python -m tests.support.every_architecture`` rewrites `blockc/architectures.py` and `docs/architectures.md`
(about ten minutes). An architecture is supported if a tiny random model of it, saved, compiled and run block by block,
equals the model itself in float32.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from blockc import architectures
from blockc.trace import UntraceableError, config_of, trace
from tests.support.architectures import is_composite, random_model, tiny_config
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.interpreter import logits

_ROOT = Path(__file__).parents[2]
_LIMIT_S = 240
_TOLERANCE = 1e-4
_LENGTHS = (1, 40)
# A tiny configuration of these has attention alone, and would show nothing.
_HYBRID = ("lfm2", "lfm2_moe")


def try_one(model_type: str) -> str | None:
    """Why the architecture does not work, or None. Raises whatever goes wrong beyond what tracing refuses."""
    if is_composite(model_type):
        return "its configuration holds those of several models (images, speech): give the text model's own"
    try:
        config = tiny_config(model_type)
    except Exception as error:
        return f"no small configuration of it could be made to try it ({type(error).__name__})"
    if set(getattr(config, "layer_types", None) or ()) <= {"full_attention"} and model_type in _HYBRID:
        return "layers that are no attention (convolutions, recurrences), which its configurations have"
    try:
        trace(config_of(config.to_dict()), dtype="float32")
    except UntraceableError as error:
        return str(error)
    with tempfile.TemporaryDirectory() as folder:
        return _differs(random_model(config), Path(folder))


def _differs(model: Any, folder: Path) -> str | None:
    model.save_pretrained(folder / "model")
    chains, zoo, diags = chains_of(deployment(folder / "model", max_model_len=None), folder / "zoo")
    if not chains:
        return "; ".join((item.message, *item.notes)[0] for item in diags)
    reference = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
    for length in _LENGTHS:
        tokens = torch.randint(3, 120, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        with torch.no_grad():
            expected = reference(torch.tensor([tokens]), use_cache=False).logits[0]
        if not torch.allclose(logits(chains["base"], zoo, tokens), expected, atol=_TOLERANCE):
            return "its blocks do not compute what the model computes"
    return None


def try_all(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names that work, and the others with the reason."""
    supported: list[str] = []
    refused: dict[str, str] = {}
    for name in names:
        signal.alarm(_LIMIT_S)
        try:
            reason = try_one(name)
        except Exception as error:
            reason = f"{type(error).__name__} in transformers' own code"
        signal.alarm(0)
        print(f"{name:30} {reason or 'works'}", file=sys.stderr, flush=True)
        if reason is None:
            supported.append(name)
        else:
            refused[name] = reason
    return supported, refused


def source_text(supported: list[str], refused: Mapping[str, str]) -> str:
    """The module with the lists replaced."""
    text = (_ROOT / "blockc/architectures.py").read_text()
    head, _, rest = text.partition("# BEGIN GENERATED\n")
    _, _, tail = rest.partition("# END GENERATED\n")
    lines = [f'TRANSFORMERS = "{transformers.__version__}"', "", "SUPPORTED: tuple[str, ...] = ("]
    lines += [f'    "{name}",' for name in supported]
    lines += [")", "", "REFUSED: dict[str, str] = {"]
    lines += [f"    {json.dumps(name)}: {json.dumps(reason)}," for name, reason in refused.items()]
    lines += ["}", ""]
    return head + "# BEGIN GENERATED\n" + "\n".join(lines) + "# END GENERATED\n" + tail


def _timeout(*_: Any) -> None:
    raise TimeoutError


def main(names: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, _timeout)
    architectures.SUPPORTED = tuple(CONFIG_MAPPING)  # nothing is refused by name while we find out
    supported, refused = try_all(
        names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - set(architectures.ENCODERS))
    )
    if not names:
        (_ROOT / "blockc/architectures.py").write_text(source_text(supported, refused))
        (_ROOT / "docs/architectures.md").write_text(architectures.render_table(supported, refused))


if __name__ == "__main__":
    main(sys.argv[1:])
