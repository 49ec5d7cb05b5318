"""``blockc zoo COMMAND``: what a zoo holds and for whom, whether it is intact, and what may go."""

from __future__ import annotations

from blockc.cli.zoo.commands import register

__all__ = ["register"]
