"""Stop strings over a text that arrives in pieces.

In: pieces of one output. Out: the text that may be shown. Invariant: no character of a stop string
is shown before it is certain that the string does not go on; joined, the pieces end where the first
stop string begins (or behind it, if it is to be kept), however the text was cut.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The state of one output. Knuth-Morris-Pratt for each string: a constant cost a character."""

    def __init__(self, stops: Sequence[str], *, keep: bool) -> None:
        self._stops = tuple(stops)
        self._keep = keep
        self._borders = tuple(_borders(stop) for stop in self._stops)
        self._matched = [0] * len(self._stops)  # how much of each string the text ends with
        self._first = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Add text; return what may be shown now. After ``found`` is set nothing more is taken."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        if not self._held and self._first.isdisjoint(text):
            return text
        pending = self._held + text
        for position, character in enumerate(text, len(self._held)):
            stop = self._advance(character)
            if stop is not None:
                self.found, self._held = stop, ""
                end = position + 1
                return pending[: end if self._keep else end - len(stop)]
        show = len(pending) - max(self._matched)
        self._held = pending[show:]
        return pending[:show]

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """Take one character in; the longest of the strings that it completes, if it does."""
        complete = None
        for index, stop in enumerate(self._stops):
            borders, matched = self._borders[index], self._matched[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            self._matched[index] = matched
            if matched == len(stop):
                if complete is None or len(stop) > len(complete):
                    complete = stop
                self._matched[index] = borders[matched - 1]
        return complete


def _borders(stop: str) -> tuple[int, ...]:
    """For each prefix of ``stop``: the length of its longest proper prefix that also ends it."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[length] != stop[index]:
            length = borders[length - 1]
        length += stop[length] == stop[index]
        borders[index] = length
    return tuple(borders)
