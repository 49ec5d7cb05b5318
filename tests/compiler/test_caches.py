"""`kv_cache_dtype = fp8`: the same blocks, pages of half the bytes, and answers near those of a whole cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc.verify.verify import verify
from tests.support.deployments import deployment
from tests.support.serving import Compiled, compiled
from tests.support.tiny_models import save_model


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    root = tmp_path_factory.mktemp("caches")
    given = deployment(save_model("llama", root / "base"), dtype="bfloat16")
    made = {}
    for dtype in ("bfloat16", "float8_e4m3fn"):
        bases = {"base": replace(given.bases["base"], kv_cache_dtype=dtype)}
        made[dtype] = compiled(replace(given, bases=bases), root / dtype)
    return made


def test_pages_take_half_the_bytes_and_are_nobody_elses(plans: dict[str, Compiled]) -> None:
    whole, narrow = (plans[dtype].plan for dtype in ("bfloat16", "float8_e4m3fn"))
    assert [group.dtype for group in narrow.kv_groups] == ["F8_E4M3"]
    assert [2 * group.page_bytes for group in narrow.kv_groups] == [group.page_bytes for group in whole.kv_groups]
    assert narrow.blocks == whole.blocks
    domains = [{kv.domain for chain in plan.chains for kv in chain.kv} for plan in (narrow, whole)]
    assert domains[0].isdisjoint(domains[1])


def test_verify_says_what_it_loses(plans: dict[str, Compiled]) -> None:
    made = plans["float8_e4m3fn"]
    root = made.zoo.root.parent
    (report,) = verify(made.plan, made.zoo, root=root, prompts=2, output_tokens=3)
    assert report.max_error > 0
    (allowed,) = verify(made.plan, made.zoo, root=root, prompts=2, output_tokens=3, max_error=2 * report.max_error)
    assert allowed.passed
    assert allowed.max_error == report.max_error
