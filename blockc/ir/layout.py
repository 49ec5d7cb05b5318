"""``Layout``: the bytes of everything that is resident on a device.

In: structures with their tensors, sides, KV groups, the limits of a step. Out: bytes. The only place where sizes are
computed: placement decides by it and the runtime allocates by it, so a plan that fits on paper fits in memory.
Invariant: pure functions of plain data; a tensor counts once per device and form, however many blocks bind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from blockc.ir.infer import Types, value_types
from blockc.ir.side import Side
from blockc.ir.structure import Arg, Op, Param, Structure, Value, ValueType
from blockc.ir.tensor import DTYPE_BYTES, QuantizedRef, TensorRef

# Of any allocation: a cache line on CPU, and what a CUDA allocator rounds small blocks to is not far above.
ALIGNMENT_BYTES: Final = 512
# Rows and columns of a matrix reordered for its multiplication are padded to the width of a kernel's tile.
TILE: Final = 64
# Fine-tunes that wait in memory for a slot of their bank, where not all of them have one.
READ_AHEAD: Final = 2
# Ranks are padded to a power of two from here on, so that fine-tunes of similar rank are stacked in one bank.
SMALLEST_RANK: Final = 8
# Scales of integers: as one kernel reads them, beside a shift, and as another does.
_SCALE_COPIES: Final = 3
# Logits of all rows in float32: as they are, and twice more while log probabilities are made of them.
_LOGIT_COPIES: Final = 3
# Sampling takes so many logits at once, each as float32 and three times in 8 bytes (`runtime/.../sampling.py`).
_DRAWN_AT_ONCE: Final = 1 << 19
DRAW_BYTES: Final = 4 + 3 * 8
# Scores of attention that a softcap keeps from the fused kernel: capped, and before and after in float32.
_SCORE_COPIES: Final = 3
# oneDNN compiles a kernel for each shape of weights and each count of rows (560 KiB each, measured for float32 with
# AVX2), and keeps 1,024 of them unless told otherwise: more than half a GiB that no plan knew of.
KERNEL_BYTES: Final = 576 << 10
KERNELS_PER_SHAPE: Final = 12

Form = Literal["plain", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ResidentTensor:
    """A tensor in memory. A linear's matrix is held reordered or joined; another use keeps the plain one as well."""

    ref: TensorRef
    form: Form

    @property
    def nbytes(self) -> int:
        """Bytes in memory, with padding."""
        shape = self.ref.shape
        if isinstance(self.ref, QuantizedRef):
            return _aligned(self.ref.codes.nbytes + _SCALE_COPIES * (self.ref.nbytes - self.ref.codes.nbytes))
        if self.form == "linear" and len(shape) == 2:
            padded = math.prod(-(-size // TILE) * TILE for size in shape)
            return _aligned(padded * DTYPE_BYTES[self.ref.dtype])
        return _aligned(self.ref.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPages:
    """The pages of one KV group on one device."""

    pages: int
    page_bytes: int
    layers: int

    @property
    def layer_page_bytes(self) -> int:
        """One layer's part of a page."""
        return -(-self.page_bytes // self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Bytes on one device."""

    weights_bytes: int
    sides_bytes: int
    kv_bytes: int
    workspace_bytes: int
    reserve_bytes: int
    blocks_bytes: int = 0  # of blocks that are not always there, at most

    @property
    def used_bytes(self) -> int:
        """All parts together, the reserve included."""
        held = self.weights_bytes + self.blocks_bytes + self.sides_bytes
        return held + self.kv_bytes + self.workspace_bytes + self.reserve_bytes


def layout(
    *,
    tensors: Iterable[ResidentTensor],
    sides_bytes: int,
    kv: Iterable[KvPages],
    activation_bytes: int,
    reserve_bytes: int,
    spare_bytes: int = 0,
) -> Layout:
    """The bytes of one device that holds all this. ``activation_bytes``: of its hungriest segment.

    ``spare_bytes``: as in :func:`gather_bytes`.
    """
    pools = tuple(kv)
    return Layout(
        weights_bytes=sum(tensor.nbytes for tensor in set(tensors)),
        sides_bytes=sides_bytes,
        kv_bytes=sum(pool.pages * pool.page_bytes for pool in pools),
        workspace_bytes=activation_bytes + gather_bytes(pools, spare_bytes=spare_bytes),
        reserve_bytes=reserve_bytes,
    )


def gather_bytes(kv: Iterable[KvPages], *, spare_bytes: int = 0) -> int:
    """Attention copies the pages that a step reads side by side, one layer at a time: at worst all of them.

    ``spare_bytes``: what the hungriest blocks take more than those with attention. While pages are copied it is free.
    """
    return max(0, max((pool.pages * pool.layer_page_bytes for pool in kv), default=0) - spare_bytes)


def tensor_share(tensor: ResidentTensor, devices: int) -> int:
    """Bytes on each of several devices that split a model evenly: of a matrix a share, of a vector all."""
    if devices == 1 or len(tensor.ref.shape) < 2:
        return tensor.nbytes
    return _aligned(-(-tensor.nbytes // devices))


def page_share(page_bytes: int, *, kv_heads: int, devices: int) -> int:
    """Bytes of a KV page on each of several devices. Heads stay whole; where they do not divide, they are repeated."""
    if kv_heads % devices == 0:
        return page_bytes // devices
    return page_bytes // kv_heads if devices % kv_heads == 0 else page_bytes


def format_bytes(nbytes: int) -> str:
    """Such as ``21.3 GiB``: binary units, as specs write them."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{nbytes} B" if unit == "B" else f"{value:.{0 if value >= 100 else 1}f} {unit}"


def block_tensors(structure: Structure, tensors: Mapping[str, TensorRef]) -> frozenset[ResidentTensor]:
    """What a block keeps resident. A tied embedding is there twice: as a table and as a linear's matrix."""
    found: set[ResidentTensor] = set()
    for op in structure.ops:
        linear = op.target == "blockc.linear"
        for place, arg in enumerate(op.args):
            form: Form = "linear" if linear and place == 1 else "plain"
            found |= {ResidentTensor(ref=tensors[name], form=form) for name in _names(arg, Param)}
    return frozenset(found)


def padded_rank(rank: int) -> int:
    """The rank that a fine-tune's sides take in their bank. ``rank``: the largest at any of its sites."""
    return max(SMALLEST_RANK, 1 << (rank - 1).bit_length()) if rank else 0


def chain_sides_bytes(sides: Iterable[Side], *, dtype: str) -> int:
    """Bytes of one fine-tune's sides in a model of ``dtype``.

    Banks stack A as ``[slots, in, rank]`` and B as ``[slots, rank, out]``, with the largest rank at any of its sites: a
    slot costs the same in any bank. Bottlenecks are padded likewise. What else a side holds is kept as it is.
    """
    held = tuple(sides)
    rank = padded_rank(max((side.rank for side in held), default=0))
    total = 0
    for side in held:
        for term in [term for term in side.terms if term.rank][:1]:
            total += _aligned(rank * (term["a"].shape[1] + term["b"].shape[0]) * DTYPE_BYTES[dtype])
        for term in side.of("bottleneck"):
            width, hidden = term["down"].shape
            total += _aligned((padded_rank(width) - width) * (2 * hidden + 1) * DTYPE_BYTES[dtype])
        total += sum(_aligned(term.nbytes) for term in side.terms if not term.rank)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepSize:
    """The largest step."""

    tokens: int
    rows: int
    context: int
    kv_groups: int
    softcap: bool


def activation_bytes(
    structure: Structure,
    *,
    tokens: int,
    rows: int,
    context: int = 0,
    kv_groups: int = 1,
    softcap: bool = False,
    parks: bool = False,
) -> int:
    """The most that is alive at once while one block runs, with what the step keeps beside it.

    The step has ``tokens``, ``rows`` of them with logits, and sequences of up to ``context`` tokens in ``kv_groups``.
    ``softcap``: whether the block binds one, for its attention is then not fused. ``parks``: whether hidden states are
    kept between steps, of so many tokens at most. Views share their operand's bytes; linears that read one value run
    together, and what they yield is one piece; inputs and contexts stay alive.
    """
    step = _StepSize(tokens=tokens, rows=rows, context=context, kv_groups=kv_groups, softcap=softcap)
    types = value_types(structure)
    parked = sum(_nbytes(types[name], step) for name, _ in structure.inputs) if parks else 0
    peak = _peak_bytes(structure, types, step)
    return peak + parked + _kept_bytes(structure, step) + _sampling_bytes(structure, types, step)


def pass_bytes(structure: Structure, *, tokens: int, rows: int) -> int:
    """The most that is alive at once while one block runs by itself."""
    step = _StepSize(tokens=tokens, rows=rows, context=0, kv_groups=0, softcap=False)
    return _peak_bytes(structure, value_types(structure), step)


def _peak_bytes(structure: Structure, types: Types, step: _StepSize) -> int:
    launches = _launches(structure)
    roots = _roots(structure, launches)
    last_use = _last_uses(structure, launches, roots)
    sizes: dict[str, int] = dict.fromkeys(roots.values(), 0)
    products = {op.result for op in structure.ops if _is_linear(op)}
    for name, root in roots.items():
        if name == root or name in products:
            sizes[root] += _nbytes(types[name], step)
    alive = {name for name, _ in structure.inputs + structure.contexts}
    peak = current = sum(sizes[name] for name in alive)
    for number, ops in enumerate(launches):
        made = {op.result for op in ops if roots[op.result] == op.result} - alive
        current += sum(sizes[name] for name in made)
        alive |= made
        peak = max(peak, current + _transient(ops, types, step))
        gone = {name for name in alive if last_use.get(name, -1) == number}
        current -= sum(sizes[name] for name in gone)
        alive -= gone
    return peak


def kernel_count(structures: Iterable[Structure]) -> int:
    """How many compiled multiplications a CPU keeps: some counts of rows for each shape of joined matrices."""
    shapes = set()
    for structure in structures:
        params = dict(structure.params)
        for ops in _launches(structure):
            weights = [params[op.args[1].name] for op in ops if _is_linear(op) and isinstance(op.args[1], Param)]
            if weights:
                shapes.add((weights[0].dtype, sum(int(w.shape[0]) for w in weights), weights[0].shape[1:]))
    return KERNELS_PER_SHAPE * len(shapes)


def linear_groups(structure: Structure) -> list[list[str]]:
    """The parameters of matrices that are joined, for they multiply one value."""
    groups = ([op.args[1] for op in ops if _is_linear(op)] for ops in _launches(structure))
    return [[arg.name for arg in group if isinstance(arg, Param)] for group in groups if group]


def _launches(structure: Structure) -> list[list[Op]]:
    """Ops in the order in which they run: linears on one value with the first of them."""
    launches: list[list[Op]] = []
    joined: dict[Arg, list[Op]] = {}
    for op in structure.ops:
        if _is_linear(op) and op.args[0] in joined:
            joined[op.args[0]].append(op)
            continue
        launches.append([op])
        if _is_linear(op):
            joined[op.args[0]] = launches[-1]
    return launches


def _is_linear(op: Op) -> bool:
    return op.target == "blockc.linear"


_VIEWS = frozenset(
    {
        "aten.expand.default",
        "aten.reshape.default",
        "aten.slice.Tensor",
        "aten.transpose.int",
        "aten.unsqueeze.default",
    }
)


def _roots(structure: Structure, launches: Sequence[Sequence[Op]]) -> dict[str, str]:
    """For each value the one whose bytes it looks at: itself, unless it is a view or part of a joined product."""
    roots = {name: name for name, _ in structure.inputs + structure.contexts}
    roots |= {op.result: ops[0].result for ops in launches for op in ops if _is_linear(op)}
    for op in structure.ops:
        source = op.args[0]
        is_view = op.target in _VIEWS and isinstance(source, Value)
        roots.setdefault(op.result, roots[source.name] if is_view and isinstance(source, Value) else op.result)
    return roots


def _last_uses(structure: Structure, launches: Sequence[Sequence[Op]], roots: Mapping[str, str]) -> dict[str, int]:
    """The launch after which a value's bytes are free. Inputs, contexts and what is returned are never freed."""
    last: dict[str, int] = {}
    for step, ops in enumerate(launches):
        for op in ops:
            last[roots[op.result]] = max(last.get(roots[op.result], 0), step)
            for arg in op.args:
                for name in _names(arg, Value):
                    last[roots[name]] = step
    kept = {name for name, _ in structure.inputs + structure.contexts} | {roots[name] for name in structure.returns}
    return {name: step for name, step in last.items() if name not in kept}


def _transient(ops: Sequence[Op], types: Types, step: _StepSize) -> int:
    """What ops allocate for themselves and free again.

    Norms: a float32 copy and its square. Linears: what a side adds to the widest of them. Attention with a softcap:
    the scores of all heads.
    """
    results = [types[op.result] for op in ops]
    if _is_linear(ops[0]):
        return max(_nbytes(result, step) for result in results)
    if results[0] is None:
        return 0
    if ops[0].target == "blockc.rms_norm":
        return 2 * _nbytes(ValueType(dtype="F32", shape=results[0].shape), step)
    if ops[0].target == "blockc.attention" and step.softcap:
        shape = (results[0].shape[-2], step.tokens, step.context)
        return _SCORE_COPIES * _nbytes(ValueType(dtype="F32", shape=shape), step)
    return 0


def _kept_bytes(structure: Structure, step: _StepSize) -> int:
    """What a step keeps until it ends: the hidden states that its segment was given, masks of cached contexts."""
    states = [type_ for name, type_ in structure.inputs if name not in ("tokens", "positions")]
    if not states:
        return 0
    # A mask per KV group, and while it is made a flag for each of its values.
    mask = step.tokens * step.context * (DTYPE_BYTES[states[0].dtype] + 1)
    return sum(_nbytes(type_, step) for type_ in states) + step.kv_groups * mask


def _sampling_bytes(structure: Structure, types: Types, step: _StepSize) -> int:
    """Logits as sampling works on them, if the structure ends in logits."""
    if not any(op.target == "blockc.select_rows" for op in structure.ops):
        return 0
    logits = [types[name] for name in structure.returns]
    wide = sum(_nbytes(ValueType(dtype="F32", shape=item.shape), step) for item in logits if item is not None)
    drawn = min(wide // DTYPE_BYTES["F32"], _DRAWN_AT_ONCE) * DRAW_BYTES
    return wide + max((_LOGIT_COPIES - 1) * wide, drawn)


def _nbytes(type_: ValueType | None, step: _StepSize) -> int:
    if type_ is None:
        return 0
    symbols = {"T": step.tokens, "R": step.rows}
    return _aligned(
        math.prod(symbols[dim] if isinstance(dim, str) else dim for dim in type_.shape) * DTYPE_BYTES[type_.dtype]
    )


def _names(arg: Arg, kind: type[Value] | type[Param]) -> Sequence[str]:
    if isinstance(arg, tuple):
        return [name for item in arg for name in _names(item, kind)]
    return [arg.name] if isinstance(arg, kind) else []


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
