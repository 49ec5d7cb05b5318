"""Which names an expression mentions, and in which order definitions can be evaluated.

Invariant: iterative, so that a chain of 10,000 definitions needs no deep stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from blockc.spec import syntax


def mentions(expr: syntax.Expr) -> Iterator[str]:
    """Yield every name that ``expr`` refers to."""
    pending: list[syntax.Expr] = [expr]
    while pending:
        match pending.pop():
            case syntax.Reference(name=name, trailers=trailers):
                yield name.text
                for trailer in trailers:
                    if isinstance(trailer, syntax.Index):
                        pending.append(trailer.position)
                    elif isinstance(trailer, syntax.Arguments):
                        pending.extend(argument.value for argument in trailer.items)
            case syntax.String(parts=parts):
                pending.extend(part for part in parts if not isinstance(part, str))
            case syntax.ListOf(items=items):
                pending.extend(items)
            case syntax.ObjectOf(pairs=pairs):
                pending.extend(pair.value for pair in pairs)
                pending.extend(pair.key for pair in pairs if isinstance(pair.key, syntax.String))
            case syntax.Unary(operand=operand):
                pending.append(operand)
            case syntax.Binary(operands=operands):
                pending.extend(operands)


def in_dependency_order(edges: Mapping[str, frozenset[str]]) -> tuple[list[str], list[list[str]]]:
    """Sort names so that each comes after those it depends on; return the order and the cycles.

    Names on a cycle are in one of the cycles and not in the order. Names outside of ``edges`` are
    ignored.
    """
    order: list[str] = []
    cycles: list[list[str]] = []
    done: set[str] = set()
    path: dict[str, Iterator[str]] = {}  # name -> those it depends on and that are still to be visited
    for root in edges:
        if root not in done:
            path[root] = iter(sorted(edges[root] & edges.keys()))
        while path:
            name = next(reversed(path))
            child = next(path[name], None)
            if child is None:
                del path[name]
                if name not in done:
                    done.add(name)
                    order.append(name)
            elif child in path:
                names = list(path)
                cycle = names[names.index(child) :]
                if not done.issuperset(cycle):
                    cycles.append(cycle)
                    done.update(cycle)
            elif child not in done:
                path[child] = iter(sorted(edges[child] & edges.keys()))
    return order, cycles
