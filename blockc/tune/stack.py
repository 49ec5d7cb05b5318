"""Sides of a fine-tune on top of another."""

from __future__ import annotations

from blockc.ir import Side, Site, Term


def stack_sides(below: tuple[Side, ...], above: tuple[Side, ...]) -> tuple[Side, ...]:
    """At each site the terms of both, the lower one's first."""
    terms: dict[Site, tuple[Term, ...]] = {side.site: side.terms for side in below}
    for side in above:
        terms[side.site] = terms.get(side.site, ()) + side.terms
    return tuple(Side(site=site, terms=terms[site]) for site in sorted(terms))
