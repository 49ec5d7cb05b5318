"""The problem as sums: what a set of chains takes on one device.

In: a problem. Out: :class:`Sizes`, with tensors merged into bundles that the same chains use, so that a bundle is
resident exactly if one of its chains is. In a cell of several devices all bytes are those of one of them: a problem of
shares, with the same arithmetic. Invariant: ``least`` of a set is the `Layout` with the fewest pages that let
one sequence of full length run at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from blockc.ir.layout import KvPages, Layout, ResidentTensor, gather_bytes, page_share, tensor_share
from blockc.place.problem import PlaceGroup, PlaceProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Tensors that the same chains use. ``turns``: they may take turns in memory."""

    chains: frozenset[int]
    nbytes: int
    turns: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes by chain; ``pages[c]``: KV group -> pages of one full-length sequence of chain c."""

    problem: PlaceProblem
    bundles: tuple[Bundle, ...]
    bundles_of: tuple[tuple[int, ...], ...]
    activation_bytes: tuple[int, ...]
    pages: tuple[dict[int, int], ...]

    def weights_bytes(self, chains: Iterable[int]) -> int:
        """Bytes of the tensors that these chains use and that are always there, each once."""
        return self._bundles_bytes(chains, turns=False)

    def blocks_bytes(self, chains: Iterable[int]) -> int:
        """Bytes of those that may take turns, as far as they are resident at once, at most."""
        return limited_blocks(self._bundles_bytes(chains, turns=True), self.problem)

    def _bundles_bytes(self, chains: Iterable[int], *, turns: bool) -> int:
        used = {bundle for chain in chains for bundle in self.bundles_of[chain]}
        return sum(self.bundles[index].nbytes for index in used if self.bundles[index].turns == turns)

    def sides_bytes(self, chains: Iterable[int]) -> int:
        """Bytes of the sides of these chains that are resident at once, at most."""
        return limited(sum(self.problem.chains[chain].side_bytes for chain in chains), self.problem)

    def least_pages(self, chains: Iterable[int]) -> dict[int, int]:
        """For each KV group of these chains the pages of the longest single sequence."""
        least: dict[int, int] = {}
        for chain in chains:
            for group, pages in self.pages[chain].items():
                least[group] = max(least.get(group, 0), pages)
        return dict(sorted(least.items()))

    def layout(self, chains: Sequence[int], pages: dict[int, int], *, reserve_bytes: int) -> Layout:
        """Bytes of a device that holds these chains with these pages."""
        groups = self.problem.groups
        pools = [kv_pages(groups[group], count) for group, count in pages.items()]
        return Layout(
            weights_bytes=self.weights_bytes(chains),
            blocks_bytes=self.blocks_bytes(chains),
            sides_bytes=self.sides_bytes(chains),
            kv_bytes=sum(pool.pages * pool.page_bytes for pool in pools),
            workspace_bytes=max((self.activation_bytes[chain] for chain in chains), default=0)
            + gather_bytes(pools, spare_bytes=self.problem.spare_bytes),
            reserve_bytes=reserve_bytes,
        )

    def least(self, chains: Sequence[int]) -> Layout:
        """The smallest layout in which each of these chains can be served, without a reserve."""
        return self.layout(chains, self.least_pages(chains), reserve_bytes=0)


def limited(sides_bytes: int, problem: PlaceProblem) -> int:
    """What of sides of that size is resident at once, at most."""
    limit = problem.sides_limit_bytes
    return sides_bytes if limit is None else min(limit, sides_bytes)


def limited_blocks(turning_bytes: int, problem: PlaceProblem) -> int:
    """What of blocks that may take turns, so many in all, is resident at once at most, and what reading them takes."""
    limit = problem.blocks_limit_bytes
    if limit is None or not turning_bytes:
        return turning_bytes
    return min(limit, turning_bytes + problem.blocks_reading_bytes)


class Load:
    """The least layout of a growing set of chains, kept up to date in time proportional to the chain that is added."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._bundles: set[int] = set()
        self._pages: dict[int, int] = {}
        self._kv_bytes = 0
        self._weights_bytes = 0
        self._turning_bytes = 0  # of all, resident or not
        self._sides_bytes = 0  # of all, resident or not
        self._activation_bytes = 0
        self._gather_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Equals ``Sizes.least`` of the chains."""
        problem = self._sizes.problem
        held = limited(self._sides_bytes, problem) + limited_blocks(self._turning_bytes, problem)
        return self._weights_bytes + held + self._kv_bytes + self._activation_bytes + self._gather_bytes

    def used_with(self, chain: int) -> int:
        """What ``used_bytes`` would be with one more chain."""
        weights, turning, sides, *others = self._parts_with(chain)
        problem = self._sizes.problem
        return weights + limited_blocks(turning, problem) + limited(sides, problem) + sum(others)

    def add(self, chain: int) -> None:
        """Take a chain in."""
        sizes = self._sizes
        self._weights_bytes, self._turning_bytes, self._sides_bytes, *others = self._parts_with(chain)
        self._kv_bytes, self._activation_bytes, self._gather_bytes = others
        self._bundles.update(sizes.bundles_of[chain])
        for group, pages in sizes.pages[chain].items():
            self._pages[group] = max(self._pages.get(group, 0), pages)

    def _parts_with(self, chain: int) -> tuple[int, int, int, int, int, int]:
        sizes = self._sizes
        sides = self._sides_bytes + sizes.problem.chains[chain].side_bytes
        weights, turning = self._weights_bytes, self._turning_bytes
        for index in sizes.bundles_of[chain]:
            if index not in self._bundles:
                bundle = sizes.bundles[index]
                weights += 0 if bundle.turns else bundle.nbytes
                turning += bundle.nbytes if bundle.turns else 0
        kv, gather = self._kv_bytes, self._gather_bytes
        for group, pages in sizes.pages[chain].items():
            pool = kv_pages(sizes.problem.groups[group], pages)
            kv += max(0, pages - self._pages.get(group, 0)) * pool.page_bytes
            gather = max(gather, gather_bytes([pool], spare_bytes=sizes.problem.spare_bytes))
        return weights, turning, sides, kv, max(self._activation_bytes, sizes.activation_bytes[chain]), gather


def kv_pages(group: PlaceGroup, pages: int) -> KvPages:
    """A group's pages as the layout counts them."""
    return KvPages(pages=pages, page_bytes=group.page_bytes, layers=group.layers)


def sizes_of(problem: PlaceProblem, *, width: int = 1, max_model_len: int | None = None) -> Sizes:
    """Reduce a problem to what a device of a cell of ``width`` holds. ``max_model_len`` caps that of every chain.

    Activations count in full on every device: hidden states are on each, and only what lies between two matrices of
    a block is split.
    """
    users: dict[ResidentTensor, set[int]] = {}
    for index, chain in enumerate(problem.chains):
        for segment in chain.segments:
            for tensor in problem.segments[segment].tensors:
                users.setdefault(tensor, set()).add(index)
    turning = {tensor for segment in problem.segments if segment.turn is not None for tensor in segment.turn.tensors}
    totals: dict[tuple[tuple[int, ...], bool], int] = {}
    for tensor, chains in users.items():
        key = tuple(sorted(chains)), tensor in turning
        totals[key] = totals.get(key, 0) + tensor_share(tensor, width)
    bundles = tuple(
        Bundle(chains=frozenset(chains), nbytes=totals[chains, turns], turns=turns) for chains, turns in sorted(totals)
    )
    bundles_of: list[list[int]] = [[] for _ in problem.chains]
    for number, bundle in enumerate(bundles):
        for index in bundle.chains:
            bundles_of[index].append(number)
    return Sizes(
        problem=_shared(problem, width),
        bundles=bundles,
        bundles_of=tuple(map(tuple, bundles_of)),
        activation_bytes=tuple(
            max((problem.segments[segment].activation_bytes for segment in chain.segments), default=0)
            for chain in problem.chains
        ),
        pages=tuple(
            {
                group: -(-min(chain.max_model_len, max_model_len or chain.max_model_len) // page.page_tokens)
                for group in chain.groups
                for page in (problem.groups[group],)
            }
            for chain in problem.chains
        ),
    )


def resized(sizes: Sizes, problem: PlaceProblem, width: int) -> Sizes:
    """The sizes for a problem with the same models, segments and groups."""
    return replace(sizes, problem=_shared(problem, width))


def _shared(problem: PlaceProblem, width: int) -> PlaceProblem:
    """Sides and pages as one device of a cell has them. Both matrices of a side are split, as their linear is."""
    if width == 1:
        return problem
    return replace(
        problem,
        chains=tuple(replace(chain, side_bytes=-(-chain.side_bytes // width)) for chain in problem.chains),
        groups=tuple(
            replace(group, page_bytes=page_share(group.page_bytes, kv_heads=group.kv_heads, devices=width))
            for group in problem.groups
        ),
    )
