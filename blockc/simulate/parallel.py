"""Simulations beside each other, on several cores.

In: a function of a module and its arguments, one run each. Out: its results, in their order. Runs know nothing of each
other, so that it does not matter how many processes there are. One run is one process's: instances that share an app
wait for each other's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def in_processes(function: Callable[[In], Out], items: Sequence[In], *, jobs: int) -> list[Out]:
    """``function`` of every item. New interpreters: nothing of this one's threads is copied into them."""
    jobs = min(jobs, len(items))
    if jobs < 2:
        return [function(item) for item in items]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, items))
