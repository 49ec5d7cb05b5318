"""The plan made ready to run: programs, weights, caches and sides, segment by segment.

In: a plan and a zoo. Out: :class:`LoadedModel`. Invariant: every problem of the plan or its files is a
:class:`DiagnosticError` here, and not a fault later; one fine-tune that fails disables its own chain only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from blockc.diag import refuse
from blockc.ir import (
    Bound,
    Op,
    Param,
    Structure,
    StructureError,
    TensorRef,
    Value,
    parse_structure,
    structure_digest,
)
from blockc.ir.banks import signature
from blockc.plan import BlockEntry, ChainEntry, ExecutionPlan, segment_blocks, turning_tensors
from blockc.zoo import Zoo
from blockc_runtime.executor.batch import RowLimits
from blockc_runtime.executor.manifests import read_manifests
from blockc_runtime.executor.program import LinearGroup, Program, build_program
from blockc_runtime.executor.residence import LimitedBank, ReadSides, Residence
from blockc_runtime.executor.segment import LoadedSegment, Occurrence
from blockc_runtime.executor.sides import (
    Bank,
    ChainSides,
    Content,
    Member,
    SegmentSites,
    build_banks,
    stack_members,
)
from blockc_runtime.executor.slabs import Slabs
from blockc_runtime.executor.slots import with_slots
from blockc_runtime.executor.stacks import check_apart
from blockc_runtime.executor.turning import Turning, TurningBlocks
from blockc_runtime.executor.weights import LinearRefs, WeightStore
from blockc_runtime.kv.pool import KvPool, kv_pools
from blockc_runtime.ops.dtypes import torch_dtype
from blockc_runtime.ops.table import op_table


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything a step needs. ``order[chain]``: where rows of a chain stand; ``disabled``: chain -> why.

    ``vectors``: chains that yield scores of classes, or an embedding. ``residence``: of those whose sides take turns in
    slots; ``turning``: the segments whose weights are there by turns. ``store``: of all other weights. ``kept_bytes``:
    of weights and sides those that another plan's model had made. ``reader``: the thread that reads what takes turns.
    """

    segments: Sequence[LoadedSegment]
    preludes: dict[str, Occurrence]
    pools: tuple[KvPool, ...]
    windows: tuple[int | None, ...]
    limits: tuple[RowLimits, ...]
    order: tuple[int, ...]
    group_place: tuple[dict[int, int], ...]
    disabled: dict[int, str]
    residence: Residence
    turning: TurningBlocks
    vectors: frozenset[int]
    store: WeightStore
    reader: ThreadPoolExecutor
    sides_bytes: int
    kept_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights that are always there."""
        return self.store.nbytes

    @property
    def mapped_bytes(self) -> int:
        """Bytes of all weights that are the zoo's own files."""
        return self.store.mapped_bytes + self.turning.mapped_bytes

    def close(self) -> None:
        """Read nothing more."""
        self.reader.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What another plan's model has on this device, for one to be loaded.

    ``banks`` by their content; ``pools`` by the KV group of the plan to be loaded that goes on in them.
    """

    store: WeightStore
    banks: Mapping[Content, Bank]
    pools: Mapping[int, KvPool]

    def only_of(self, plan: ExecutionPlan) -> Kept:
        """Let everything go that a plan does not have: to be called when nothing else uses it any more."""
        self.store.keep_only(tensor_digests(plan))
        manifests = {chain.sides for chain in plan.chains}
        return replace(self, banks={content: bank for content, bank in self.banks.items() if bank.of(manifests)})


def kept_of(model: LoadedModel, carried: Mapping[int, int]) -> Kept:
    """What there is to keep of a model. ``carried``: KV group of the plan to be loaded -> of this one."""
    return Kept(
        store=model.store,
        banks={bank.content: bank for segment in model.segments for bank in segment.banks if bank.content},
        pools={after: model.pools[before] for after, before in carried.items()},
    )


def tensor_digests(plan: ExecutionPlan) -> frozenset[str]:
    """Of all tensors that the blocks of a plan bind, and what quantised ones consist of."""
    refs = [ref for block in plan.blocks.values() for ref in block.tensors.values()]
    return frozenset(digest for ref in refs for digest in (ref.digest, *(part.digest for part in ref.parts)))


def load_model(plan: ExecutionPlan, zoo: Zoo, *, device: torch.device, kept: Kept | None = None) -> LoadedModel:
    """Raises :class:`DiagnosticError` (BC901, BC903, BC904, BC905)."""
    return _Loader(plan, zoo, device, kept).load()


class _Loader:
    """State of one load."""

    def __init__(self, plan: ExecutionPlan, zoo: Zoo, device: torch.device, kept: Kept | None) -> None:
        self.plan, self.zoo, self.device = plan, zoo, device
        self.kept_banks = {} if kept is None else kept.banks
        ops = op_table(device)
        self.programs = {digest: _program(digest, text, ops) for digest, text in plan.structures.items()}
        used = {block for path in plan.paths.values() for block in path.blocks}
        refs = [
            self._linear_refs(plan.blocks[digest], group)
            for digest in sorted(used)
            for group in self._program_of(digest).linears
        ]
        store, pools = (None, None) if kept is None else (kept.store, kept.pools)
        self.store = WeightStore(zoo, device=device, linears=refs, kept=store)
        self.pools = kv_pools(plan, device=device, kept=pools)
        # What is read for a slot is copied there and freed: it is no part of what the store keeps.
        self.reader = WeightStore(zoo, device=device, slabs=Slabs(device, slab_bytes=0), pins=True)
        counts = {bank: count for instance in plan.instances for bank, count in instance.side_slots.items()}
        self.limited = {bank: LimitedBank(number=bank, count=count) for bank, count in sorted(counts.items())}
        self.bank_of = {i: chain.bank for i, chain in enumerate(plan.chains) if chain.bank in self.limited}
        self.turns = {turn.segment: turn for instance in plan.instances for turn in instance.turns}
        self.turning: dict[int, Turning] = {}
        self.own = turning_tensors(plan)
        self.sites: dict[int, SegmentSites] = {}
        self.firsts = [self._first_occurrences(chain) for chain in plan.chains]

    def load(self) -> LoadedModel:
        plan = self.plan
        preludes = {
            block.prelude: self._occurrence(block.prelude, (), self.store)
            for block in plan.blocks.values()
            if block.prelude is not None
        }
        self.manifests, disabled = read_manifests(
            plan, self.store, limited=self.bank_of.keys(), structure_of=lambda block: self._program_of(block).structure
        )
        segments = [self._segment(index) for index in range(len(plan.segments))]
        self.store.settle()
        # One, with one math thread: it must not take the cores from the step that runs meanwhile.
        reader = ThreadPoolExecutor(1, "read", initializer=torch.set_num_threads, initargs=(1,))
        banks = [bank for segment in segments for bank in segment.banks]
        return LoadedModel(
            segments=segments,
            preludes=preludes,
            pools=self.pools,
            windows=tuple(group.window for group in plan.kv_groups),
            limits=tuple(self._limits(chain) for chain in plan.chains),
            order=_order(len(plan.chains), self.manifests),
            group_place=tuple({kv.group: place for place, kv in enumerate(chain.kv)} for chain in plan.chains),
            disabled=disabled,
            residence=Residence(self.limited, self.bank_of, read=self._read_sides, device=self.device, reader=reader),
            turning=TurningBlocks(
                self.turning,
                [chain.segments for chain in plan.chains],
                segments,
                store=self.store,
                fill=self._fill,
                reader=reader,
            ),
            vectors=frozenset(index for index, chain in enumerate(plan.chains) if chain.vector_width),
            store=self.store,
            reader=reader,
            sides_bytes=sum(bank.nbytes for bank in banks),
            kept_bytes=self.store.kept_bytes + sum(bank.nbytes for bank in banks if bank.content in self.kept_banks),
        )

    def _program_of(self, block: str) -> Program:
        entry = self.plan.blocks.get(block)
        program = None if entry is None else self.programs.get(entry.structure)
        if program is None:
            refuse("BC901", f"the plan names block {block} and does not hold it")
        return program

    def _linear_refs(self, block: BlockEntry, group: LinearGroup) -> LinearRefs:
        return tuple(
            (_tensor(block, weight), None if bias is None else _tensor(block, bias))
            for weight, bias in zip(group.weights, group.biases, strict=True)
        )

    def _first_occurrences(self, chain: ChainEntry) -> dict[int, int]:
        """Segment -> its first occurrence in the chain, after checking that the segments make up its path."""
        blocks: list[str] = []
        firsts: dict[int, int] = {}
        layers = 0
        for index in chain.segments:
            segment = self.plan.segments[index]
            if segment.first_kv_layer != layers:
                refuse("BC905", "chains share a segment at different depths of their KV cache")
            firsts[index] = len(blocks)
            run = self.plan.paths[segment.path].blocks[segment.first : segment.first + segment.count]
            layers += sum(self._program_of(block).structure.attention_count for block in run)
            blocks += run
        if tuple(blocks) != self.plan.paths[chain.path].blocks:
            refuse("BC901", f"the segments of chain {chain.digest} do not make up its path")
        return firsts

    def _segment(self, index: int) -> LoadedSegment:
        """With its weights, or without them where they take turns."""
        digests = segment_blocks(self.plan, index)
        programs = [self._program_of(digest) for digest in digests]
        sites = SegmentSites(
            digests=digests,
            groups=tuple(program.groups for program in programs),
            blocks=tuple(self.plan.blocks[digest] for digest in digests),
            dtype=torch_dtype(self.plan.paths[self.plan.segments[index].path].dtype),
        )
        self.sites[index] = sites
        empty = LoadedSegment(
            occurrences=self._occurrences(index, None),
            banks=self._banks(index, sites),
            dtype=sites.dtype,
            yields_logits=programs[-1].yields_rows,
            base_reads=(0,) * len(digests),
        )
        if index not in self.turns:
            return self._filled(index, empty, self.store)
        own = self.own[index]
        for program, block in zip(programs, sites.blocks, strict=True):
            for name in program.tensors:
                if (ref := _tensor(block, name)).digest not in own:
                    self.store.operand(ref)
            for group in program.linears:
                self.store.linears_without(self._linear_refs(block, group), own)
        self.turning[index] = Turning(empty=empty, from_host=self.turns[index].kept == "host")
        return empty

    def _fill(self, segment: int, store: WeightStore) -> LoadedSegment:
        return self._filled(segment, self.turning[segment].empty, store)

    def _filled(self, index: int, empty: LoadedSegment, store: WeightStore) -> LoadedSegment:
        occurrences = self._occurrences(index, store)
        return replace(
            empty,
            occurrences=occurrences,
            base_reads=tuple(
                sum(store.linears(self._linear_refs(block, group)).reads for group in occurrence.program.linears)
                for block, occurrence in zip(self.sites[index].blocks, occurrences, strict=True)
            ),
        )

    def _occurrences(self, segment: int, store: WeightStore | None) -> tuple[Occurrence, ...]:
        """Of a segment's blocks. ``store`` None: without anything that they are called with."""
        layer = self.plan.segments[segment].first_kv_layer
        occurrences = []
        for block in segment_blocks(self.plan, segment):
            count = self._program_of(block).structure.attention_count
            places = tuple(self._kv_place(segment, layer + i) for i in range(count))
            occurrences.append(self._occurrence(block, places, store))
            layer += count
        return tuple(occurrences)

    def _banks(self, segment: int, sites: SegmentSites) -> tuple[Bank, ...]:
        """Of chains that have a slot each, and then one for each limited bank."""
        passing = {
            chain: Member(digest=self.plan.chains[chain].sides, sides=sides, first=self.firsts[chain][segment])
            for chain, sides in self.manifests.items()
            if segment in self.plan.chains[chain].segments
        }
        resident = {chain: member for chain, member in passing.items() if chain not in self.bank_of}
        limited = []
        for bank in self.limited.values():
            member = next((member for chain, member in passing.items() if self.bank_of.get(chain) == bank.number), None)
            if member is None:
                continue
            one = stack_members([member], signature(member.sides)[0], sites, self.reader, alone=True)
            stacks = {place: with_slots(item, bank.count, self.store.slabs.zeros) for place, item in one.items()}
            if stacks:
                bank.banks[segment] = Bank(slots=bank.slots, weights=stacks)
                limited.append(bank.banks[segment])
        return (*build_banks(resident, sites, self.store, self.kept_banks), *limited)

    def _read_sides(self, chain: int) -> ReadSides:
        """What is put in a slot for a chain. Raises DiagnosticError (BC203, BC903) for values that cannot be served."""
        sides = self.manifests[chain]
        dtype = torch_dtype(self.plan.paths[self.plan.chains[chain].path].dtype)
        for side in sides.values():
            check_apart(side, self.reader, dtype)
        rank, _ = signature(sides)
        return {
            segment: stack_members(
                [Member(digest=None, sides=sides, first=self.firsts[chain][segment])],
                rank, self.sites[segment], self.reader, alone=True,
            )
            for segment in self.plan.chains[chain].segments
            if segment in self.limited[self.bank_of[chain]].banks
        }  # fmt: skip

    def _kv_place(self, segment: int, layer: int) -> tuple[int, int]:
        """(KV group, layer in the group) of a KV layer: the same for all chains of the segment."""
        places = set()
        for chain in self.plan.chains:
            if segment not in chain.segments:
                continue
            for kv in chain.kv:
                group = self.plan.kv_groups[kv.group]
                if group.first_layer <= layer < group.first_layer + group.layers:
                    places.add((kv.group, layer - group.first_layer))
        if len(places) != 1:
            refuse(
                "BC905" if places else "BC901",
                f"KV layer {layer} of segment {segment} lies in {len(places)} KV groups",
            )
        return places.pop()

    def _occurrence(self, digest: str, places: Sequence[tuple[int, int]], store: WeightStore | None) -> Occurrence:
        program = self._program_of(digest)
        block = self.plan.blocks[digest]
        try:
            binds = [block.binds[name] for name in program.structure.binds]
        except KeyError as error:
            refuse("BC901", f"block {digest} does not bind {error}")
        for window, (group, _) in zip(program.windows, places, strict=True):
            bound = block.binds[window.name] if isinstance(window, Bound) else window
            if bound != self.plan.kv_groups[group].window:
                refuse("BC901", f"block {digest} and its KV group differ in window")
        bound_args = (
            ()
            if store is None
            else (
                *binds,
                *(store.operand(_tensor(block, name)) for name in program.tensors),
                *(store.linears(self._linear_refs(block, group)) for group in program.linears),
                *(self.pools[group].layers[layer] for group, layer in places),
            )
        )
        if len(block.contexts) != len(program.structure.contexts):
            refuse("BC901", f"block {digest} does not say where its context comes from")
        return Occurrence(
            program=program,
            bound=bound_args,
            prelude=block.prelude,
            contexts=block.contexts,
            kv_groups=tuple(group for group, _ in places),
        )

    def _limits(self, chain: ChainEntry) -> RowLimits:
        groups = [kv.group for kv in chain.kv]
        bounds = {"tokens": chain.vocab_size, "positions": chain.max_model_len}
        for digest in self.plan.paths[chain.path].blocks:
            block = self.plan.blocks[digest]
            for op in self._program_of(digest).structure.ops:
                table = _table(op, block)
                if table is not None:
                    name, ref = table
                    bounds[name] = min(bounds.get(name, ref.shape[0]), ref.shape[0])
        return RowLimits(
            token_ids=bounds["tokens"],
            positions=bounds["positions"],
            pages=tuple(self.pools[group].pages for group in groups),
            page_tokens=tuple(self.pools[group].page_tokens for group in groups),
            windows=tuple(self.plan.kv_groups[group].window for group in groups),
            virtual_tokens=chain.virtual_tokens,
        )


def _program(digest: str, text: str, ops: Any) -> Program:
    try:
        structure: Structure = parse_structure(text)
    except StructureError as error:
        refuse("BC901", f"structure {digest}: {error}")
    if structure_digest(structure) != digest:
        refuse("BC901", f"structure {digest} was changed")
    try:
        return build_program(structure, ops)
    except AttributeError as error:
        refuse("BC905", f"structure {digest}: {error}")


def _order(chains: int, manifests: dict[int, ChainSides]) -> tuple[int, ...]:
    """Chains without sides first, then bank by bank: the rows of a bank are neighbours on the token axis."""
    signatures = {chain: signature(sides) for chain, sides in manifests.items()}
    firsts: dict[object, int] = {}
    for chain in sorted(signatures):
        firsts.setdefault(signatures[chain], chain)
    ranked = sorted(
        range(chains),
        key=lambda chain: (firsts[signatures[chain]] if chain in signatures else -1, chain),
    )
    order = [0] * chains
    for place, chain in enumerate(ranked):
        order[chain] = place
    return tuple(order)


def _table(op: Op, block: BlockEntry) -> tuple[str, TensorRef] | None:
    """(input, table) if the op looks up token ids or positions directly."""
    if op.target != "blockc.embedding":
        return None
    ids, table = op.args[0], op.args[1]
    if isinstance(ids, Value) and isinstance(table, Param) and ids.name in ("tokens", "positions"):
        return ids.name, _tensor(block, table.name)
    return None


def _tensor(block: BlockEntry, name: str) -> TensorRef:
    if name not in block.tensors:
        refuse("BC901", f"a block of structure {block.structure} binds no tensor to {name}")
    return block.tensors[name]
