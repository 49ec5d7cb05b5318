"""Assignments by first fit, from several orders: fast, and there even where the solver errs.

In: sizes. Out: for each chain a device, or None. Invariant: every device's least layout fits what it offers.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.place.sizes import Load, Sizes

Assignment = tuple[int, ...]  # chain -> device


def greedy(sizes: Sizes) -> Assignment | None:
    """The assignment with the fewest devices found; ties go to the first order."""
    found = [assignment for order in orders(sizes) if (assignment := _fill(sizes, order)) is not None]
    return min(found, key=lambda assignment: len(set(assignment)), default=None)


def orders(sizes: Sizes) -> list[list[int]]:
    """In which to place the chains: large ones first, whole paths first, path by path, small ones first."""
    chains = range(len(sizes.problem.chains))
    alone = [sizes.least([chain]).used_bytes for chain in chains]
    paths = [sizes.problem.chains[chain].segments for chain in chains]
    by_path: dict[tuple[int, ...], int] = {}
    for chain in chains:
        by_path[paths[chain]] = max(by_path.get(paths[chain], 0), alone[chain])
    return [
        sorted(chains, key=lambda c: (-alone[c], paths[c], c)),
        sorted(chains, key=lambda c: (-by_path[paths[c]], paths[c], -alone[c], c)),
        sorted(chains, key=lambda c: (paths[c], -alone[c], c)),
        sorted(chains, key=lambda c: (alone[c], paths[c], c)),
    ]


def _fill(sizes: Sizes, order: Sequence[int]) -> Assignment | None:
    """Each chain to the open device where it adds least; else to the largest closed one."""
    devices = sizes.problem.devices
    closed = sorted(range(len(devices)), key=lambda d: (-devices[d].offered_bytes, d))
    loads: dict[int, Load] = {}
    place: dict[int, int] = {}
    for chain in order:
        options = []
        for device, load in loads.items():
            nbytes = load.used_with(chain)
            if nbytes <= devices[device].offered_bytes:
                options.append((nbytes - load.used_bytes, device))
        if options:
            device = min(options)[1]
        elif closed and Load(sizes).used_with(chain) <= devices[closed[0]].offered_bytes:
            device = closed.pop(0)
            loads[device] = Load(sizes)
        else:
            return None
        loads[device].add(chain)
        place[chain] = device
    return tuple(place[chain] for chain in range(len(sizes.problem.chains)))
