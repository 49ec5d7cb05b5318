"""Which recorded graphs are kept, and which are worth recording.

In: what graphs are asked for. Out: those that there are. Invariant: steps of few sizes always find theirs; where sizes
are many, what is asked for most often is kept, and a graph is not recorded to be let go before it has paid.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from blockc.ir.recorded import Bucket
from blockc_runtime.executor.recorder import Outputs

# Graphs of parts of segments, of all together: where prompts go layer by layer, runs of blocks begin and stop at many
# places. And graphs of a segment with prompts, which come in many sizes: one is recorded when its size comes again.
_MOST_PARTS, _MOST_CHUNKED, _AGAIN = 128, 64, 2
# After so many steps with prompts what was asked for counts half.
_AGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphKey:
    """A run of a segment's blocks, from the first to before ``stop``; ``tiles``: room for fine-tunes, 0: without."""

    segment: int
    first: int
    stop: int
    is_whole: bool
    bucket: Bucket
    tiles: int

    @property
    def kind(self) -> tuple[int, bool]:
        """The segment, and whether there are prompts."""
        return self.segment, self.bucket.chunked > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """``replay``: does it again; ``outputs``: where its results then lie."""

    replay: Callable[[], None]
    outputs: Outputs


class GraphStore:
    """The graphs of a model with so many segments."""

    def __init__(self, segments: int) -> None:
        self._most_chunked = _MOST_CHUNKED * max(1, segments)
        self._held: OrderedDict[GraphKey, Graph] = OrderedDict()
        self._asked: Counter[GraphKey] = Counter()
        self._steps = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: GraphKey) -> bool:
        return key in self._held

    def find(self, key: GraphKey) -> Graph | None:
        """A graph, if it is there; takes note that it was asked for."""
        if key.bucket.chunked:
            self._asked[key] += 1
            self._steps += 1
            if self._steps % _AGE == 0:
                self._asked = Counter({own: count // 2 for own, count in self._asked.items() if count > 1})
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def pays(self, key: GraphKey) -> bool:
        """Whether a graph that is not there is worth recording now."""
        if not key.bucket.chunked:
            return True
        least = self._least_chunked()
        return self._asked[key] >= _AGAIN * (1 if least is None else max(1, self._asked[least]))

    def keep(self, key: GraphKey, graph: Graph) -> None:
        """Keep it, in place of another one if there are too many of its kind."""
        parts = [] if key.is_whole else [own for own in self._held if not own.is_whole]
        least = self._least_chunked() if key.bucket.chunked else None
        for gone in (*parts[: max(0, len(parts) + 1 - _MOST_PARTS)], *(() if least is None else (least,))):
            del self._held[gone]
        self._held[key] = graph

    def _least_chunked(self) -> GraphKey | None:
        """Of steps with prompts what was asked for least; None while there is room for more."""
        chunked = [key for key in self._held if key.bucket.chunked]
        return min(chunked, key=lambda key: self._asked[key]) if len(chunked) >= self._most_chunked else None
