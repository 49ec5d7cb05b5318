"""`kv_cache_dtype = fp8` and `int8`: the same blocks, smaller pages, and answers near those of a whole cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc.verify.verify import verify
from tests.support.deployments import deployment
from tests.support.serving import Compiled, compiled
from tests.support.tiny_models import save_model

# Of the cache: what plans call it, and bytes of a head's key.
NARROW = {"float8_e4m3fn": ("F8_E4M3", lambda size: size), "int8": ("I8", lambda size: size + 4)}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    root = tmp_path_factory.mktemp("caches")
    given = deployment(save_model("llama", root / "base"), dtype="bfloat16")
    made = {}
    for dtype in ("bfloat16", *NARROW):
        bases = {"base": replace(given.bases["base"], kv_cache_dtype=dtype)}
        made[dtype] = compiled(replace(given, bases=bases), root / dtype)
    return made


@pytest.mark.parametrize("dtype", NARROW)
def test_pages_are_smaller_and_nobody_elses(plans: dict[str, Compiled], dtype: str) -> None:
    whole, narrow = plans["bfloat16"].plan, plans[dtype].plan
    code, nbytes = NARROW[dtype]
    assert [group.dtype for group in narrow.kv_groups] == [code]
    for group, other in zip(narrow.kv_groups, whole.kv_groups, strict=True):
        assert group.page_bytes * 2 * group.head_dim == other.page_bytes * nbytes(group.head_dim)
    assert narrow.blocks == whole.blocks
    domains = [{kv.domain for chain in plan.chains for kv in chain.kv} for plan in (narrow, whole)]
    assert domains[0].isdisjoint(domains[1])


@pytest.mark.parametrize("dtype", NARROW)
def test_verify_says_what_it_loses(plans: dict[str, Compiled], dtype: str) -> None:
    made = plans[dtype]
    root = made.zoo.root.parent
    (report,) = verify(made.plan, made.zoo, root=root, prompts=2, output_tokens=3)
    assert report.max_error > 0
    (allowed,) = verify(made.plan, made.zoo, root=root, prompts=2, output_tokens=3, max_error=2 * report.max_error)
    assert allowed.passed
    assert allowed.max_error == report.max_error
