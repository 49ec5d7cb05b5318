"""What a fine-tune changes, collected site by site while its files are read.

In: terms for linears and tables, and whole parameters by name. Out: `Tuned`. Invariant: each parameter is changed in
one way: as a vector or bias beside the shared one, as rows where few rows of a table or matrix differ, else as a tensor
of its own, which makes its block a private one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from blockc.graph import Block, ModelPath
from blockc.ir import Place, Side, Site, TensorRef, Term, place_of, term
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.folding import folded_bias, folded_matrix
from blockc.tune.full import tensor_ref
from blockc.tune.stored import read_tensor
from blockc.tune.vocabulary import is_head, may_resize, resized
from blockc.zoo import Zoo

# Of the rows of a table or matrix: more changed ones than this cost more beside the shared tensor than in one's own.
_FEW_ROWS = 0.25


def few_rows(base: torch.Tensor, value: torch.Tensor) -> torch.Tensor | None:
    """``[n]``: the rows in which two matrices of one shape differ; None where they are not few."""
    differs = (value != base).any(1).nonzero().flatten()
    return differs if len(differs) <= _FEW_ROWS * len(value) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A site in a chain."""

    site: Site
    place: Place

    @property
    def out_features(self) -> int:
        """Rows of a linear's matrix."""
        return self.place.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of a linear's matrix."""
        return self.place.shape[1]


def linears(path: ModelPath) -> dict[str, Located]:
    """Every linear of the chain that a fine-tune may act at, by module path."""
    found: dict[str, Located] = {}
    for occurrence, (block, sites) in enumerate(zip(path.blocks, path.sites, strict=True)):
        for module, name in sites.items():
            found[module] = Located(site=Site(occurrence=occurrence, name=name), place=block.places[name])
    return found


def tables(path: ModelPath) -> dict[str, Located]:
    """Every table that token ids are looked up in, by module path."""
    return {
        f"{prefix}{place.name}": Located(site=Site(occurrence=occurrence, name=place.name), place=place)
        for occurrence, (block, prefix) in enumerate(zip(path.blocks, path.prefixes, strict=True))
        for place in block.places.values()
        if place.kind == "embed"
    }


class Draft:
    """One fine-tune. ``linears`` and ``tables`` by module path, in the shapes that they have under it."""

    def __init__(self, files: AdapterFiles) -> None:
        self.files = files
        self.path = files.parent.path
        self.linears, self.tables = linears(self.path), tables(self.path)
        self._terms: dict[Site, list[Term]] = {}
        self._replaced: dict[str, TensorRef] = {}
        self._resets: set[Site] = set()
        self._owners = {name: i for i, names in enumerate(self.path.parameters) for name in names}
        self._biases: dict[Site, torch.Tensor] = {}
        self._matrices: dict[str, torch.Tensor] = {}
        self._below = {side.site: side for side in files.parent.sides}

    def add(self, site: Site, *terms: Term) -> None:
        """Terms at a site."""
        self._terms.setdefault(site, []).extend(terms)

    def matrix(self, module: str) -> torch.Tensor:
        """The whole matrix or table of a module, float32: as it was set, else as the fine-tunes below leave it."""
        own = self._matrices.get(f"{module}.weight")
        if own is not None:
            return own.float()
        block, place = self._place(module)
        return folded_matrix(place, self._below.get(self._site(module)), block.tensors[str(place.param)], self._zoo)

    def bias(self, module: str) -> torch.Tensor | None:
        """The whole bias of a linear, float32: as it was set, else as the fine-tunes below leave it."""
        own = self._biases.get(self._site(module), self._matrices.get(f"{module}.bias"))
        if own is not None:
            return own.float()
        block, place = self._place(module)
        bound = None if place.bias is None else block.tensors[place.bias]
        return folded_bias(self._below.get(self._site(module)), bound, self._zoo)

    @property
    def vocabulary(self) -> dict[str, Located]:
        """Every table of token ids and every head that yields a logit for each token, by module path."""
        return self.tables | {module: linear for module, linear in self.linears.items() if self._yields_tokens(module)}

    def tied(self, module: str) -> list[str]:
        """Tables and heads that the model keeps as one with this one, whatever the chain binds to them."""
        group = self._group(module)
        return [other for other in self.vocabulary if other != module and self._group(other) == group]

    def keeps(self, module: str, value: torch.Tensor) -> bool:
        """Whether a whole matrix says nothing new: it is the base's, and all that fine-tunes below do is add to it."""
        block, place = self._place(module)
        below = self._below.get(self._site(module))
        adds = below is None or {one.codec for one in below.terms} <= {"low_rank"}
        return adds and tensor_ref(value)[0] == block.tensors[str(place.param)]

    def is_one_with(self, module: str, other: str) -> bool:
        """Whether two modules have one matrix in the chain below."""
        refs = [block.tensors[str(place.param)] for block, place in map(self._place, (module, other))]
        return refs[0] == refs[1] and not self._below.keys() & {self._site(module), self._site(other)}

    def set_bias(self, site: Site, whole: torch.Tensor) -> None:
        """The whole bias of a linear, in place of what was set before."""
        self._biases[site] = whole.float()

    def has_parameter(self, name: str) -> bool:
        """Whether the chain has a parameter of this full name."""
        return name in self._owners

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape in which files hold the parameter: a Conv1D's matrix is ``[in, out]`` there."""
        block, param = self._bound(name)
        shape = block.tensors[param].shape
        return shape[::-1] if name in self.path.transposed else shape

    def may_resize(self, name: str) -> bool:
        """Whether the parameter may have another height: a table of token ids, a head, or its bias."""
        block, param = self._bound(name)
        return name.rpartition(".")[0] in self.vocabulary and may_resize(block.structure, param)

    def set_parameter(self, name: str, value: torch.Tensor) -> None:
        """The whole parameter, by full name, as a file holds it. Of a table or head the vocabulary may differ."""
        block, param = self._bound(name)
        occurrence, old = self._owners[name], block.tensors[param]
        if name in self.path.transposed:
            value = value.t()
        if tensor_ref(value)[0] == old and not self._below:
            return
        place = place_of(block.structure, param)
        if place is None:
            self._replaced[name] = self.files.store(value)
            return
        site = Site(occurrence=occurrence, name=place.name)
        if place.kind == "vector":
            self.add(site, term("value", {"value": self.files.store(value)}))
        elif param == place.bias and value.shape != old.shape:
            self._matrices[name], self._replaced[name] = value, self.files.store(value)
        elif param == place.bias:
            self.set_bias(site, value)
        else:
            self._matrices[name] = value
            self._set_matrix(name, site, old, value)

    def finish(self, why: str = "") -> Tuned | None:
        """What the files make of the chain, if they were taken in full; tensors are in the zoo then."""
        for site, bias in self._biases.items():
            self.add(site, term("bias", {"value": self.files.store(bias.to(self.files.dtype))}))
        for module, table in self.tables.items():
            if {"rows", "low_rank"} <= {own.codec for own in self._terms.get(table.site, ())}:
                self.files.misfit(f"rows of {module} are replaced and changed by a LoRA at once")
        self._check_heights()
        if not self.files.finish(why):
            return None
        return Tuned(
            path=resized(self.path, self._replaced),
            sides=tuple(Side(site=site, terms=tuple(self._terms[site])) for site in sorted(self._terms)),
            resets=frozenset(self._resets),
        )

    def _set_matrix(self, name: str, site: Site, old: TensorRef, value: torch.Tensor) -> None:
        """Where few rows differ they alone are kept; what fine-tunes below did at this site is gone either way."""
        if site in self._below:
            self._resets.add(site)
        if tensor_ref(value)[0] == old:
            return
        if tuple(value.shape) == old.shape:
            differs = few_rows(read_tensor(self.files.zoo, old), value)
            if differs is not None:
                self.add(site, self.rows(differs, value[differs]))
                return
        self._replaced[name] = self.files.store(value)
        for known in (self.linears, self.tables):
            if (located := known.get(name.removesuffix(".weight"))) is not None:
                known[name.removesuffix(".weight")] = replace(
                    located, place=replace(located.place, shape=tuple(value.shape))
                )

    def _check_heights(self) -> None:
        """Tables and heads of one vocabulary must still be of one height: rows that no file holds would be random."""
        heights: dict[int, dict[str, int]] = {}
        for module, located in self.vocabulary.items():
            _, below = self._place(module)
            own = heights.setdefault(below.shape[0], {})
            own[f"{module}.weight"] = located.place.shape[0]
            if below.bias is not None:
                bias = self._matrices.get(f"{module}.bias")
                own[f"{module}.bias"] = below.shape[0] if bias is None else len(bias)
        for own in heights.values():
            most, least = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
            if own[most] != own[least]:
                self.files.diags.report(
                    "BC211", f"{self.files.written} changes the vocabulary of its base and does not hold all of it",
                    at=self.files.at,
                    notes=(f"{most} has {own[most]} rows and {least} {own[least]}; others would be random",),
                    help="save the adapter again with `save_embedding_layers=True`",
                )  # fmt: skip

    def rows(self, index: torch.Tensor, weight: torch.Tensor) -> Term:
        """A term that replaces rows: ``index [n]``, ``weight [n, width]``."""
        order = index.argsort()
        stored = {"index": self.files.store(index[order].to(torch.int64)), "weight": self.files.store(weight[order])}
        return term("rows", stored)

    def _yields_tokens(self, module: str) -> bool:
        """Not so a classifier, nor any other linear of a model that reads a text as a whole."""
        _, place = self._place(module)
        return is_head(place) and bool(self.path.kv_layers) and place.shape[0] == self.path.vocab_size

    @property
    def _zoo(self) -> Zoo:
        return self.files.zoo

    def _site(self, module: str) -> Site:
        return (self.linears.get(module) or self.tables[module]).site

    def _place(self, module: str) -> tuple[Block, Place]:
        """The block of a linear or table, and the site there as it is below this fine-tune."""
        site = self._site(module)
        block = self.path.blocks[site.occurrence]
        return block, block.places[site.name]

    def _group(self, module: str) -> str:
        return self.path.tied.get(f"{module}.weight", f"{module}.weight")

    def _bound(self, name: str) -> tuple[Block, str]:
        occurrence = self._owners[name]
        return self.path.blocks[occurrence], self.path.parameters[occurrence][name]
