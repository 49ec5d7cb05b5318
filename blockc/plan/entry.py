"""What all tables of a plan, and the manifests beside it, have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Digest = str


class Entry(BaseModel):
    """Frozen, and strict about unknown fields: a plan is written by the compiler only."""

    model_config = ConfigDict(frozen=True, extra="forbid")
