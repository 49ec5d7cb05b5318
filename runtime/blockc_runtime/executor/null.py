"""An executor without weights, for tests and load generation: tokens are a hash of what the pages hold.

It keeps a page memory. A slot holds a token, the KV domain it was written under, and a hash of all tokens up to there,
made from the slot before it *as read through the row's page table*. A drawn token is a hash of the chain and of
everything that the row sees. A wrong, stale or foreign page therefore shows: as a row fault where what is read is not
what one request wrote, else as a wrong token.
"""

from __future__ import annotations

import struct
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from blockc.plan import ExecutionPlan
from blockc_runtime.request import TokenLogprob
from blockc_runtime.step import Fault, Feed, Row, RowResult, SegmentTurn, Step, StepResult

_TOKEN_BYTES = 8
_HASH_BYTES = 4
PageTable = tuple[int | None, ...]


def next_token(chain: int, tokens: Sequence[int], vocab_size: int) -> int:
    """What the null model of a chain says, greedily, after ``tokens``."""
    return _draw(chain, _hash(0, tokens), vocab_size, b"")


def sampled_token(chain: int, tokens: Sequence[int], vocab_size: int, *, seed: int, output_index: int) -> int:
    """What it says at a temperature above 0 if it `is_seeded`."""
    return _draw(chain, _hash(0, tokens), vocab_size, _salt(seed, output_index))


class _MisreadError(Exception):
    """The pages of a row do not hold what its request wrote."""


class NullExecutor:
    """Implements :class:`~blockc_runtime.step.Executor`.

    ``step_s``: how long a step pretends to take, the same for all or as a function of the step; it begins when it is
    submitted and those before are done. ``is_seeded``: at a
    temperature above 0 tokens depend on seed and output index (`sampled_token`); else all sampling is greedy.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        *,
        step_s: float | Callable[[Step], float] = 0.0,
        is_seeded: bool = False,
        before: NullExecutor | None = None,
        carried: Mapping[int, int] | None = None,
    ) -> None:
        """``before``: of another plan, in whose pages the KV groups of this one that are ``carried`` go on."""
        memory = [_Memory(page_tokens=group.page_tokens, window=group.window) for group in plan.kv_groups]
        if before is not None:
            for after, group in (carried or {}).items():
                memory[after] = before._memory[group]
                memory[after].users += 1
        self._memory: list[_Memory] = memory
        self._kv = [
            [(memory[kv.group], zlib.crc32(kv.domain.encode()).to_bytes(_HASH_BYTES, "little")) for kv in chain.kv]
            for chain in plan.chains
        ]
        self._widths = [chain.vector_width for chain in plan.chains]
        self._vocab_sizes = [chain.vocab_size for chain in plan.chains]
        limited = {bank for instance in plan.instances for bank in instance.side_slots}
        self._bank_of = [chain.bank if chain.bank in limited else None for chain in plan.chains]
        self._slots: dict[tuple[int | None, int], int] = {}  # (bank, slot) -> chain
        self._prefetched: list[tuple[int, str | None]] = []
        self._room_bytes = sum(instance.room_bytes for instance in plan.instances)
        self._turn_bytes = {turn.segment: turn.nbytes for instance in plan.instances for turn in instance.turns}
        self._segments_of = [self._turn_bytes.keys() & set(chain.segments) for chain in plan.chains]
        self._here: set[int] = set()  # of the segments that take turns
        self._brought: list[tuple[int, str | None]] = []
        self._parked: dict[str, Row] = {}
        self._queue: deque[Step] = deque()
        self._feeds: dict[Feed, tuple[Row, RowResult]] = {}  # what rows of queued steps are fed by
        self._step_s = step_s
        self._done_s: deque[float] = deque()  # when each step will be
        self._busy_until_s = 0.0
        self._is_seeded = is_seeded

    def prefetch(self, chain: int) -> None:
        """There is nothing to read."""
        self._prefetched.append((chain, None))

    def prefetched(self) -> list[tuple[int, str | None]]:
        """What was asked for since the last call."""
        found, self._prefetched = self._prefetched, []
        return found

    def bring(self, turn: SegmentTurn) -> None:
        """Nothing is read, and there must be room for it."""
        self._here.difference_update(turn.out)
        self._here.add(turn.segment)
        held_bytes = sum(self._turn_bytes[segment] for segment in self._here)
        assert held_bytes <= self._room_bytes, "segments that take turns have more than their room"
        self._brought.append((turn.segment, None))

    def brought(self) -> list[tuple[int, str | None]]:
        """What was asked for since the last call."""
        found, self._brought = self._brought, []
        return found

    def index(self, chain: int) -> bool:
        """Grammars change nothing here."""
        return True

    def submit(self, step: Step) -> None:
        """Queue a step."""
        self._queue.append(step)
        step_s = self._step_s(step) if callable(self._step_s) else self._step_s
        if step_s > 0:
            self._busy_until_s = max(time.monotonic(), self._busy_until_s) + step_s
        self._done_s.append(self._busy_until_s)

    def collect(self) -> StepResult:
        """Run the oldest queued step."""
        step = self._queue.popleft()
        done_s = self._done_s.popleft()
        if done_s > 0 and (wait_s := done_s - time.monotonic()) > 0:
            time.sleep(wait_s)
        self._slots |= {(self._bank_of[fill.chain], fill.slot): fill.chain for fill in step.fills}
        rows = [self._filled(row) for row in step.rows]
        results = tuple([self._run(row) for row in rows])
        now = self._parked | {row.request: row for row in rows}
        self._parked = {name: now[name] for name in step.parked}
        for feed in [row.fed for later in self._queue for row in later.rows if row.fed is not None]:
            if feed.step == step.id:
                self._feeds[feed] = rows[feed.row], results[feed.row]
        return StepResult(step=step.id, rows=results)

    def close(self) -> None:
        """Forget everything, as a lost worker does."""
        self._queue.clear()
        self._done_s.clear()
        self._feeds.clear()
        self._parked.clear()
        self._slots.clear()
        self._prefetched.clear()
        self._here.clear()
        self._brought.clear()
        for memory in self._memory:
            memory.users -= 1
            if memory.users < 1:
                memory.pages.clear()

    def _filled(self, row: Row) -> Row:
        """The row with its token, if that has been drawn."""
        found = None if row.fed is None else self._feeds.pop(row.fed, None)
        if found is None or not found[1].tokens:
            return row
        return row.filled(found[0], found[1].tokens[-1])

    def _run(self, row: Row) -> RowResult:
        try:
            seen = set()
            if row.fed is not None:
                raise _MisreadError("its token was not drawn")
            if self._bank_of[row.chain] is not None and row.chain not in self._slots.values():
                raise _MisreadError("its fine-tune is in no slot")
            if not self._here >= self._segments_of[row.chain]:
                raise _MisreadError("its blocks are not in memory")
            if row.blocks is not None and row.blocks[0] > 0:
                self._check_parked(row)
            for (memory, domain), table in zip(self._kv[row.chain], row.pages, strict=True):
                if row.blocks is None or row.blocks[0] == 0:
                    memory.write(row, table, domain)
                seen.add(memory.read(row, table, domain))
            if len(seen) > 1:
                raise _MisreadError("KV groups hold different tokens")
        except _MisreadError as error:
            return RowResult(tokens=(), logprobs=(), fault=Fault(scope="row", message=f"{row.request}: {error}"))
        given = (TokenLogprob(logprob=0.0, top=()),) * len(row.given)
        if row.each:
            width = self._widths[row.chain]
            likeliest = [_draw(row.chain, _hash(0, (token,)), width, b"") for token in row.tokens]
            scores = [float(place == token) for token in likeliest for place in range(width)]
            return RowResult(tokens=(), logprobs=(), scores=tuple(scores))
        if row.samples == 0 or row.sampling is None:
            return RowResult(tokens=(), logprobs=(), given=given)
        if width := self._widths[row.chain]:
            token = _draw(row.chain, next(iter(seen), _hash(0, row.tokens)), width, b"")
            return RowResult(tokens=(), logprobs=(), scores=tuple([float(place == token) for place in range(width)]))
        is_drawn = self._is_seeded and row.sampling.temperature > 0
        salt = _salt(row.sampling.seed, row.output_index) if is_drawn else b""
        token = _draw(row.chain, seen.pop(), self._vocab_sizes[row.chain], salt)
        logprobs = () if row.sampling.logprobs is None else (TokenLogprob(logprob=0.0, top=()),)
        return RowResult(tokens=(token,), logprobs=logprobs, given=given)

    def _check_parked(self, row: Row) -> None:
        """A row goes on where the last one of its request stopped, with the same tokens."""
        before, own = self._parked.get(row.request), row.blocks
        if before is None or before.blocks is None or own is None or before.blocks[1] != own[0]:
            raise _MisreadError("its hidden states are gone")
        if (before.chain, before.start, before.tokens) != (row.chain, row.start, row.tokens):
            raise _MisreadError("its hidden states are those of other tokens")


@dataclass(frozen=True, slots=True)
class _Page:
    """Slots side by side, all zero where nothing was written."""

    tokens: bytearray
    domains: bytearray
    hashes: list[int]


class _Memory:
    """The pages of one KV group, of one executor or of several for one plan each."""

    def __init__(self, *, page_tokens: int, window: int | None) -> None:
        if window is not None and window < 2:
            raise ValueError("the null model sees one token back at least")
        self.pages: dict[int, _Page] = {}
        self.users = 1
        self._page_tokens = page_tokens
        self._window = window

    def write(self, row: Row, table: PageTable, domain: bytes) -> None:
        """Write a row's tokens where its table says."""
        state = 0
        if row.start > 0:
            page, slot = self._slot(table, row.start - 1)
            state = page.hashes[slot]
        for position, token in enumerate(row.tokens, row.start):
            page, slot = self._slot(table, position)
            state = _hash(state, (token,))
            page.tokens[slot * _TOKEN_BYTES : (slot + 1) * _TOKEN_BYTES] = struct.pack("q", token)
            page.domains[slot * _HASH_BYTES : (slot + 1) * _HASH_BYTES] = domain
            page.hashes[slot] = state

    def read(self, row: Row, table: PageTable, domain: bytes) -> int:
        """Return the hash of all tokens up to the row's last one, having looked at everything the row sees."""
        end = row.start + len(row.tokens)
        first = 0 if self._window is None else max(0, row.start - self._window + 1)
        first_page = first // self._page_tokens
        pages = [self._page(page) for page in table[first_page : -(-end // self._page_tokens)]]
        skip, stop = first - first_page * self._page_tokens, end - first_page * self._page_tokens
        domains = b"".join([page.domains for page in pages])
        if domains[skip * _HASH_BYTES : stop * _HASH_BYTES] != domain * (stop - skip):
            raise _MisreadError("a page holds another KV domain, or nothing")
        tokens = b"".join([page.tokens for page in pages])
        last, slot = self._slot(table, end - 1)
        state = 0
        if first > 0:  # what came before the window is known by its hash only
            state, skip = pages[0].hashes[skip], skip + 1
        if zlib.crc32(tokens[skip * _TOKEN_BYTES : stop * _TOKEN_BYTES], state) != last.hashes[slot]:
            raise _MisreadError("the pages do not follow from each other")
        return last.hashes[slot]

    def _slot(self, table: PageTable, position: int) -> tuple[_Page, int]:
        index, slot = divmod(position, self._page_tokens)
        if index >= len(table):
            raise _MisreadError(f"position {position} is beyond the page table")
        return self._page(table[index]), slot

    def _page(self, page: int | None) -> _Page:
        if page is None:
            raise _MisreadError("a page that the window has passed is in use")
        held = self.pages.get(page)
        if held is None:
            size = self._page_tokens
            held = _Page(bytearray(size * _TOKEN_BYTES), bytearray(size * _HASH_BYTES), [0] * size)
            self.pages[page] = held
        return held


def _hash(state: int, tokens: Iterable[int]) -> int:
    """Hash tokens onto the hash of those before them."""
    return zlib.crc32(array("q", tokens).tobytes(), state)


def _draw(chain: int, state: int, vocab_size: int, salt: bytes) -> int:
    return zlib.crc32(salt, zlib.crc32(f"{chain}/{state}/".encode())) % vocab_size


def _salt(seed: int, output_index: int) -> bytes:
    return f"{seed}/{output_index}".encode()
