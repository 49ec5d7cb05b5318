"""Explanations of a plan: as text in goldens, as data, and for words that name nothing or several things."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product

import pytest

from blockc.cli import main
from blockc.diag import DiagnosticError
from blockc.explain import explain_pair, explain_why, find_app, find_occurrence, pair_text, why_text
from blockc.explain.pair import linear_flops
from blockc.explain.why import Why
from blockc.graph import Chain
from blockc.plan import ExecutionPlan, SideManifest, write_plan
from blockc.unify import kv_domains
from tests.support.synthetic import (
    HIDDEN,
    INNER,
    KV,
    MLP,
    BlobsOnly,
    base_path,
    chain,
    lora,
    path,
    plan_of,
)

Golden = Callable[[str, str], None]
LAYERS = 4
PARENTS = {"base": None, "queries": "base", "upper": "base", "top": "base", "short": "base", "deep": "base"}
APPS = {
    "acme": {"chat": "base", "draft": "queries", "rules": "upper", "law": "top", "deep": "deep"},
    "zoo": {"chat": "base", "near": "short"},
}


def _models() -> dict[str, Chain]:
    """A base; an adapter on one query; one on the upper half; a checkpoint with another top; others in layout."""
    base = base_path(0, LAYERS)
    deep = [*base.blocks[:7], *base.blocks[3:]]

    def top(name: str) -> str:
        return (
            "top" if name in ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.down_proj.weight") else "base0"
        )

    return {
        "base": chain(base),
        "queries": chain(base, lora("queries", layers=[1], targets=["self_attn.q_proj"])),
        "upper": chain(base, lora("upper", layers=[2, 3], targets=["mlp.up_proj", "self_attn.v_proj"], rank=8)),
        "top": chain(path(top, layers=LAYERS)),
        "short": chain(path(lambda name: "base0", layers=LAYERS, window=64)),
        "deep": chain(
            replace(
                base,
                blocks=tuple(deep),
                kv_layers=base.kv_layers[:1] * 6,
                first_kv_layer=(0, *(place // 2 for place in range(13))),
                sites=({},) * 14,
                prefixes=("", *(f"model.layers.{place // 2}." for place in range(12)), ""),
            )
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def zoo() -> BlobsOnly:
    return BlobsOnly()


@pytest.fixture(scope="module")
def plan(zoo: BlobsOnly) -> ExecutionPlan:
    return plan_of(_models(), parents=PARENTS, apps=APPS, zoo=zoo)


def _why(plan: ExecutionPlan, zoo: BlobsOnly, app: str, block: str) -> Why:
    index = find_app(plan, app)
    entry = plan.apps[index]
    manifest = plan.chains[entry.chain].sides
    sides = SideManifest.model_validate_json(zoo.blobs[manifest]) if manifest else None
    return explain_why(plan, index, find_occurrence(plan, entry, block), sides=sides)


@pytest.mark.parametrize(
    ("app", "block"),
    [
        ("acme/chat", "0"),
        ("acme/law", "layers.3.mlp"),
        ("acme/rules", "layers.2.self_attn"),
        ("zoo/near", "layers.1.self_attn"),
        ("acme/deep", "9"),
        ("acme/law", "lm_head"),
    ],
)
def test_why(app: str, block: str, plan: ExecutionPlan, zoo: BlobsOnly, golden: Golden) -> None:
    golden(
        f"explain/why-{app}-{block}.txt".replace("/", "-", 2).replace("-", "/", 1),
        why_text(_why(plan, zoo, app, block)),
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("acme/chat", "acme/draft"),
        ("acme/chat", "acme/law"),
        ("acme/chat", "zoo/chat"),
        ("acme/chat", "acme/deep"),
        ("zoo/chat", "zoo/near"),
    ],
)
def test_pair(one: str, other: str, plan: ExecutionPlan, golden: Golden) -> None:
    pair = explain_pair(plan, find_app(plan, one), find_app(plan, other))
    golden(f"explain/pair-{one}-{other}.txt".replace("/", "-").replace("-", "/", 1), pair_text(pair))


def test_layers_of_a_pair_are_those_with_equal_domains(plan: ExecutionPlan) -> None:
    """What is read off the plan's groups equals what the domains of the chains say, layer by layer."""
    models = _models()
    for one, other in combinations(range(len(plan.apps)), 2):
        apps = plan.apps[one], plan.apps[other]
        pair = explain_pair(plan, one, other)
        domains = [kv_domains(models[app.model]) for app in apps]
        equal = sum(mine == theirs for mine, theirs in zip(*domains, strict=False))
        layouts = {plan.paths[plan.chains[app.chain].path].kv_layers for app in apps}
        if len(layouts) > 1:
            assert pair.kv.layers == 0
            assert pair.kv.apart
        elif pair.kv.exact:
            assert pair.kv.layers == equal
        else:
            assert pair.kv.layers <= equal
            assert pair.kv.saved_bytes_per_token == 0
        assert pair.kv.skips_prefill == (pair.kv.allowed and pair.kv.layers == pair.kv.of)


def test_prices_of_a_boundary(plan: ExecutionPlan) -> None:
    """A query adapter at layer 1 of 4 leaves layers 0 and 1 equal: the states before block 3 are the last known."""
    kv = explain_pair(plan, find_app(plan, "acme/chat"), find_app(plan, "acme/draft")).kv
    assert (kv.layers, kv.of, kv.skips_prefill) == (2, 4, False)
    assert kv.saved_bytes_per_token == 2 * 2 * 2 * KV
    assert kv.boundary is not None
    assert kv.boundary.block == 3
    assert kv.boundary.keep_bytes_per_token == 2 * HIDDEN
    assert kv.boundary.recompute_flops_per_token == 2 * (2 * HIDDEN * (HIDDEN + KV) + 3 * HIDDEN * INNER)
    assert linear_flops(MLP) == 2 * 3 * HIDDEN * INNER


def test_every_block_of_every_app_is_explained(plan: ExecutionPlan, zoo: BlobsOnly) -> None:
    """Private exactly if no other app's chain has the block; launched together exactly with those of the segment."""
    for app in plan.apps:
        blocks = plan.paths[plan.chains[app.chain].path].blocks
        for place, block in enumerate(blocks):
            why = _why(plan, zoo, app.address, str(place))
            others = {
                o.address for o in plan.apps if o is not app and block in plan.paths[plan.chains[o.chain].path].blocks
            }
            elsewhere = {name for item in why.elsewhere for name in item.apps}
            assert others == set(why.passes) | elsewhere
            assert not set(why.passes) & elsewhere
            assert why.sibling is None or bool(why.sibling.differences) == (
                block != plan.paths[_path_of(plan, why.sibling.model)].blocks[why.sibling.block]
            )
            assert len(why.kv) == (1 if "self_attn" in why.name else 0)
            assert why_text(why).isprintable() is False  # it has line breaks, and nothing else that is not printable
            assert all(line.isprintable() for line in why_text(why).splitlines())


def _path_of(plan: ExecutionPlan, model: str) -> str:
    number = plan.models[model].chain
    assert number is not None
    return plan.chains[number].path


def test_an_adapter_has_the_blocks_of_a_base_that_no_app_uses(zoo: BlobsOnly) -> None:
    models = _models()
    plan = plan_of(models, parents=PARENTS, apps={"acme": {"draft": "queries", "law": "top"}}, zoo=zoo)
    assert plan.models["base"].chain is None
    sibling = _why(plan, zoo, "acme/draft", "8").sibling
    assert sibling is not None
    assert (sibling.model, sibling.derives, sibling.differences) == ("base", True, ())
    sibling = _why(plan, zoo, "acme/law", "8").sibling
    assert sibling is not None
    assert (sibling.model, sibling.derives, len(sibling.differences)) == ("queries", False, 2)


@pytest.mark.parametrize(
    ("app", "block", "code", "help_"),
    [
        ("acme/chatt", "0", "BC101", "did you mean `acme/chat`?"),
        ("nobody", "0", "BC101", "its apps are `acme/chat`, `acme/deep`"),
        ("chat", "0", "BC110", "write one of `acme/chat`, `zoo/chat`"),
        ("acme/chat", "99", "BC109", "its blocks are 0 to 9"),
        ("acme/chat", "layers.3.mpl", "BC101", "did you mean `layers.3.mlp`?"),
        ("acme/chat", "layers.3", "BC110", "`7` (model.layers.3.self_attn), `8` (model.layers.3.mlp)"),
        ("acme/chat", "ayers.3.mlp", "BC101", "did you mean `layers.3.mlp`?"),
        ("acme/chat", "banana", "BC101", "name it by number (0 to 9), by module such as"),
        ("acme/chat", "abcdef0123", "BC101", "or by digest"),
    ],
)
def test_words_that_name_nothing_or_too_much(app, block, code, help_, plan):
    with pytest.raises(DiagnosticError) as caught:
        find_occurrence(plan, plan.apps[find_app(plan, app)], block)
    (item,) = caught.value.diagnostics
    assert item.code.id == code
    assert help_ in (item.help or "")


def test_ways_to_name_a_block(plan: ExecutionPlan) -> None:
    app = plan.apps[find_app(plan, "acme/chat")]
    own = plan.paths[plan.chains[app.chain].path].blocks[8][:10]
    for word in ("8", "model.layers.3.mlp", "layers.3.mlp", "layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj", own):
        assert find_occurrence(plan, app, word) == 8
    assert find_occurrence(plan, app, "lm_head") == 9
    assert find_occurrence(plan, app, "norm") == 9
    assert find_app(plan, "draft") == find_app(plan, "acme/draft")


def test_a_plan_without_names_is_explained_by_numbers(plan: ExecutionPlan) -> None:
    nameless = {name: entry.model_copy(update={"prefixes": ()}) for name, entry in plan.paths.items()}
    bare = plan.model_copy(update={"paths": nameless})
    for app, place in product(range(len(bare.apps)), range(3)):
        assert why_text(explain_why(bare, app, place))
    with pytest.raises(DiagnosticError) as caught:
        find_occurrence(bare, bare.apps[0], "mlp")
    assert "`2` (mlp)" in (next(iter(caught.value.diagnostics)).help or "")


def test_names_cannot_talk_to_the_terminal(plan: ExecutionPlan) -> None:
    apps = tuple(app.model_copy(update={"app": f"\x1b[2J{app.app}\n"}) for app in plan.apps)
    evil = plan.model_copy(update={"apps": apps})
    texts = why_text(explain_why(evil, 0, 0)), pair_text(explain_pair(evil, 0, 1))
    assert all(line.isprintable() for text in texts for line in text.splitlines())


def test_the_commands(plan: ExecutionPlan, tmp_path, capsys) -> None:
    write_plan(plan, tmp_path / "plan.json")
    file = str(tmp_path / "plan.json")
    assert main(["explain", "why", file, "acme/rules", "layers.2.mlp"]) == 0
    assert "ADAPTER  of rank 8; where it acts is in the zoo, which is not at hand" in capsys.readouterr().out
    assert main(["explain", "why", file, "acme/law", "8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert [item["name"] for item in document["sibling"]["differences"]] == [
        "model.layers.3.mlp.down_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
    ]
    assert main(["explain", "pair", file, "acme/chat", "acme/draft", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv"]["layers"] == 2
    assert main(["explain", "pair", file, "acme/chat", "acme/darft"]) == 1
    assert "did you mean `acme/draft`?" in capsys.readouterr().err
    assert main(["explain", "why", file, "acme/chat", "99", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["diagnostics"][0]["code"] == "BC109"
    assert main(["explain"]) == 64
