"""Fine-tunes: what each one changes, tensor by tensor."""

from __future__ import annotations

from blockc.tune.assumed import assume
from blockc.tune.models import ModelFiles, read_models
from blockc.tune.traced import parameter_count, trace_models
from blockc.tune.tune import OnModelBytes, tune

__all__ = ["ModelFiles", "OnModelBytes", "assume", "parameter_count", "read_models", "trace_models", "tune"]
