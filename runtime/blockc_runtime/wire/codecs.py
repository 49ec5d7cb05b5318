"""How frozen dataclasses become plain values, and plain values are checked on their way back.

In: the types of a dataclass's fields. Out: a :class:`Codec`. Invariant: what ``unpack`` returns is well typed, whatever
it is given; anything else raises `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_K = TypeVar("_K")


class ProtocolError(Exception):
    """The peer sent, or we were asked to send, something that is not a frame of this version."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[_T]):
    """``pack`` yields what msgpack can write, None: the value itself; ``unpack`` checks."""

    pack: Callable[[Any], object] | None
    unpack: Callable[[object], _T]


def scalar(kind: type[_T]) -> Codec[_T]:
    """A number or a text of exactly this type."""

    def unpack(value: object) -> _T:
        # `type is`, not isinstance: True is no integer on the wire.
        if type(value) is not kind:
            raise ProtocolError(f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    return Codec(None, unpack)


def scalars(*kinds: type) -> Codec[tuple[Any, ...]]:
    """Encode a flat tuple of scalars, checked at C speed: prompts are long."""
    allowed = frozenset(kinds)

    def unpack(value: object) -> tuple[Any, ...]:
        if type(value) is not tuple or not allowed.issuperset(map(type, value)):
            raise ProtocolError("expected a flat list of " + " or ".join(sorted(k.__name__ for k in kinds)))
        return value

    return Codec(None, unpack)


def choice(*allowed: str) -> Codec[Any]:
    """One of some words."""

    def unpack(value: object) -> str:
        if type(value) is not str or value not in allowed:
            raise ProtocolError(f"expected one of {', '.join(allowed)}")
        return value

    return Codec(None, unpack)


def optional(inner: Codec[_T]) -> Codec[_T | None]:
    """That, or None."""

    def pack(value: Any) -> object:
        return value if value is None or inner.pack is None else inner.pack(value)

    return Codec(
        None if inner.pack is None else pack,
        lambda value: None if value is None else inner.unpack(value),
    )


def many(inner: Codec[_T]) -> Codec[tuple[_T, ...]]:
    """Any number of them."""
    unpack_one = inner.unpack

    def pack(value: Any) -> object:
        return value if inner.pack is None else [inner.pack(item) for item in value]

    def unpack(value: object) -> tuple[_T, ...]:
        if type(value) is not tuple:
            raise ProtocolError(f"expected a list, found {type(value).__name__}")
        return tuple([unpack_one(item) for item in value]) if value else ()

    return Codec(None if inner.pack is None else pack, unpack)


def table(key: Codec[_K], inner: Codec[_T]) -> Codec[dict[_K, _T]]:
    """A mapping, as the list of its items. Neither keys nor values are to be packed."""

    def unpack(value: object) -> dict[_K, _T]:
        if type(value) is not tuple or not all(type(item) is tuple and len(item) == 2 for item in value):
            raise ProtocolError("expected a list of pairs")
        found = {key.unpack(name): inner.unpack(item) for name, item in value}
        if len(found) < len(value):
            raise ProtocolError("a key twice")
        return found

    return Codec(lambda value: list(value.items()), unpack)


def record(kind: type[_T], **fields: Codec[Any]) -> Codec[_T]:
    """Encode a dataclass as the list of its fields, in the order given here: the wire's."""
    names = tuple(fields)
    packers = tuple((name, codec.pack) for name, codec in fields.items())
    unpackers = tuple(codec.unpack for codec in fields.values())
    name = kind.__name__

    def pack(value: Any) -> object:
        return [getattr(value, name) if packer is None else packer(getattr(value, name)) for name, packer in packers]

    def unpack(value: object) -> _T:
        if type(value) is not tuple or len(value) != len(names):
            raise ProtocolError(f"malformed {name}")
        return kind(**{key: read(item) for key, read, item in zip(names, unpackers, value, strict=True)})

    return Codec(pack, unpack)
