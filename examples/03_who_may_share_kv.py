"""Which layers' keys and values two fine-tunes have in common, as the compiler proves it.

python examples/03_who_may_share_kv.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from blockc.diag import Diagnostics
from blockc.samples import root
from blockc.spec import load
from blockc.tune import read_models, trace_models, tune
from blockc.unify import kv_domains
from blockc.zoo import Zoo


def main() -> None:
    deployment = load(root() / "fleet.blk", environ=os.environ).require()
    diags = Diagnostics()
    with tempfile.TemporaryDirectory() as folder:
        files = read_models(deployment, diags=diags)
        zoo = Zoo(Path(folder) / "zoo", create=True)
        chains = tune(files, trace_models(files, diags=diags), zoo=zoo, diags=diags)
    diags.raise_if_errors()
    domains = {name: kv_domains(chain) for name, chain in sorted(chains.items())}
    names = list(domains)
    print("layers whose keys and values are equal for equal tokens, of", len(domains[names[0]]))
    print(" " * 11 + " ".join(f"{name[:9]:>9}" for name in names))
    for left in names:
        shared = [
            sum(ours == theirs for ours, theirs in zip(domains[left], domains[right], strict=True)) for right in names
        ]
        print(f"{left:<11}" + " ".join(f"{count:>9}" for count in shared))


if __name__ == "__main__":
    main()
