"""Segments are valid, as few as can be, and every cut has two witnesses: against all segmentations there are."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.graph import Block, KvLayerShape, ModelPath
from blockc.ir import parse_structure
from blockc.plan.laminar import crosses, find_crossing
from blockc.plan.verify import plan_problem
from blockc.unify import find_segments, segments
from tests.support.synthetic import base_path, chain, path, plan_of, tensor

PLAIN = parse_structure("structure v1\ninput x: F32[1,T,4]\nparam w: F32[4]\n%0 = aten.mul.Tensor(%x, @w)\nreturn %0\n")
CACHED = parse_structure(
    "structure v1\ninput x: F32[1,T,4]\nparam w: F32[4]\n%0 = aten.mul.Tensor(%x, @w)\n"
    "%1 = aten.reshape.default(%0, [1, T, 1, 4])\n%2 = aten.transpose.int(%1, 1, 2)\n"
    "%3 = blockc.attention(%2, %2, %2, 0x1.0p+0, none, none)\n"
    "%4 = aten.reshape.default(%3, [1, T, 4])\nreturn %4\n"
)


def _path(letters: str, window: int | None = None) -> ModelPath:
    """One block a letter; upper case: with attention."""
    blocks = tuple(
        Block(
            structure=CACHED if letter.isupper() else PLAIN, binds={}, prelude=None, contexts=(),
            tensors={"w": tensor(letter.lower(), (4,), "F32")},
        )
        for letter in letters
    )  # fmt: skip
    layer = KvLayerShape(kv_heads=1, head_dim=4, window=window, dtype="F32")
    return ModelPath(
        blocks=blocks,
        prelude=None,
        kv_layers=(layer,) * sum(letter.isupper() for letter in letters),
        first_kv_layer=tuple(sum(letter.isupper() for letter in letters[:place]) for place in range(len(letters))),
        sites=({},) * len(blocks),
        dtype="F32",
        vocab_size=4,
        max_model_len=8,
    )


def _paths(*written: str) -> dict[str, ModelPath]:
    found = [_path(word.rstrip("*"), window=4 if word.endswith("*") else None) for word in written]
    return {item.digest: item for item in found}


PATHS = st.lists(st.text("abAB", min_size=1, max_size=4), min_size=1, max_size=4).map(lambda words: _paths(*words))


def _nodes(paths):
    """Per path the places it passes; two paths share one exactly if a launch could serve both there."""
    return {name: segments._keys(item) for name, item in paths.items()}


def _segmentations(paths):
    """Every way to cut every path, as the set of runs that would be launched.

    Only those where a launch serves all rows of all paths through any of its places.
    """
    nodes = _nodes(paths)
    ways = []
    for sequence in nodes.values():
        inner = range(1, len(sequence))
        own = []
        for count in range(len(sequence)):
            for cuts in combinations(inner, count):
                edges = [0, *cuts, len(sequence)]
                own.append([tuple(sequence[start:end]) for start, end in pairwise(edges)])
        ways.append(own)
    for choice in product(*ways):
        runs = {run for way in choice for run in way}
        if all(
            (run in way) == bool(set(run) & set(sequence))
            for run in runs
            for way, sequence in zip(choice, nodes.values(), strict=True)
        ):
            yield runs


def _runs(paths, found):
    nodes = _nodes(paths)
    return {tuple(nodes[item.paths[0]][item.first : item.first + item.count]) for item in found}


@given(PATHS)
@settings(max_examples=60, deadline=None)
def test_no_valid_segmentation_has_fewer(paths):
    found = find_segments(paths)
    ways = list(_segmentations(paths))
    assert _runs(paths, found) in ways
    assert len(found) == min(map(len, ways))


@given(PATHS)
@settings(max_examples=100, deadline=None)
def test_every_cut_is_proven_by_its_witnesses(paths):
    found = find_segments(paths)
    nodes = _nodes(paths)
    for segment in found:
        end, cut = segment.first + segment.count, segment.cut
        following = [nodes[name][end : end + 1] for name in segment.paths]
        if cut.kind == "end":
            assert not any(following)
            assert not cut.witnesses
            continue
        one, other = cut.witnesses
        assert one in segment.paths
        if cut.kind == "part":
            assert other in segment.paths
            assert nodes[one][end : end + 1] != nodes[other][end : end + 1]
        else:
            assert other not in segment.paths
            assert nodes[one][end] == nodes[other][end]
        assert cut.differs
    for name, sequence in nodes.items():
        own = [segment for segment in found if name in segment.paths]
        assert sum(segment.count for segment in own) == len(sequence)
        assert [segment.first for segment in own] == sorted(segment.first for segment in own)


def test_more_segments_than_needed_are_noticed(monkeypatch):
    """The comparison above can fail: a finder that cuts after every block is valid and not minimal."""
    monkeypatch.setattr(segments, "_runs", lambda sets: [(index, 1) for index in range(len(sets))])
    monkeypatch.setattr(segments, "_cut", lambda *rest: segments.Cut(kind="end", witnesses=(), differs=()))
    paths = _paths("abA", "abB")
    found, ways = find_segments(paths), list(_segmentations(paths))
    assert _runs(paths, found) in ways
    assert len(found) > min(map(len, ways))


@pytest.mark.parametrize(
    ("written", "kinds"),
    [
        (("aA", "aB"), ["part", "end", "end"]),
        (("Ab", "Bb"), ["join", "join", "end"]),
        (("ab", "abb"), ["part", "end"]),
        (("aAb", "aBb"), ["part", "join", "join", "end"]),
        (("aA", "aA*"), ["end", "end"]),  # another window: another layout of the cache
        (("aA", "aAA"), ["end", "end"]),  # another depth, too
    ],
)
def test_kinds_of_cuts(written, kinds):
    found = find_segments(_paths(*written))
    assert [segment.cut.kind for segment in found] == kinds


def test_a_cut_says_what_differs():
    def tuned(name):
        return "tuned" if name == "model.layers.1.mlp.up_proj.weight" else "base0"

    other_rope = path(lambda name: "base0", layers=3, rope="other")
    found = find_segments({item.digest: item for item in (base_path(0, 3), path(tuned, layers=3), other_rope)})
    assert {segment.cut.differs for segment in found} == {(), ("tensor:mlp.up_proj.weight",), ("prelude",)}


SETS = st.lists(st.frozensets(st.integers(0, 5), min_size=1), max_size=8)


@given(SETS)
def test_crossing_sets_are_found_if_there_are_any(sets):
    found = find_crossing([tuple(item) for item in sets])
    any_cross = any(crosses(tuple(one), tuple(other)) for one, other in combinations(sets, 2))
    assert (found is not None) == any_cross
    if found is not None:
        assert crosses(tuple(sets[found[0]]), tuple(sets[found[1]]))


def test_sharing_is_not_laminar_where_two_models_agree_with_a_third_in_different_layers():
    paths = _paths("aABb", "aAAb", "aBBb")
    found = find_segments(paths)
    crossing = find_crossing([segment.paths for segment in found])
    assert crossing is not None
    assert find_crossing([segment.paths for segment in find_segments(_paths("aABb", "aAAb"))]) is None


def test_a_plan_says_whether_sharing_is_laminar_and_cannot_say_otherwise():
    changed = {"one": (1, 2), "two": (1,), "three": (2,)}  # which layers are tuned; those of "one" are the others' too

    def owner(model):
        tuned = tuple(f"model.layers.{layer}." for layer in changed[model])
        return lambda name: "tuned" if name.startswith(tuned) else "base0"

    models = {model: chain(path(owner(model), layers=3)) for model in changed}
    plan = plan_of(models, parents=dict.fromkeys(changed), apps={"acme": {model: model for model in changed}})
    assert plan.crossing is not None
    assert crosses(*(plan.segments[index].chains for index in plan.crossing))
    assert "laminar" in (plan_problem(plan.model_copy(update={"crossing": None})) or "")
    two = {model: models[model] for model in ("one", "two")}
    tree = plan_of(two, parents=dict.fromkeys(two), apps={"acme": {model: model for model in two}})
    assert tree.crossing is None
    assert "said to cross" in (plan_problem(tree.model_copy(update={"crossing": (0, 1)})) or "")
