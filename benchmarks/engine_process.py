"""An engine process as ``blockc serve`` starts it, with this process in the server's place."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from blockc_runtime.request import EndEvent, Request
from blockc_runtime.server.engine_life import PlanFile
from blockc_runtime.server.supervisor import engine_command, engine_environment
from blockc_runtime.wire.frames import FrameBuffer, encode
from blockc_runtime.wire.messages import End, EngineError, Message, Ready, Shutdown, Stats, StatsQuery, Submit, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Bytes of a process, as the system counts them.

    ``private_bytes``: clean and dirty, of `smaps_rollup`. ``held_bytes``: anonymous memory and mapped files below
    ``zoo``; so without the files of libraries, which are private or shared as other processes happen to use them.
    ``most_held_bytes``: the same at the peak. ``peak_bytes``: the most resident at any time, libraries included.
    """

    private_bytes: int
    held_bytes: int
    most_held_bytes: int
    peak_bytes: int


def process_memory(pid: int, zoo: Path) -> ProcessMemory:
    """Read `smaps_rollup`, `smaps` and `status` of a process of ours."""
    rollup, status = (_sizes(Path(f"/proc/{pid}/{name}").read_text()) for name in ("smaps_rollup", "status"))
    mapped = _mapped_bytes(Path(f"/proc/{pid}/smaps").read_text(), str(zoo.resolve()))
    own = rollup["Anonymous"] + status["RssShmem"]
    return ProcessMemory(
        private_bytes=rollup["Private_Clean"] + rollup["Private_Dirty"],
        held_bytes=own + mapped,
        most_held_bytes=max(own, status["VmHWM"] - status["RssFile"]) + mapped,
        peak_bytes=status["VmHWM"],
    )


def runtime_memory(plan: Path, zoo: Path) -> ProcessMemory:
    """Of an engine that has imported everything and read its plan, and has loaded nothing."""
    code = (
        "from blockc_runtime.memory import before_loading; before_loading()\n"
        "import sys; from pathlib import Path\n"
        "import blockc_runtime.engine, blockc_runtime.executor.torch_ as executor\n"
        "from blockc.plan import load_plan; plan = load_plan(Path(sys.argv[1]))\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        (sys.executable, "-P", "-c", code, str(plan)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    memory = process_memory(process.pid, zoo)
    process.communicate(b"")
    return memory


def forget_peak(pid: int) -> None:
    """From here on the peak counts anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class EngineProcess:
    """Use as a context: loaded on entry, ended on exit. RuntimeError: what the engine said when it could not go on."""

    def __init__(self, plan: Path, zoo: Path, *, log: Path | None = None) -> None:
        self._plan, self._zoo, self._log = plan, zoo, log
        self._frames, self._messages = FrameBuffer(), list[Message]()

    def __enter__(self) -> EngineProcess:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = Path(folder) / "engine.sock"
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(120)
            output = subprocess.DEVNULL if self._log is None else self._log.open("wb")
            self.process = subprocess.Popen(
                engine_command(self._zoo, "torch")(path, PlanFile(epoch=0, path=self._plan, digest="")),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=engine_environment(),
            )
            self._connection, _ = listener.accept()
        self._connection.settimeout(1800)
        assert isinstance(self.next(), Ready)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.send(Shutdown())
        else:
            self.process.kill()
        self._connection.close()
        self.process.wait(timeout=30)

    @property
    def memory(self) -> ProcessMemory:
        """What the system says of it now."""
        return process_memory(self.process.pid, self._zoo)

    def send(self, *messages: Message) -> None:
        """Write messages in one go."""
        self._connection.sendall(b"".join(map(encode, messages)))

    def next(self) -> Message:
        """The next message that came."""
        while not self._messages:
            data = self._connection.recv(1 << 16)
            if not data:
                raise RuntimeError("the engine has ended")
            self._messages += self._frames.feed(data)
        message = self._messages.pop(0)
        if isinstance(message, EngineError):
            raise RuntimeError(f"{message.code}: {message.message}")
        return message

    def stats(self) -> Stats:
        """Ask between two steps."""
        self.send(StatsQuery())
        while not isinstance(message := self.next(), Stats):
            pass
        return message

    def arrivals(self, requests: Sequence[Request]) -> list[float]:
        """Serve requests to their end. Returns when results came: one read a step."""
        self.send(*(Submit(request=request) for request in requests))
        left, arrivals = len(requests), list[float]()
        while left:
            data = self._connection.recv(1 << 16)
            arrivals.append(time.perf_counter())
            if not data:
                raise RuntimeError("the engine has ended")
            for message in self._frames.feed(data):
                left -= len(message.events) if isinstance(message, End) else 0
        return arrivals

    def run(self, requests: Iterable[Request]) -> tuple[int, list[EndEvent]]:
        """Serve requests to their end. Returns the most tokens that a step had, and how each ended."""
        submits = [Submit(request=request) for request in requests]
        self.send(*submits)
        most_tokens, ends = 0, list[EndEvent]()
        while len(ends) < len(submits):
            match self.next():
                case Tokens(load=load):
                    most_tokens = max(most_tokens, load.tokens)
                case End(events=events):
                    ends += events
        return most_tokens, ends


def _sizes(text: str) -> dict[str, int]:
    """Lines such as ``Rss: 12 kB``, in bytes."""
    lines = (line.partition(":") for line in text.splitlines() if line.endswith(" kB"))
    return {name: int(value.split()[0]) << 10 for name, _, value in lines}


def _mapped_bytes(smaps: str, folder: str) -> int:
    """Bytes in memory of mapped files below ``folder``."""
    total, counts = 0, False
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counts = len(words) > 5 and words[5].startswith(folder)
        elif counts and words[0] == "Rss:":
            total += int(words[1]) << 10
    return total
