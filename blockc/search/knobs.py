"""What of a policy may be turned without another model or other answers: limits of a step, pages, residency.

In: a policy. Out: its knobs with the values that are tried, and how they are written in a spec. Invariant: the spec's
own value is always among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from blockc.spec.deployment import Policy

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """``name``: as the spec has it, with its block. ``values``: in order, for neighbours are tried next."""

    name: str
    read: Callable[[Policy], int]
    turned: Callable[[Policy, int], Policy]
    values: tuple[int, ...]

    def with_own(self, policy: Policy) -> Knob:
        """With the policy's value among those that are tried."""
        return replace(self, values=tuple(sorted({*self.values, self.read(policy)})))


KNOBS: Final = (
    Knob(
        name="batching.max_num_seqs",
        read=lambda policy: policy.max_rows,
        turned=lambda policy, value: replace(policy, max_rows=value),
        values=(8, 16, 32, 64, 128, 256, 512),
    ),
    Knob(
        name="batching.max_batched_tokens",
        read=lambda policy: policy.max_batched_tokens,
        turned=lambda policy, value: replace(policy, max_batched_tokens=value),
        values=(256, 512, 1024, 2048, 4096, 8192),
    ),
    Knob(
        name="kv.page",
        read=lambda policy: policy.kv_page_tokens,
        turned=lambda policy, value: replace(policy, kv_page_tokens=value),
        values=(8, 16, 32, 64),
    ),
)


def free_knobs(policy: Policy) -> tuple[Knob, ...]:
    """Those of a policy; the sizes of a residency where it has them, from a quarter to four times of it."""
    own = list(KNOBS)
    sides, blocks = policy.sides_limit_bytes, policy.blocks_limit_bytes
    if sides is not None:
        own.append(
            Knob(
                name="residency.fine_tunes",
                read=lambda policy: policy.sides_limit_bytes or 0,
                turned=lambda policy, value: replace(policy, sides_limit_bytes=value),
                values=_around(sides),
            )
        )
    if blocks is not None:
        own.append(
            Knob(
                name="residency.blocks",
                read=lambda policy: policy.blocks_limit_bytes or 0,
                turned=lambda policy, value: replace(policy, blocks_limit_bytes=value),
                values=_around(blocks),
            )
        )
    return tuple(knob.with_own(policy) for knob in own)


def _around(nbytes: int) -> tuple[int, ...]:
    return tuple(max(1, nbytes * quarters // 4) for quarters in (1, 2, 4, 8, 16))


def written(policy: Policy, given: Policy) -> str:
    """The block of a spec that says what of ``policy`` differs from ``given``; empty: nothing does."""
    blocks: dict[str, list[str]] = {}
    for knob in free_knobs(given):
        if knob.read(policy) != knob.read(given):
            block, _, attribute = knob.name.partition(".")
            blocks.setdefault(block, []).append(f"{attribute} = {value_text(knob.name, knob.read(policy))}")
    if not blocks:
        return ""
    inner = "  ".join(f"{block} {{ {'  '.join(attributes)} }}" for block, attributes in blocks.items())
    return f"policy {{ {inner} }}"


def value_text(name: str, value: int) -> str:
    """A knob's value as a spec has it."""
    if name == "kv.page":
        return f"{value}tok"
    if name.startswith("residency."):
        return f"{value // _MIB}MiB" if value % _MIB == 0 else f"{value}B"
    return str(value)
