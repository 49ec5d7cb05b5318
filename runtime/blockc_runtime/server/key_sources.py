"""Where keys come from: the keys file, and secrets that the plan names.

In: a file, places of secrets, and what the plan says of its tenants. Out: `Keys`, again whenever a file or the plan
changes. Invariant: what is wrong changes nothing, and what is said of it shows no key; a key is one tenant's, wherever
it comes from.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from blockc.diag import DiagnosticError, Diagnostics
from blockc_runtime.server.auth import OPERATOR, KeyRing, Keys
from blockc_runtime.server.keys_file import KEY_FORM, key_digest, load_keys
from blockc_runtime.server.secret_places import SecretError, SecretPlaces

_POLL_S = 1.0

# Every tenant of the plan, with the names of the secrets that are its keys.
KeySecrets = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySources:
    """``file``: the keys file; None: there is none."""

    file: Path | None = None
    places: SecretPlaces = field(default_factory=SecretPlaces)

    def load(self, plan: KeySecrets) -> Keys:
        """Read the file and the plan's secrets. Raises `DiagnosticError`."""
        read = self.version(plan)  # before: what changes meanwhile is read again
        keys = Keys() if self.file is None else load_keys(self.file, plan)
        return replace(self.beside(keys, plan), read=read)

    def beside(self, keys: Keys, plan: KeySecrets) -> Keys:
        """``keys`` with a plan's secrets in place of those that it has. Raises `DiagnosticError` (BC106, BC603)."""
        problems = Diagnostics()
        found = replace(keys, secrets={})
        secrets: dict[bytes, tuple[str, str]] = {}
        for tenant, names in plan.items():
            for name in names:
                for number, digest in enumerate(self._digests(name, tenant, problems)):
                    called = name if number == 0 else f"{name}:{number + 1}"
                    owner = found.owner(digest) or secrets.setdefault(digest, (tenant, called))[0]
                    if owner != tenant:
                        problems.report(
                            "BC106",
                            f"the secret `{name}` of the tenant `{tenant[:80]}` holds a key that is also "
                            f"`{owner[:80]}`'s",
                            help="give each a key of its own",
                        )
        problems.raise_if_errors()
        return replace(found, secrets=secrets)

    def version(self, plan: KeySecrets) -> object:
        """What changes with the files and the plan's tenants."""
        files = [path for names in plan.values() for name in names for path in self.places.files(name)]
        return dict(plan), [_version(path) for path in ([] if self.file is None else [self.file]) + files]

    def _digests(self, name: str, tenant: str, problems: Diagnostics) -> list[bytes]:
        """The SHA-256 of each key in a secret, one on a line."""
        try:
            lines = [line.strip() for line in self.places.read(name).splitlines() if line.strip()]
        except SecretError as error:
            why, lines = str(error), []
        else:
            why = "is empty"
        digests = [digest for line in lines if (digest := key_digest(line)) is not None]
        if len(digests) < len(lines):
            why = f"has a line that is neither {KEY_FORM}"
        if len(digests) < len(lines) or not lines:
            problems.report(
                "BC603",
                f"the secret `{name}`, a key of the tenant `{tenant[:80]}`, {why}",
                help=f"give it in one place: the variable {name}, a file that {name}_FILE names, or a file called "
                f"{name} in the folder of --secrets; a key, or one on each line",
            )
        return digests


async def watch_keys(
    sources: KeySources,
    ring: KeyRing,
    plan: Callable[[], KeySecrets],
    progress: Callable[[str], None],
    *,
    poll_s: float = _POLL_S,
) -> None:
    """Take over what files and secrets say, whenever they or the plan's tenants change, until cancelled.

    They may have changed since the ring's keys were read.
    """
    seen = ring.keys.read
    while True:
        await asyncio.sleep(poll_s)
        of = plan()
        if (version := await asyncio.to_thread(sources.version, of)) == seen:
            continue
        seen = version
        try:
            keys = await asyncio.to_thread(sources.load, of)
        except DiagnosticError as error:
            for item in error.diagnostics:
                progress(f"error[{item.code.id}]: {item.message}; the keys stay as they were")
        else:
            if of == plan():  # else a swap has put other secrets in force meanwhile
                ring.replace(keys)
                owners = {tenant for tenant, _ in (*keys.owners.values(), *keys.secrets.values())} - {OPERATOR}
                count, whose = len(keys.owners) + len(keys.secrets), "tenant" if len(owners) == 1 else "tenants"
                progress(f"keys read again: {count}, of {len(owners)} {whose} and the operator")


def _version(path: Path) -> tuple[int, ...] | None:
    """Return what changes with the file; None while it is not there. Mounted secrets change by their link."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
