"""`merge = auto` merges where it pays and fits; `always` says what rounding takes; `never` is the default."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.compiler import compile_deployment
from blockc.diag import Diagnostics
from blockc.explain import explain_why, why_text
from blockc.merge import Demand, gain
from blockc.place.sizes import sizes_of
from blockc.plan import ExecutionPlan
from blockc.spec.deployment import Deployment, Policy, Traffic
from blockc.verify import failed, verify
from blockc.zoo import Zoo
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.tiny_models import save_model

rates = st.floats(0, 100)


def demand(rate: float | None) -> Demand:
    return Demand(rate_rps=rate, output_tokens=100, token_s=0.05)


@given(own=rates, sides=st.integers(1, 10**9), weights=st.integers(1, 10**12))
def test_who_is_alone_gains(own: float, sides: int, weights: int) -> None:
    assert gain(own=[demand(own)], others=[], sides_bytes=sides, weights_bytes=weights) >= 0


@given(own=rates, few=rates, more=rates, sides=st.integers(1, 10**9), weights=st.integers(1, 10**12))
def test_company_makes_it_worth_less(own: float, few: float, more: float, sides: int, weights: int) -> None:
    few, more = sorted((few, more))
    values = [
        gain(own=[demand(own)], others=[demand(rate)], sides_bytes=sides, weights_bytes=weights)
        for rate in (few, more, None)
    ]
    assert values == sorted(values, reverse=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    base = save_model("llama", root / "base")
    for seed, name in enumerate(("hot", "cold")):
        save_lora(base, root / name, seed=seed)
    save_lora(base, root / "faint", lora_alpha=0.1)
    return root


def spec(models: Path, merge: str, *, memory_bytes: int = 2 << 30, dtype: str = "float32", others: str = "1/1000"):
    apps = {"acme": {"hot": "hot"}, "globex": {"cold": "cold"}}
    hot = "hot" if dtype == "float32" else "faint"
    tunes = {"hot": ("base", models / hot), "cold": ("base", models / "cold")}
    plan = deployment(
        models / "base", tunes, apps=apps, memory_bytes=memory_bytes, dtype=dtype,
        policy=Policy(max_rows=16, max_batched_tokens=256),
    )  # fmt: skip
    fine_tunes = plan.fine_tunes | {"hot": replace(plan.fine_tunes["hot"], merge=merge)}
    rate = {"acme": Fraction(20), "globex": Fraction(others)}
    tenants = {
        name: replace(
            tenant,
            apps=tuple(
                replace(a, traffic=Traffic(rate_rps=rate[name], prompt_tokens=16, output_tokens=4)) for a in tenant.apps
            ),
        )
        for name, tenant in plan.tenants.items()
    }
    return replace(plan, fine_tunes=fine_tunes, tenants=tenants)


def compiled(deployment_: Deployment, root: Path) -> tuple[ExecutionPlan, Diagnostics, Zoo]:
    diags, zoo = Diagnostics(), Zoo(root, create=True)
    return compile_deployment(deployment_, zoo=zoo, diags=diags).plan, diags, zoo


def app_of(plan: ExecutionPlan, name: str) -> int:
    return next(number for number, app in enumerate(plan.apps) if app.model == name)


def test_a_hot_fine_tune_gets_weights_of_its_own_and_answers_as_before(models: Path, tmp_path: Path) -> None:
    plan, _, zoo = compiled(spec(models, "auto"), tmp_path)
    merged = plan.models["hot"].merged
    assert merged is not None
    assert merged.gain > 0
    assert merged.private_bytes > 0
    hot, cold = (plan.chains[plan.models[name].chain or 0] for name in ("hot", "cold"))
    assert hot.sides is None
    assert cold.sides is not None
    assert plan.models["cold"].merged is None
    assert not failed(verify(plan, zoo, root=models, prompts=3, output_tokens=4))


def test_whoever_has_devices_for_itself_is_merged_where_placement_has_less(models: Path, tmp_path: Path) -> None:
    """By load, however often others are there: its terms are saved, and its weights are read there anyway."""
    beside = spec(models, "auto", others="10")
    device = beside.cluster.devices[0]
    cluster = replace(beside.cluster, devices=(device, replace(device, address="local/d1")))
    alone = replace(beside.tenants["acme"], isolation="devices")
    given = replace(beside, cluster=cluster, tenants=beside.tenants | {"acme": alone})
    plan, _, _ = compiled(given, tmp_path)
    weighed = plan.models["hot"].weighed
    assert plan.models["hot"].merged is not None
    assert weighed is not None
    assert weighed.goals == plan.solver.objective
    assert plan.solver.values == weighed.merged < weighed.beside
    said = why_text(explain_why(plan, app_of(plan, "hot"), 1))
    assert f"  beside shared weights: 2 devices, the busiest busy for {weighed.beside[1]:.2%}\n" in said
    assert f"  merged: 2 devices, the busiest busy for {weighed.merged[1]:.2%}\n" in said
    together, _, _ = compiled(beside, tmp_path)
    weighed = together.models["hot"].weighed
    assert together.models["hot"].merged is None
    assert weighed is not None
    assert together.solver.values == weighed.beside < weighed.merged
    assert "NOT MERGED  beside shared weights\n" in why_text(explain_why(together, app_of(together, "hot"), 1))


def test_without_weights_it_is_weighed_too(models: Path) -> None:
    given = spec(models, "always", others="20")
    plan = compile_deployment(given, zoo=None, target="sim", diags=Diagnostics()).plan
    merged = plan.models["hot"].merged
    assert merged is not None
    assert merged.rounding is None
    assert merged.private_bytes > 0


@pytest.mark.parametrize(
    ("merge", "change"),
    [("never", {}), ("auto", {"others": "20"}), ("auto", {"dtype": "bfloat16"})],
    ids=["not wanted", "others are always there", "rounding would take too much"],
)
def test_what_is_not_merged(merge: str, change: dict, models: Path, tmp_path: Path) -> None:
    plan, diags, _ = compiled(spec(models, merge, **change), tmp_path)
    assert plan.models["hot"].merged is None
    assert not diags.items


def test_what_does_not_fit_is_not_merged(models: Path, tmp_path: Path) -> None:
    roomy, _, zoo = compiled(spec(models, "auto"), tmp_path)
    merged = roomy.models["hot"].merged
    assert merged is not None
    found = {}
    compile_deployment(spec(models, "never"), zoo=zoo, diags=Diagnostics(), on_result=found.__setitem__)
    problem, _ = found["place"]
    least = sizes_of(problem).least(range(len(problem.chains))).used_bytes
    tight, _, _ = compiled(spec(models, "auto", memory_bytes=least + merged.private_bytes // 2), tmp_path)
    assert tight.models["hot"].merged is None


def test_always_says_what_is_lost(models: Path, tmp_path: Path) -> None:
    plan, diags, _ = compiled(spec(models, "always", dtype="bfloat16", others="20"), tmp_path)
    assert plan.models["hot"].merged is not None
    assert [item.code.id for item in diags] == ["BC303"]
