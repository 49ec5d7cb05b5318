"""The keys file: tenants' keys and quotas.

In: a file, and the tenants of the plan. Out: `Keys`. Invariant: what is said of a file that is wrong shows no key.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from blockc.diag import Diagnostics
from blockc_runtime.server.auth import OPERATOR, Keys
from blockc_runtime.server.quotas import Quota

_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_KEY_CHARS = 8
KEY_FORM = f"`sha256:` with 64 hexadecimal digits nor a text of {_KEY_CHARS} ASCII characters and more without blanks"
_FORM = (
    'write {"tenant": ["sk-...", "sha256:<hex>"]}, or {"tenant": {"keys": [...], "requests_per_minute": 60, '
    '"tokens_per_minute": 100000}}; the tenant "*" is the operator'
)
_LIMITS = ("requests_per_minute", "tokens_per_minute")
_MOST = 10**12


def load_keys(path: Path, tenants: Collection[str]) -> Keys:
    """Read ``{"tenant": ["sk-...", "sha256:<hex>"]}`` as JSON, or as TOML if it ends in ``.toml``.

    In place of its keys a tenant may have ``keys`` and quotas. The tenant ``*`` is the operator: every app, every
    metric, no quota. Raises `DiagnosticError`.
    """
    problems = Diagnostics()
    entries = _read(path, problems)
    owners: dict[bytes, tuple[str, int]] = {}
    quotas: dict[str, Quota] = {}
    for place, (tenant, entry) in enumerate(entries.items(), 1):
        if tenant != OPERATOR and tenant not in tenants:
            problems.report(  # by its place: where keys and tenants are the wrong way round, the name is a key
                "BC101",
                f"entry {place} of {path.name} is for none of the plan's tenants",
                help=f"they are {', '.join(sorted(tenants)[:20])}",
            )
            continue
        keys = entry
        if isinstance(entry, dict):
            keys = entry.get("keys")
            quotas[tenant] = _quota(tenant, entry, problems)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            problems.report("BC104", f"the keys of `{tenant[:80]}` are not a list of strings", help=_FORM)
            continue
        _add(owners, tenant, keys, problems)
    problems.raise_if_errors()
    return Keys(owners=owners, quotas=quotas)


def _add(owners: dict[bytes, tuple[str, int]], tenant: str, keys: list[str], problems: Diagnostics) -> None:
    for number, key in enumerate(keys, 1):
        digest = key_digest(key)
        if digest is None:
            problems.report(
                "BC109",
                f"key {number} of `{tenant[:80]}` is neither {KEY_FORM}",
                help=_FORM,
            )
        elif owners.setdefault(digest, (tenant, number))[0] != tenant:
            problems.report(
                "BC106",
                f"key {number} of `{tenant[:80]}` is also `{owners[digest][0]}`'s",
                help="give each a key of its own",
            )


def _quota(tenant: str, entry: Mapping[str, Any], problems: Diagnostics) -> Quota:
    for place, (name, value) in enumerate(entry.items(), 1):
        if name == "keys":
            continue
        if name not in _LIMITS:
            problems.report("BC104", f"field {place} of `{tenant[:80]}` means nothing here", help=_FORM)
        elif tenant == OPERATOR:
            problems.report("BC104", "the operator has no quota", help="give the quota to a tenant")
        elif type(value) is not int or not 1 <= value <= _MOST:
            problems.report("BC109", f"`{name}` of `{tenant[:80]}` is not a whole number above 0", help=_FORM)
    return Quota(**{name: entry[name] for name in _LIMITS if type(entry.get(name)) is int})


def _read(path: Path, problems: Diagnostics) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        problems.report("BC003", f"the keys file {path} cannot be read: {error.strerror}", help=_FORM)
    except (ValueError, RecursionError) as error:  # its text is left out: it may quote a key
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        problems.report("BC001", f"the keys file {path} is not {kind} ({where})", help=_FORM)
    else:
        if isinstance(value, dict) and value:
            return value
        problems.report("BC104", f"the keys file {path} does not map tenants to lists of keys", help=_FORM)
    problems.raise_if_errors()
    return {}


def key_digest(key: str) -> bytes | None:
    """The SHA-256 of a key that is written plainly or as that; None for what is neither."""
    if hashed := _HASHED.fullmatch(key):
        return bytes.fromhex(hashed[1])
    if key.startswith("sha256:") or len(key) < _KEY_CHARS or not key.isascii() or " " in key:
        return None
    return hashlib.sha256(key.encode()).digest()
