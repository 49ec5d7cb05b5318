"""Keys: who calls, and what they may use.

In: a keys file and the ``Authorization`` header. Out: a `Caller` in the request's scope, or 401.
Invariant: with keys, every route that is not listed as open needs one, whether it exists or not;
the time of a check does not depend on how much of a key was right.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from blockc.diag import Diagnostics
from blockc_runtime.server.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/ready"})
OPERATOR = "*"
_CALLER = "blockc.caller"
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")
_KEY_CHARS = 8
_FORM = 'write {"tenant": ["sk-...", "sha256:<hex>"]}; the tenant "*" is the operator'


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whose key it was. ``tenant`` None: the operator, or a server without keys."""

    tenant: str | None

    def may_use(self, tenant: str) -> bool:
        """Whether the apps of ``tenant`` exist for this caller."""
        return self.tenant is None or self.tenant == tenant


class KeyRing:
    """The keys of all tenants, as hashes.

    Looked up by a hash keyed with a secret of this process: nobody outside can choose what the
    lookup compares, so that its timing tells nothing, and it costs the same for 1 key and 10,000.
    """

    def __init__(self, tenant_of: Mapping[bytes, str]) -> None:
        self._secret = secrets.token_bytes(32)
        self._tenant_of = {self._blind(digest): tenant for digest, tenant in tenant_of.items()}

    def caller(self, authorization: bytes | None) -> Caller | None:
        """Return who sent this header; None if nobody known."""
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        tenant = self._tenant_of.get(self._blind(digest))
        if tenant is None or scheme.lower() != b"bearer":
            return None
        return Caller(tenant=None if tenant == OPERATOR else tenant)

    def _blind(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=32).digest()


def load_keys(path: Path, tenants: Collection[str]) -> KeyRing:
    """Read ``{"tenant": ["sk-...", "sha256:<hex>"]}`` as JSON, or as TOML if it ends in ``.toml``.

    The tenant ``*`` is the operator: every app, every metric. Raises `DiagnosticError`.
    """
    problems = Diagnostics()
    entries = _read(path, problems)
    tenant_of: dict[bytes, str] = {}
    for tenant, keys in entries.items():
        if tenant != OPERATOR and tenant not in tenants:
            problems.report(
                "BC101",
                f"{path.name} gives keys to `{tenant[:80]}`, which the plan does not know",
                help=f"the plan's tenants are {', '.join(sorted(tenants)[:20])}",
            )
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            problems.report("BC104", f"the keys of `{tenant[:80]}` are not a list of strings", help=_FORM)
            continue
        for number, key in enumerate(keys, 1):
            digest = _digest(key)
            if digest is None:
                problems.report(
                    "BC109",
                    f"key {number} of `{tenant[:80]}` is neither `sha256:` with 64 hexadecimal "
                    f"digits nor a text of {_KEY_CHARS} characters and more without blanks",
                    help=_FORM,
                )
            elif tenant_of.setdefault(digest, tenant) != tenant:
                problems.report(
                    "BC106",
                    f"key {number} of `{tenant[:80]}` is also `{tenant_of[digest]}`'s",
                    help="give each a key of its own",
                )
    problems.raise_if_errors()
    return KeyRing(tenant_of)


def _read(path: Path, problems: Diagnostics) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        problems.report("BC003", f"the keys file {path} cannot be read: {error.strerror}", help=_FORM)
    except ValueError as error:  # its text is left out: it may quote a key
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        problems.report("BC001", f"the keys file {path} is not {kind} ({where})", help=_FORM)
    else:
        if isinstance(value, dict) and value:
            return value
        problems.report("BC104", f"the keys file {path} does not map tenants to lists of keys", help=_FORM)
    problems.raise_if_errors()
    return {}


def _digest(key: str) -> bytes | None:
    if hashed := _HASHED.fullmatch(key):
        return bytes.fromhex(hashed[1])
    if key.startswith("sha256:") or len(key) < _KEY_CHARS or not key.isascii() or " " in key:
        return None
    return hashlib.sha256(key.encode()).digest()


class KeyMiddleware:
    """Lets nothing through that carries no key, except the open paths."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass on with the caller in the scope."""
        if scope["type"] != "lifespan":
            caller = self._caller(scope)
            if caller is None:
                error = ApiError(
                    401,
                    "a valid key is needed: `Authorization: Bearer <key>`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error.response()(scope, receive, send)
                return
            scope[_CALLER] = caller
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller | None:
        if self._keys is None or scope["path"] in OPEN_PATHS:
            return Caller(tenant=None)
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        return self._keys.caller(headers[0] if len(headers) == 1 else None)


def caller_of(scope: Scope) -> Caller:
    """Return who `KeyMiddleware` found. A scope that did not pass it is nobody's."""
    caller = scope[_CALLER]
    assert isinstance(caller, Caller)
    return caller
