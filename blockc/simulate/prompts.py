"""Token ids of prompts that nobody wrote: equal where the workload says that they are equal, and nowhere else.

In: arrivals. Out: prompts as tuples of token ids. Invariant: two prompts of one isolation group agree in their first n
tokens exactly if they have those blocks in common, or one continues the conversation of the other; unless nobody looks.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.simulate.instance import answer_token
from blockc.simulate.workload import HASH_BLOCK_TOKENS, Arrival

# Ids of tokens: an arrival's own, those of its blocks, and below 0 answers (`answer_token`).
_OWN = 1 << 24
_BLOCKS = 1 << 60

Prompt = tuple[int, ...]


class Prompts:
    """Makes each prompt when its request arrives, so that a million of them never lie in memory at once.

    ``are_looked_at`` False: nothing compares tokens (`CountedKv`), so they are all alike.
    """

    def __init__(self, arrivals: Sequence[Arrival], *, are_looked_at: bool = True) -> None:
        self._are_looked_at = are_looked_at
        self._arrivals = arrivals
        followed = {item.after for item in arrivals}
        self._followed = followed - {None}
        self._kept: dict[int, Prompt] = {}

    def make(self, number: int) -> Prompt:
        """The prompt of arrival ``number``. That of a turn may be made once, after that of the turn before."""
        item = self._arrivals[number]
        if not self._are_looked_at:
            return (0,) * item.prompt_tokens
        start = () if item.after is None else self.said(item.after)
        prompt = (start + self._new(number, item, len(start)))[: item.prompt_tokens]
        if item.after is not None:
            del self._kept[item.after]
        if number in self._followed:
            self._kept[number] = prompt
        return prompt

    def said(self, number: int) -> Prompt:
        """A turn with its answer, which others follow."""
        return self._kept[number] + (answer_token(number),) * self._arrivals[number].output_tokens

    def _new(self, number: int, item: Arrival, start: int) -> Prompt:
        blocks: list[int] = []
        for block in item.blocks[: item.prompt_tokens // HASH_BLOCK_TOKENS]:
            first = _BLOCKS + block * HASH_BLOCK_TOKENS
            blocks.extend(range(first, first + HASH_BLOCK_TOKENS))
        own = max(0, item.prompt_tokens - start - len(blocks))
        return (*blocks, *range((number + 1) * _OWN, (number + 1) * _OWN + own))
