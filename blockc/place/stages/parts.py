"""What consecutive blocks of some chains take of the devices of a stage: bytes and seconds.

In: a problem, chains whose paths have equally many blocks, how many devices split a stage. Out: layouts and times of
parts. A page has the layers of its stage on each stage, so that all stages have the same pages. Fine-tunes count as if
every block had as much of them. Invariant: parts that cover the path add up to its cell, but for vectors, tied
tensors and the hidden states of a step that has arrived and not begun.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from blockc.cost import ChainWork, DeviceRates, SegmentWork
from blockc.cost.work import part_of_sides, segment_work
from blockc.ir.layout import KvPages, Layout, ResidentTensor, gather_bytes, page_share, tensor_share
from blockc.place.problem import PlaceChain, PlaceLoad, PlaceProblem
from blockc.place.traffic.times import ChainTimes, chain_times, sides_sweep_s, sweep_s


class Parts:
    """``chains`` of a problem on stages of ``width`` devices. Sums over blocks are kept, so a part is quickly told."""

    def __init__(self, problem: PlaceProblem, chains: tuple[int, ...], width: int) -> None:
        self.problem = problem
        self.chains = chains
        self.width = width
        self._own = tuple(problem.chains[chain] for chain in chains)
        self.blocks = len(self._own[0].blocks)
        self.least_pages = self._least_pages()
        self._layers = tuple(_layers(chain) for chain in self._own)
        number: dict[ResidentTensor, int] = {}
        self._tensors = tuple(
            frozenset(number.setdefault(t, len(number)) for chain in self._own for t in _sorted_tensors(chain, place))
            for place in range(self.blocks)
        )
        self._shares = tuple(tensor_share(tensor, width) for tensor in number)
        self._digests = tuple(tensor.ref.digest for tensor in number)
        self._activations = tuple(
            max(chain.blocks[place].activation_bytes for chain in self._own) for place in range(self.blocks)
        )
        self._held: dict[int, list[tuple[int, int]]] = {}
        self._sweeps: dict[DeviceRates, list[float]] = {}
        self._times: dict[tuple[int, DeviceRates], list[tuple[float, float]]] = {}

    def _least_pages(self) -> dict[int, int]:
        """By KV group those of the longest sequence."""
        found: dict[int, int] = {}
        for own in self._own:
            for group in own.groups:
                pages = -(-own.max_model_len // self.problem.groups[group].page_tokens)
                found[group] = max(found.get(group, 0), pages)
        return dict(sorted(found.items()))

    def layers(self, first: int, stop: int) -> dict[int, int]:
        """By KV group, those whose attention is in a part: the most of any chain."""
        found: dict[int, int] = {}
        for sums in self._layers:
            for group, own in sums.items():
                if count := own[stop] - own[first]:
                    found[group] = max(found.get(group, 0), count)
        return dict(sorted(found.items()))

    def layout(self, first: int, stop: int, pages: Mapping[int, int], *, reserve_bytes: int = 0) -> Layout:
        """Of each device of a stage with these blocks, and so many pages by group."""
        weights_bytes, activation_bytes = self._resident(first)[stop - first - 1]
        pools = []
        for group, layers in self.layers(first, stop).items():
            entry = self.problem.groups[group]
            held_bytes = entry.page_bytes // entry.layers * layers
            own_bytes = page_share(held_bytes, kv_heads=entry.kv_heads, devices=self.width)
            pools.append(KvPages(pages=pages.get(group, 0), page_bytes=own_bytes, layers=layers))
        sides = (part_of_sides(chain.side_bytes, self.blocks, range(first, stop)) for chain in self._own)
        waiting_bytes = self.problem.max_batched_tokens * self.state_bytes(first) if first else 0
        return Layout(
            weights_bytes=weights_bytes,
            sides_bytes=sum(-(-nbytes // self.width) for nbytes in sides),
            kv_bytes=sum(pool.pages * pool.page_bytes for pool in pools),
            workspace_bytes=activation_bytes + waiting_bytes + gather_bytes(pools),
            reserve_bytes=reserve_bytes,
        )

    def _resident(self, first: int) -> list[tuple[int, int]]:
        """Weights and activations of the parts that begin there, by how many blocks they have."""
        if first not in self._held:
            seen: set[int] = set()
            weights_bytes = activation_bytes = 0
            found = []
            for place in range(first, self.blocks):
                new = self._tensors[place] - seen
                seen |= new
                weights_bytes += sum(self._shares[tensor] for tensor in new)
                activation_bytes = max(activation_bytes, self._activations[place])
                found.append((weights_bytes, activation_bytes))
            self._held[first] = found
        return self._held[first]

    def missing_bytes(self, first: int, stop: int, had: frozenset[str]) -> int:
        """Weights of a part that each of its devices has to load. ``had``: digests of what lies there."""
        used = set[int]().union(*self._tensors[first:stop])
        return sum(self._shares[tensor] for tensor in used if self._digests[tensor] not in had)

    def state_bytes(self, first: int) -> int:
        """Of a token's hidden states, as they come to the block ``first``."""
        return max(chain.blocks[first].state_bytes for chain in self._own)

    def sweep_s(self, first: int, stop: int, rates: DeviceRates) -> float:
        """Reading all of a part once: every block of any chain of which anything is expected, and their fine-tunes."""
        if rates not in self._sweeps:
            self._sweeps[rates] = _sums([self._block_sweep_s(place, rates) for place in range(self.blocks)])
        sums = self._sweeps[rates]
        return sums[stop] - sums[first]

    def _block_sweep_s(self, place: int, rates: DeviceRates) -> float:
        chains = self.problem.chains
        loaded = [chain for chain in self.chains if chains[chain].load is not None] or self.chains
        blocks = [chains[chain].blocks[place] for chain in loaded]
        there = {block.digest: block.work for block in blocks}
        seconds = sum(sweep_s(segment_work([work]), rates) for _, work in sorted(there.items()) if work is not None)
        return seconds + sum(sides_sweep_s(self._work(chain, place)[0], rates) for chain in loaded)

    def times(self, chain: int, first: int, stop: int, rates: DeviceRates) -> ChainTimes:
        """Of a chain's requests in a part: of its blocks one by one, and of the rows of each step once."""
        load = self.problem.chains[chain].load
        assert load is not None, "times are of chains of which something is expected"
        key = chain, rates
        if key not in self._times:
            free = replace(rates, row_s=0.0)
            own = [self._block_times(chain, load, place, free) for place in range(self.blocks)]
            prompts, tokens = _sums([item.prompt_s for item in own]), _sums([item.token_s for item in own])
            self._times[key] = list(zip(prompts, tokens, strict=True))
        sums = self._times[key]
        chunks = math.ceil(float(load.prompt_tokens) / self.problem.max_batched_tokens)
        return ChainTimes(
            prompt_s=sums[stop][0] - sums[first][0] + chunks * rates.row_s,
            token_s=sums[stop][1] - sums[first][1] + rates.row_s,
        )

    def _block_times(self, chain: int, load: PlaceLoad, place: int, rates: DeviceRates) -> ChainTimes:
        work, segment = self._work(chain, place)
        return chain_times(work, (segment,), rates, load, step_tokens=self.problem.max_batched_tokens)

    def _work(self, chain: int, place: int) -> tuple[ChainWork, SegmentWork]:
        """One block as a segment; a fine-tune computes twice what it reads for each token, as in `chain_work`."""
        own = self.problem.chains[chain]
        block = own.blocks[place]
        part = range(place, place + 1)
        whole = None if self.problem.work is None else self.problem.work.chains[chain]
        work = ChainWork(
            segments=(0,),
            attention=block.attention,
            side_bytes=part_of_sides(own.side_bytes, self.blocks, part),
            side_token_flops=0 if whole is None else part_of_sides(whole.side_token_flops, self.blocks, part),
        )
        return work, segment_work([] if block.work is None else [block.work])


def _sorted_tensors(chain: PlaceChain, place: int) -> list[ResidentTensor]:
    """Of one block, in an order that no hash decides."""
    return sorted(chain.blocks[place].tensors, key=lambda tensor: (tensor.ref.digest, tensor.form))


def _layers(chain: PlaceChain) -> dict[int, list[int]]:
    """By KV group: its layers before each block."""
    return {
        group: [0, *accumulate(block.groups.count(group) for block in chain.blocks)]
        for group in sorted({group for block in chain.blocks for group in block.groups})
    }


def _sums(items: Sequence[float]) -> list[float]:
    return [0.0, *accumulate(items)]
