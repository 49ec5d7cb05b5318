"""Deployment -> chains, with every diagnostic."""

from __future__ import annotations

from pathlib import Path

from blockc.diag import Diagnostics
from blockc.graph import Chain
from blockc.spec.deployment import Deployment
from blockc.tune import read_models, trace_models, tune
from blockc.zoo import Zoo


def chains_of(plan: Deployment, root: Path) -> tuple[dict[str, Chain], Zoo, Diagnostics]:
    zoo = Zoo(root, create=True)
    diags = Diagnostics()
    files = read_models(plan, diags=diags)
    return tune(files, trace_models(files, diags=diags), zoo=zoo, diags=diags), zoo, diags
