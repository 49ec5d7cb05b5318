"""What server and engine tell each other, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockc_runtime.counts import Counts
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.memory import MemoryUse
from blockc_runtime.request import EndEvent, Request, TokensEvent

# --- messages, server to engine -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Take on a request."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop working on a request. Unknown ids are fine: it may have ended meanwhile.

    ``is_done``: it has all that it wants, for a stop string came. That is an end like that of a stop token.
    """

    request: str
    is_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsQuery:
    """Ask for one `Stats`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Make one more plan ready: the file ``plan`` with the SHA-256 ``plan_digest``, to be called ``epoch``.

    ``alone``: in the place of all others, which have nothing unfinished; else beside them. Answered by one `Loaded` or
    `LoadFailed`. A requests' ``epoch`` says which plan it is for.
    """

    epoch: int
    plan: str
    plan_digest: str
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """No more requests come for this plan. It goes, with what no other plan has, when its last one has ended."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take on nothing more, finish what there is, then end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """End now."""


# --- messages, engine to server -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The engine has loaded the plan whose file has this SHA-256 and can serve it."""

    plan_digest: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """One more plan is ready.

    ``kept_bytes`` and ``loaded_bytes``: of its weights and fine-tunes, those that were in memory already and those that
    were read. Of its ``kv_groups`` so many go on in pages of the plan before (``kv_kept``), with what is cached in
    them. ``longest_turn_s``: the most that requests had to wait for the engine in one piece while it loaded.
    """

    epoch: int
    plan_digest: str
    kept_bytes: int
    loaded_bytes: int
    kv_groups: int
    kv_kept: int
    load_s: float
    longest_turn_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """A plan cannot be served, and nothing has changed. ``is_crowded``: it fits, and not beside the others."""

    epoch: int
    code: str
    message: str
    is_crowded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """How full a step was. ``chains``: distinct chains among its rows."""

    rows: int
    tokens: int
    launches: int
    chains: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What one step yielded, for all requests together.

    ``started``: requests that had their first row in it.
    """

    step: int
    load: StepLoad
    started: tuple[str, ...]
    events: tuple[TokensEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Requests that ended, each exactly once. Follows the `Tokens` of the same step."""

    events: tuple[EndEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The engine's state between two steps.

    ``pages`` by KV group; ``counts`` over all plans that there were. ``memory`` is None where the executor or the
    system does not say. ``sessions`` pause now; ``sessions_lost``: so many whose pages went, ever.
    """

    unfinished: int
    steps: int
    pages: tuple[PageUsage, ...]
    counts: Counts = field(default_factory=Counts)
    memory: MemoryUse | None = None
    sessions: int = 0
    sessions_lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineError:
    """The engine cannot go on and ends after this. ``code`` is a diagnostic's: ``BC905``."""

    code: str
    message: str


Message = (
    Submit | Cancel | StatsQuery | Load | Retire | Drain | Shutdown
    | Ready | Loaded | LoadFailed | Tokens | End | Stats | EngineError
)  # fmt: skip
