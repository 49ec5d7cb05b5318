"""Compile the sample fleet from Python and look at what is shared.

python examples/01_compile.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from blockc.compiler import compile_deployment
from blockc.diag import Diagnostics
from blockc.render import format_bytes, render_plan
from blockc.samples import root
from blockc.spec import load
from blockc.zoo import Zoo


def main() -> None:
    deployment = load(root() / "fleet.blk", environ=os.environ).require()
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_deployment(deployment, zoo=Zoo(Path(folder) / "zoo", create=True), diags=Diagnostics())
    print(render_plan(compiled.plan))
    for name, chain in sorted(compiled.models.items()):
        base = compiled.models["sample"].path.blocks
        equal = sum(ours.digest == theirs.digest for ours, theirs in zip(chain.path.blocks, base, strict=True))
        sides = format_bytes(sum(side.nbytes for side in chain.sides)) if chain.sides else "none"
        print(f"{name:<10} {equal:>2} of {len(base)} blocks are the base's; adapters: {sides}")


if __name__ == "__main__":
    main()
