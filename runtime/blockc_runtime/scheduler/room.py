"""Which segments have their weights in memory, where there is room for some of them only.

In: chains that are wanted, held and let go, and news of what has been read. Out: what to read next, and what goes for
it. Invariants: what goes is used by no running request, and claimed by none that waits; all that is there or being read
fits the room; a chain is *claimed* from when it was found first in turn until one of its requests starts or none waits.

Room is taken before anything is read, so reading needs no memory of its own. Of what nobody uses, that goes which costs
least: the bytes to read again times how often they are expected to be wanted. Nobody overtakes who is next in turn and
waits for room: what runs ends, and who has claimed before starts and ends, so there will be some. Who waits while its
weights are read holds up nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from blockc_runtime.limits import EngineLimits
from blockc_runtime.step import SegmentTurn

# Of uses: after so many of any segment for each that takes turns, one counts half.
_HALVED_AFTER = 8


class Room:
    """The segments of ``limits.turns``. Chains that pass none of them have all their weights."""

    def __init__(self, limits: EngineLimits) -> None:
        self._sizes = {segment: turn.nbytes for segment, turn in limits.turns.items()}
        self._room_bytes = limits.room_bytes
        self._segments_of = tuple(
            tuple(segment for segment in chain.segments if segment in self._sizes) for chain in limits.chains
        )
        self._holders: Counter[int] = Counter()  # running requests by segment
        self._waiting: Mapping[int, int] = {}
        self._problems: dict[int, str] = {}
        self._uses = _Uses({segment: turn.uses_rps for segment, turn in limits.turns.items()})
        self.loads = 0
        self.evictions = 0
        self.forget()

    def forget(self) -> None:
        """The worker was lost: nothing is in memory, whoever runs."""
        self._here: set[int] = set()
        self._reading: set[int] = set()
        self._claimed: set[int] = set()
        self._wanted: list[SegmentTurn] = []
        self._is_awaited = False

    @property
    def is_reading(self) -> bool:
        """Whether anything is being read."""
        return bool(self._reading)

    @property
    def held_bytes(self) -> int:
        """Bytes of all that is there or being read."""
        return sum(self._sizes[segment] for segment in (*self._here, *self._reading))

    def segments_of(self, chain: int) -> Sequence[int]:
        """Those of a chain that take turns."""
        return self._segments_of[chain]

    def problem(self, chain: int) -> str | None:
        """What to tell its requests, if some of its weights cannot be read."""
        return next((self._problems[s] for s in self._segments_of[chain] if s in self._problems), None)

    def begin(self, waiting: Mapping[int, int]) -> None:
        """A step is about to be chosen. ``waiting``: requests by chain; claims of others lapse."""
        self._is_awaited = False
        self._waiting = waiting
        if self._claimed:
            self._claimed = {chain for chain in self._claimed if waiting.get(chain)}

    def is_there(self, chain: int) -> bool:
        """Whether a request of ``chain``, which is next in turn, may start. Claims its segments, and has them read."""
        own = self._segments_of[chain]
        if not own:
            return True
        if chain not in self._claimed:
            missing = [segment for segment in own if segment not in self._here and segment not in self._reading]
            if self._is_awaited or not self._take_room(missing, own):
                self._is_awaited = True
                return False
            self._claimed.add(chain)
        return self._here.issuperset(own)

    def hold(self, chain: int) -> None:
        """A request of ``chain``, whose segments are there, runs from now on."""
        self._claimed.discard(chain)
        for segment in self._segments_of[chain]:
            self._holders[segment] += 1
            self._uses.note(segment)

    def release(self, chain: int) -> None:
        """A request of ``chain`` does not run any more."""
        for segment in self._segments_of[chain]:
            self._holders[segment] -= 1

    def arrived(self, segment: int, problem: str | None) -> None:
        """The weights of ``segment`` have been read, or cannot be."""
        if segment not in self._reading:
            return  # asked for before a worker was lost
        self._reading.discard(segment)
        if problem is None:
            self._here.add(segment)
            self.loads += 1
        else:
            self._problems[segment] = f"its fine-tune could not be loaded: {problem}"

    def take_wanted(self) -> Sequence[SegmentTurn]:
        """What is to be read, and what goes for it, since the last time."""
        wanted, self._wanted = self._wanted, []
        return wanted

    def _take_room(self, missing: Sequence[int], own: Collection[int]) -> bool:
        """Have segments read, and others go for them; False, and nothing changes, if what must stay leaves no room."""
        lacking_bytes = self.held_bytes + sum(self._sizes[segment] for segment in missing) - self._room_bytes
        going = self._cheapest(lacking_bytes, own)
        if going is None:
            return False
        self._here.difference_update(going)
        self.evictions += len(going)
        for segment in missing:
            self._reading.add(segment)
            self._wanted.append(SegmentTurn(segment=segment, out=going))
            going = ()
        return True

    def _cheapest(self, nbytes: int, own: Collection[int]) -> tuple[int, ...] | None:
        """Segments of so many bytes that may go, none of them in vain; None if there are not as many."""
        if nbytes <= 0:
            return ()
        kept = {segment for chain in self._claimed for segment in self._segments_of[chain]}.union(own)
        idle = [segment for segment in self._here if not self._holders[segment] and segment not in kept]
        soon = {segment for chain, count in self._waiting.items() if count for segment in self._segments_of[chain]}
        going: list[int] = []
        # By uses alone, for that is the cost of a byte.
        for segment in sorted(idle, key=lambda segment: (segment in soon, self._uses.of(segment), segment)):
            if nbytes <= 0:
                break
            going.append(segment)
            nbytes -= self._sizes[segment]
        if nbytes > 0:
            return None
        for segment in sorted(going, key=lambda segment: (segment not in soon, -self._uses.of(segment), segment)):
            if nbytes + self._sizes[segment] <= 0:
                going.remove(segment)
                nbytes += self._sizes[segment]
        return tuple(going)


class _Uses:
    """How often segments are expected to be wanted: as the plan expects at first, later as they were."""

    def __init__(self, expected_rps: Mapping[int, float]) -> None:
        total = sum(expected_rps.values())
        half = max(1, _HALVED_AFTER * len(expected_rps))
        self._kept: float = 0.5 ** (1 / half)
        # What the counts come to if segments go on to be wanted in these parts.
        most = 1 / (1 - self._kept)
        self._counts = {segment: most * rate / total if total else 0.0 for segment, rate in expected_rps.items()}
        self._noted = dict.fromkeys(expected_rps, 0)
        self._turn = 0

    def note(self, segment: int) -> None:
        """It was wanted."""
        self._counts[segment] = self.of(segment) + 1.0
        self._turn += 1
        self._noted[segment] = self._turn

    def of(self, segment: int) -> float:
        """In a unit that all segments have in common."""
        aged: float = self._kept ** (self._turn - self._noted[segment])
        return self._counts[segment] * aged
