"""How many slots each bank of sides gets on one device, where not all of its fine-tunes fit.

In: the chains on a device and what their sides may take of it. Out: slots per bank; none where all stay resident, with
a slot of its own for each. Invariant: every bank has a slot, none has more than fine-tunes, and with those that are
read ahead the limit holds. Banks get slots in proportion to their fine-tunes: which of them are busy is seen only when
they are served.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from blockc.diag import Diagnostics
from blockc.ir.layout import READ_AHEAD, format_bytes
from blockc.place.problem import PlaceProblem


def share_slots(problem: PlaceProblem, chains: Sequence[int]) -> dict[int, int]:
    """Bank -> slots. The least slots of all banks must fit (`check_slots`)."""
    limit, held = problem.sides_limit_bytes, [problem.chains[chain] for chain in chains]
    if limit is None or sum(chain.side_bytes for chain in held) <= limit:
        return {}
    members = Counter(chain.bank for chain in held if chain.bank is not None)
    sizes = {chain.bank: chain.side_bytes for chain in held if chain.bank is not None}
    steps = max(members.values())

    def slots(step: int) -> dict[int, int]:
        return {bank: max(1, members[bank] * step // steps) for bank in sorted(members)}

    def nbytes(step: int) -> int:
        return sum(count * sizes[bank] for bank, count in slots(step).items())

    room = limit - _ahead_bytes(problem, chains)
    return slots(bisect_right(range(steps + 1), room, key=nbytes) - 1)


def slot_bytes(problem: PlaceProblem, chains: Sequence[int], slots: dict[int, int]) -> int:
    """Bytes of all slots and of what is read ahead; without slots, of all sides."""
    held = [problem.chains[chain] for chain in chains]
    if not slots:
        return sum(chain.side_bytes for chain in held)
    sizes = {chain.bank: chain.side_bytes for chain in held}
    return sum(count * sizes[bank] for bank, count in slots.items()) + _ahead_bytes(problem, chains)


def _ahead_bytes(problem: PlaceProblem, chains: Sequence[int]) -> int:
    return READ_AHEAD * max(problem.chains[chain].side_bytes for chain in chains)


def check_slots(problem: PlaceProblem, diags: Diagnostics) -> bool:
    """Report BC401 where a limit leaves some bank without a slot."""
    sizes = {chain.bank: chain.side_bytes for chain in problem.chains if chain.bank is not None}
    limit, every = problem.sides_limit_bytes, range(len(problem.chains))
    if limit is None or sum(chain.side_bytes for chain in problem.chains) <= limit:
        return True
    needed = sum(sizes.values()) + _ahead_bytes(problem, every)
    if needed <= limit:
        return True
    largest = max(problem.chains, key=lambda chain: chain.side_bytes)
    each = f"one of each of {len(sizes)} kinds" if len(sizes) > 1 else "one"
    diags.report(
        "BC401",
        f"fine-tunes, {each} and {READ_AHEAD} read ahead, take {format_bytes(needed)} of {format_bytes(limit)}",
        at=problem.sides_limit_span,
        notes=(f"the largest is `{largest.label}` with {format_bytes(largest.side_bytes)}",),
        help=f"raise `fine_tunes` of the policy's `residency` to {format_bytes(needed)} or more",
    )
    return False
