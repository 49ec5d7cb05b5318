"""What a plan names by digest and the zoo keeps, so that plans stay small: sides of a fine-tune, and evidence."""

from __future__ import annotations

from typing import Literal

from blockc.ir.codecs import CODECS
from blockc.ir.side import Scalar, Side, Site, term
from blockc.ir.tensor import TensorRef
from blockc.plan.entry import Entry


class TermEntry(Entry):
    """One term of a side (see `blockc.ir.codecs`). Floats among ``scalars`` are hexadecimal text, exact."""

    codec: str
    tensors: dict[str, TensorRef]
    scalars: dict[str, int | str]


class SideEntry(Entry):
    """What one site of one occurrence gets."""

    occurrence: int
    site: str
    terms: tuple[TermEntry, ...]

    @classmethod
    def of(cls, side: Side) -> SideEntry:
        """The entry of a side."""
        terms = (
            TermEntry(
                codec=term.codec,
                tensors=dict(term.tensors),
                scalars={name: value.hex() if isinstance(value, float) else value for name, value in term.scalars},
            )
            for term in side.terms
        )
        return cls(occurrence=side.site.occurrence, site=side.site.name, terms=tuple(terms))

    @property
    def side(self) -> Side:
        """The side that this is the entry of. Raises ValueError where a float is none."""
        return Side(
            site=Site(occurrence=self.occurrence, name=self.site),
            terms=tuple(
                term(entry.codec, entry.tensors, **{name: _scalar(entry, name) for name in entry.scalars})
                for entry in self.terms
            ),
        )


class SideManifest(Entry):
    """All sides of one fine-tune (or stack), kept in the zoo by digest so that plans stay small."""

    format_version: Literal[1] = 1
    sides: tuple[SideEntry, ...]


class TensorEvidenceEntry(Entry):
    """One tensor of a full fine-tune that is kept beside a shared one: see `blockc.share.TensorEvidence`."""

    occurrence: int
    parameter: str
    codec: str
    lost: float
    error: float
    nbytes: int
    own_bytes: int


class EvidenceManifest(Entry):
    """What each tensor of one fine-tune lost, kept in the zoo by digest so that plans stay small."""

    format_version: Literal[1] = 1
    tensors: tuple[TensorEvidenceEntry, ...]


def _scalar(entry: TermEntry, name: str) -> Scalar:
    """A scalar of the type that its codec gives it; of an unknown codec as it is written."""
    value = entry.scalars[name]
    codec = CODECS.get(entry.codec)
    return float.fromhex(str(value)) if codec is not None and codec.scalars.get(name) is float else value
