"""Keys: who calls, and what they may use.

In: keys (`key_sources`) and the ``Authorization`` header. Out: a `Caller` in the request's scope, or 401.
Invariant: with keys, every route that is not listed as open needs one, whether it exists or not;
the time of a check does not depend on how much of a key was right.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from blockc_runtime.server.access import NOTES
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.quotas import Quota

OPEN_PATHS = frozenset({"/health", "/ready"})
OPERATOR = "*"
_CALLER = "blockc.caller"
_NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whose key it was, and which. ``tenant`` None: the operator, or a server without keys.

    ``key``: the how-manieth of its tenant in the keys file, or the name of the secret that it came from.
    """

    tenant: str | None
    key: int | str | None = None

    def may_use(self, tenant: str) -> bool:
        """Whether the apps of ``tenant`` exist for this caller."""
        return self.tenant is None or self.tenant == tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What a keys file says: of each key's SHA-256 the tenant with the key's number, and the tenants' quotas.

    ``secrets``: the same of keys that are secrets of the plan, with the secret's name. ``read``: what the files and the
    plan's tenants were when they were read; whoever watches them begins from there.
    """

    owners: Mapping[bytes, tuple[str, int]] = field(default_factory=dict)
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    secrets: Mapping[bytes, tuple[str, str]] = field(default_factory=dict)
    read: object = None

    def owner(self, digest: bytes) -> str | None:
        """Whose key has this SHA-256."""
        found = self.owners.get(digest) or self.secrets.get(digest)
        return None if found is None else found[0]


class KeyRing:
    """The keys of all tenants, as hashes.

    Looked up by a hash keyed with a secret of this process: nobody outside can choose what the
    lookup compares, so that its timing tells nothing, and it costs the same for 1 key and 10,000.
    """

    def __init__(self, keys: Keys) -> None:
        self._secret = secrets.token_bytes(32)
        self.replace(keys)

    def replace(self, keys: Keys) -> None:
        """Know these keys and quotas from here on, and no others. What is running goes on."""
        self.keys = keys
        owners: dict[bytes, tuple[str, int | str]] = {**keys.secrets, **keys.owners}
        self._owner_of = {self._blind(digest): owner for digest, owner in owners.items()}

    def caller(self, authorization: bytes | None) -> Caller | None:
        """Return who sent this header; None if nobody known."""
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        owner = self._owner_of.get(self._blind(digest))
        if owner is None or scheme.lower() != b"bearer":
            return None
        tenant, number = owner
        return Caller(tenant=None if tenant == OPERATOR else tenant, key=number)

    def quota(self, tenant: str) -> Quota:
        """Return the limits of a tenant."""
        return self.keys.quotas.get(tenant, _NO_QUOTA)

    def _blind(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=32).digest()


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
            if (notes := scope.get(NOTES)) is not None and self._keys is not None:
                notes.update(tenant=caller.tenant or OPERATOR, key=caller.key)
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


def require_operator(scope: Scope, why: str) -> None:
    """Raise 403 for a tenant's key, and say why."""
    if caller_of(scope).tenant is not None:
        raise ApiError(403, f"{why}: it needs the operator's key", code="operator_only")
