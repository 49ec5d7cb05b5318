"""Grammars: which tokens an output may go on with, asked of a process for each tokenizer (`grammar_process.py`).

In: rows with grammars and their outputs so far. Out: a mask of tokens each. The server has refused what is no grammar;
one that fails here all the same is a fault of its row. A process starts when the first grammar of its tokenizer comes,
and again after it has died: no state is in it that does not follow from the tokens. It serves every plan that has this
tokenizer, and ends with the last of them.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from blockc.diag import DiagnosticError
from blockc.plan import ChainEntry, ExecutionPlan
from blockc.zoo import Zoo
from blockc_runtime.grammar_process import read_frame, write_frame
from blockc_runtime.step import Row
from blockc_runtime.tokenizer_files import SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG

COMMAND = (sys.executable, "-m", "blockc_runtime.grammar_process")
_FILES = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP)
_DIED = "the process that reads grammars ended"
_STARTING_S = 0.01
_Key = tuple[str | int | None, ...]


@dataclass(slots=True)
class _Shared:
    """A process, and who uses it."""

    reader: _Reader
    users: set[object]


class Grammars:
    """All grammars in use by one plan. Implements `draw.Masks`. ``command``: what starts a process.

    ``before``: of another plan, whose processes serve this one, too, where tokenizers are the same.
    """

    def __init__(
        self, plan: ExecutionPlan, zoo: Zoo, *, command: Sequence[str] = COMMAND, before: Grammars | None = None
    ) -> None:
        self._plan = plan
        self._zoo = zoo
        self._command = command
        self._all: dict[_Key, _Shared] = {} if before is None else before._all
        # Requests that come ask for readers while a step uses them, and plans come and go.
        self._lock: threading.Lock = threading.Lock() if before is None else before._lock
        self._user = object()
        with self._lock:
            for key in set(map(_key, plan.chains)):
                if (shared := self._all.get(key)) is not None:
                    shared.users.add(self._user)

    def index(self, chain: int) -> bool:
        """Have a chain's vocabulary indexed; whether that is done, or cannot be, which its rows are told."""
        return not 0 <= chain < len(self._plan.chains) or self._reader(chain).poll()

    def allowed(self, rows: Sequence[tuple[Row, Sequence[int]]], vocab: int) -> list[Tensor | str]:
        """For each row the tokens ``[vocab]`` that may follow its outputs, or why none can.

        Waits for a vocabulary that is not indexed yet.
        """
        by_reader: dict[_Reader, list[int]] = {}
        answers: list[Tensor | str] = [_DIED] * len(rows)
        for place, (row, _) in enumerate(rows):
            by_reader.setdefault(self._reader(row.chain), []).append(place)
        for reader, places in by_reader.items():
            for place, answer in zip(places, reader.ask([rows[place] for place in places], vocab), strict=True):
                answers[place] = answer
        return answers

    def close(self) -> None:
        """End the processes that no other plan uses."""
        with self._lock:
            for shared in self._all.values():
                shared.users.discard(self._user)
            unused = {key: shared.reader for key, shared in self._all.items() if not shared.users}
            for key in unused:
                del self._all[key]
        for reader in unused.values():
            reader.close()

    def _reader(self, chain: int) -> _Reader:
        """The process of a chain's tokenizer, one for all chains with equal files."""
        entry = self._plan.chains[chain]
        with self._lock:
            shared = self._all.get(key := _key(entry))
            if shared is None:
                shared = self._all[key] = _Shared(self._start(entry), set())
            elif shared.reader.is_dead:
                shared.reader.close()
                shared.reader = self._start(entry)
            shared.users.add(self._user)
            return shared.reader

    def _start(self, entry: ChainEntry) -> _Reader:
        return _Reader(self._command, partial(self._beginning, entry))

    def _beginning(self, entry: ChainEntry) -> object:
        """What a process has to know. Raises `DiagnosticError`, OSError."""
        files = {name: self._zoo.blob(entry.assets[name]) for name in _FILES if name in entry.assets}
        return files, entry.vocab_size, entry.stop_token_ids


def _key(entry: ChainEntry) -> _Key:
    """What a process is told."""
    return (*(entry.assets.get(name) for name in _FILES), entry.vocab_size, *entry.stop_token_ids)


class _Reader:
    """One process, which is started and given its tokenizer by a thread: neither is to hold up a step."""

    def __init__(self, command: Sequence[str], beginning: Callable[[], object]) -> None:
        self._command, self._beginning = command, beginning
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()  # steps of two plans may be in flight at once
        self._ends: tuple[int, ...] = ()
        self._problem = ""
        self._start = threading.Thread(target=self._run, name="grammars", daemon=True)
        self._start.start()

    @property
    def is_dead(self) -> bool:
        """Whether it has ended. One that cannot use its tokenizer is not started again: it would say the same."""
        return self.poll() and _DIED in self._problem

    def poll(self) -> bool:
        """Whether it is ready, or will never be."""
        return not self._start.is_alive()

    def ask(self, rows: Sequence[tuple[Row, Sequence[int]]], vocab: int) -> list[Tensor | str]:
        """A mask for each row, or a problem."""
        self._start.join()
        if self._problem or self._process is None:
            return [self._problem] * len(rows)
        try:
            with self._asking:
                write_frame(self._sink, [(row.request, _grammar(row), outputs) for row, outputs in rows])
                answers = read_frame(self._source)
        except (EOFError, OSError):
            self._fail(_DIED)
            return [self._problem] * len(rows)
        return [
            answer if isinstance(answer, str) else self._mask(row, answer, vocab)
            for (row, _), answer in zip(rows, answers, strict=True)
        ]

    def close(self) -> None:
        """End it, and wait until it has."""
        while self._process is None and self._start.is_alive():
            self._start.join(_STARTING_S)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._start.join()
            self._source.close()
            with contextlib.suppress(OSError):  # what was in the buffer has no reader
                self._sink.close()

    def _run(self) -> None:
        try:
            beginning = self._beginning()
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            write_frame(self._sink, beginning)
            said = read_frame(self._source)
        except (EOFError, OSError):
            self._fail(_DIED)
        except DiagnosticError as error:  # the zoo's files
            self._fail("; ".join(item.message for item in error.diagnostics))
        else:
            if isinstance(said, str):
                self._fail(said)
            else:
                self._ends = said

    def _fail(self, problem: str) -> None:
        self._problem = f"the grammar cannot be used: {problem}"

    @property
    def _sink(self) -> BinaryIO:
        assert self._process is not None
        return cast("BinaryIO", self._process.stdin)

    @property
    def _source(self) -> BinaryIO:
        assert self._process is not None
        return cast("BinaryIO", self._process.stdout)

    def _mask(self, row: Row, answer: tuple[bytes, bool], vocab: int) -> Tensor:
        bits, is_accepting = answer
        known = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[:vocab].astype(np.bool_)
        mask = np.zeros(vocab, dtype=np.bool_)  # the head may have rows that no token uses
        mask[: len(known)] = known
        # The end is for the request to name: a chain may know other tokens than its generation config.
        mask[[token for token in self._ends if token < vocab]] = False
        if is_accepting:
            assert row.sampling is not None
            assert row.sampling.steering is not None
            mask[[token for token in row.sampling.steering.stop_token_ids if token < vocab]] = True
        return torch.from_numpy(mask)


def _grammar(row: Row) -> str:
    assert row.sampling is not None
    assert row.sampling.steering is not None
    assert row.sampling.steering.grammar is not None
    return row.sampling.steering.grammar
