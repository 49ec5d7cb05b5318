"""From files to a deployment: imports, sources, profiles, policy, suppressions, digest."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from blockc.diag import DiagnosticError, Diagnostics, Span
from blockc.spec import HubSource, LocalSource, Policy, Source, load
from blockc.spec.context import report_not_in_effect
from blockc.spec.lint import tidy
from tests.spec.texts import (
    APP,
    BASE,
    CLUSTER,
    MINIMAL,
    SPECS,
    codes,
    deployment_of,
    load_text,
    messages,
)


def test_the_small_spec_resolves() -> None:
    result = load(SPECS / "small.blk", environ={})
    deployment = result.require()
    assert [app.address for app in deployment.apps] == [
        "acme/chat",
        "acme/sql",
        "globex/chat",
        "globex/plain",
        "initech/law",
    ]
    assert deployment.fine_tunes["terse"].parent == "support"
    assert deployment.fine_tunes["sql"].kind == "lora"
    assert deployment.fine_tunes["legal"].kind is None
    assert deployment.bases["tiny"].max_model_len == 2048
    assert deployment.bases["tiny"].kv_cache_dtype == "bfloat16"
    assert deployment.tenants["initech"].isolation == "strict"
    assert deployment.tenants["acme"].weight == 2
    assert deployment.apps[0].slo.targets_s == {
        "tpot_p95": Fraction(3, 50),
        "ttft_p95": Fraction(1, 2),
    }
    (device,) = deployment.cluster.devices
    assert (device.address, device.kind) == ("local/d0", "cpu")
    assert (device.memory_bytes, device.reserve_bytes) == (16 << 30, 2 << 30)
    assert deployment.expect[0].memory_below_bytes == 14 << 30
    assert deployment.policy == Policy()
    warned = {item.message.split("`")[1] for item in result.diagnostics}
    assert warned == {"speculation"}
    assert deployment.expect[0].slo_attainment == Fraction(99, 100)


def test_the_large_spec_resolves_quietly() -> None:
    result = load(SPECS / "large.blk", environ={"BLOCKC_ZOO": "/zoo"})
    deployment = result.require()
    assert codes(result) == []
    assert set(deployment.bases) == {"llama8b", "qwen7b"}
    assert deployment.bases["llama8b"].kv_cache_dtype == "float8_e4m3fn"
    assert len(deployment.cluster.devices) == 12
    assert deployment.cluster.devices[0].reserve_bytes == 80 * 10**9 * 6 // 100
    assert deployment.fine_tunes["acme_sql"].source == LocalSource(path=Path("/zoo/acme/sql"), written="/zoo/acme/sql")
    support = deployment.tenants["acme"].apps[0]
    assert support.traffic.rate_rps == 25
    assert support.traffic.prompt_tokens == 900
    assert support.slo.targets_s["ttft_p95"] == Fraction(3, 10)
    assert deployment.policy.max_batched_tokens == 8000
    assert deployment.policy.max_rows == 128


@pytest.mark.parametrize("name", ["minimal", "thousand", "two_devices"])
def test_the_other_specs_resolve_quietly(name: str) -> None:
    assert codes(load(SPECS / f"{name}.blk", environ={})) == []


def test_require_raises_everything_at_once(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as caught:
        load_text(BASE.replace("{ }", "{ dtype = x }") + CLUSTER + "nod { }", tmp_path).require()
    assert [item.code.id for item in caught.value.diagnostics] == ["BC109", "BC103", "BC801"][:2]


def test_sources(tmp_path: Path) -> None:
    text = (
        'base a : hf("org/name", revision = "abc") { }\n'
        'base b : hf("gpt2") { }\n'
        'base c : hf("../c") { }\n'
        'base d : hf("/abs/d") { }\n'
        'finetune e : a { weights = "org/adapter" }\n'
        'finetune f : a { weights = hf("org/adapter", revision = "v1") }\n'
        'finetune g : a { weights = "./x/../g" }\n' + CLUSTER
    )
    deployment = deployment_of(text, tmp_path)
    sources: dict[str, Source] = {name: base.source for name, base in deployment.bases.items()}
    sources |= {name: tune.source for name, tune in deployment.fine_tunes.items()}
    assert sources == {
        "a": HubSource(repo="org/name", revision="abc"),
        "b": HubSource(repo="gpt2"),
        "c": LocalSource(path=tmp_path.parent / "c", written="../c"),
        "d": LocalSource(path=Path("/abs/d"), written="/abs/d"),
        "e": HubSource(repo="org/adapter"),
        "f": HubSource(repo="org/adapter", revision="v1"),
        "g": LocalSource(path=tmp_path / "g", written="./x/../g"),
    }


def test_home_is_expanded(tmp_path: Path) -> None:
    deployment = deployment_of(f'base a : hf("~/a") {{ }}\n{CLUSTER}', tmp_path)
    source = deployment.bases["a"].source
    assert isinstance(source, LocalSource)
    assert source == LocalSource(path=Path("~/a").expanduser(), written="~/a")


def test_imported_files_resolve_paths_against_their_own_folder(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "models.blk").write_text('base tiny : hf("./tiny") { }\nvar x : number = 1\nlet y = x')
    text = (
        'import "./lib/models.blk" as lib\n'
        + CLUSTER
        + "let z = lib.y * lib.x\n"
        + ("tenant me { app a { model = lib.tiny  traffic { rate = 1rps * z } } app b { model = tiny } }")
    )
    result = load_text(text, tmp_path, variables={"lib.x": "3"})
    deployment = result.require()
    assert deployment.apps[0].traffic.rate_rps == 9
    assert deployment.bases["tiny"].source == LocalSource(path=tmp_path / "lib" / "tiny", written="lib/./tiny")
    assert set(result.sources) == {str(tmp_path / "spec.blk"), str(tmp_path / "lib" / "models.blk")}


def test_a_file_imported_twice_declares_once(tmp_path: Path) -> None:
    (tmp_path / "a.blk").write_text(BASE)
    (tmp_path / "b.blk").write_text('import "./a.blk" as a\nlet n = 1')
    text = (
        'import "./a.blk" as a\nimport "./b.blk" as b\n'
        + CLUSTER
        + ("tenant me { app x { model = a.tiny  traffic { rate = 1rps * b.n } } }")
    )
    assert codes(load_text(text, tmp_path)) == []


def test_problems_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "a.blk").write_text("let x = \n")
    result = load_text('import "./a.blk" as a\n' + MINIMAL + "let y = a.x\n", tmp_path)
    (item,) = result.diagnostics
    assert item.primary is not None
    assert item.primary.span.file == str(tmp_path / "a.blk")
    (tmp_path / "a.blk").write_text("let x = 1\n")
    result = load_text('import "./a.blk" as a\n' + MINIMAL + "let _y = [a.x, a.z]\n", tmp_path)
    assert "`a` declares nothing named `z`" in messages(result)
    (tmp_path / "b.blk").write_text('import "./spec.blk" as s\n')
    result = load_text('import "./b.blk" as b\n' + MINIMAL, tmp_path)
    assert codes(result) == ["BC107"]


def test_missing_and_odd_files(tmp_path: Path) -> None:
    assert codes(load(tmp_path / "absent.blk", environ={})) == ["BC003"]
    assert codes(load(tmp_path, environ={})) == ["BC003"]
    assert codes(load_text("", tmp_path)) == ["BC108"]
    assert codes(load_text(b"\xff", tmp_path)) == ["BC001"]


def test_profile_is_merged_and_the_app_wins(tmp_path: Path) -> None:
    text = (
        BASE
        + CLUSTER
        + (
            "profile p { traffic { rate = 1rps  prompt = 9tok  arrival = gamma(cv = 2.5) } "
            "slo { ttft_p95 = 1s  e2e_p95 = 9s } }\n"
            "tenant me { app a : p { model = tiny  traffic { rate = 2rps }  slo { e2e_p95 = 3s } } }"
        )
    )
    (app,) = deployment_of(text, tmp_path).apps
    assert app.traffic.rate_rps == 2
    assert app.traffic.prompt_tokens == 9
    assert app.traffic.arrival_cv == Fraction(5, 2)
    assert app.slo.targets_s == {"ttft_p95": 1, "e2e_p95": 3}


def test_a_trace_is_a_file_beside_the_spec(tmp_path: Path) -> None:
    app = 'tenant me { app a { model = tiny  traffic { arrival = trace("a.csv") } } }'
    plain = BASE + CLUSTER + app.replace('arrival = trace("a.csv")', "")
    found = deployment_of(BASE + CLUSTER + app, tmp_path)
    source = found.apps[0].traffic.arrival_trace
    assert source is not None
    assert (source.path, source.written) == (tmp_path / "a.csv", "a.csv")
    assert found.digest != deployment_of(plain, tmp_path).digest
    assert found.digest != deployment_of(BASE + CLUSTER + app.replace("a.csv", "b.csv"), tmp_path).digest


@pytest.mark.parametrize(
    ("arrival", "cv"), [("poisson", Fraction(1)), ("gamma(cv = 3)", Fraction(3)), ('trace("a.csv")', None)]
)
def test_arrivals(tmp_path: Path, arrival: str, cv: Fraction | None) -> None:
    app = f"tenant me {{ app a {{ model = tiny  traffic {{ arrival = {arrival} }} }} }}"
    assert deployment_of(BASE + CLUSTER + app, tmp_path).apps[0].traffic.arrival_cv == cv


def test_policy(tmp_path: Path) -> None:
    text = MINIMAL + (
        "policy { share = exact kv { page = 32tok } solver { time_limit = 2min }"
        " batching { max_batched_tokens = 1Ktok max_num_seqs = 8 } }"
    )
    assert deployment_of(text, tmp_path).policy == Policy(
        kv_page_tokens=32, max_batched_tokens=1000, max_rows=8, solver_time_limit_s=Fraction(120)
    )


def test_reserve_as_a_share_is_rounded_up(tmp_path: Path) -> None:
    text = MINIMAL.replace("memory = 1GiB", "memory = 1001B  reserve = 6%")
    assert deployment_of(text, tmp_path).cluster.devices[0].reserve_bytes == 61


def test_suppressions_for_later_phases_are_handed_on(tmp_path: Path) -> None:
    result = load_text(MINIMAL.replace("{ }\n", "{ } # blockc: allow(BC301, BC804)\n", 1), tmp_path)
    assert codes(result) == ["BC803"]
    assert [suppression.code for suppression in result.suppressions] == ["BC301", "BC804"]


def test_warnings_of_one_kind_are_grouped() -> None:
    found = Diagnostics()
    for line in range(1, 10):
        at = Span(file="x.blk", start_line=line, start_column=1, end_line=line, end_column=5)
        report_not_in_effect(found, "`latency` of `network`", at)
    (item,) = tidy(found)
    assert len(item.secondary) == 3
    assert item.notes == ("and in 5 more places",)


def test_keys_are_names_of_secrets(tmp_path: Path) -> None:
    text = MINIMAL.replace("tenant me {", 'tenant me { keys = [secret("B"), secret("A"), secret("B")]')
    assert deployment_of(text, tmp_path).tenants["me"].key_secrets == ("A", "B")
    assert deployment_of(MINIMAL, tmp_path).tenants["me"].key_secrets == ()
    assert deployment_of(text, tmp_path).digest != deployment_of(MINIMAL, tmp_path).digest


# ------------------------------------------------------------------------- digest


def test_digest_ignores_order_comments_and_folder(tmp_path: Path) -> None:
    one = deployment_of(MINIMAL, tmp_path).digest
    assert deployment_of("# hello\n" + APP + CLUSTER + BASE, tmp_path).digest == one
    (tmp_path / "elsewhere").mkdir()
    assert deployment_of(MINIMAL, tmp_path / "elsewhere").digest == one
    assert deployment_of(MINIMAL.replace("1GiB", "1024MiB"), tmp_path).digest == one
    assert deployment_of(MINIMAL + "let _unused = 3\npolicy { }\n", tmp_path).digest == one


def test_what_came_later_leaves_the_digest_of_a_spec_that_does_not_say_it(tmp_path: Path) -> None:
    text = MINIMAL + 'finetune f : tiny { weights = "./f" }\n'
    first = "f99f9fffbeb61d528caaf004ecb58329ddbbfbe23841f4b7c0669a0affcd7e30"
    assert deployment_of(text, tmp_path).digest == first
    assert deployment_of(text + "policy { pipeline = auto  overload = refuse }\n", tmp_path).digest == first


def test_digest_follows_the_order_of_what_comes_first(tmp_path: Path) -> None:
    def digest(goals: str) -> str:
        policy = f"policy {{ solver {{ objective = [{goals}] }} }}\n"
        return deployment_of(MINIMAL.replace("1GiB", "1GiB  price = 2 / 1h") + policy, tmp_path).digest

    assert digest("cost, devices") != digest("devices, cost")
    assert digest("cost, devices") == digest("cost,devices")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1GiB", "1GB"),
        ("./models/tiny", "./models/tony"),
        ("{ }", "{ dtype = fp32 }"),
        ("app chat", "app chit"),
        ("tenant me {", "tenant me { weight = 2"),
        ("tenant me {", "tenant me { isolation = strict"),
        (": cpu", ": cuda"),
        ("tenant me", "expect { memory_below = 1GiB } tenant me"),
        ("tenant me", "policy { kv { page = 8 } } tenant me"),
    ],
)
def test_digest_follows_the_meaning(old: str, new: str, tmp_path: Path) -> None:
    assert old in MINIMAL
    changed = deployment_of(MINIMAL.replace(old, new, 1), tmp_path).digest
    assert changed != deployment_of(MINIMAL, tmp_path).digest


def test_digest_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "import sys; from pathlib import Path; from blockc.spec import load;"
        "print(load(Path(sys.argv[1]), environ={}).require().digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, str(SPECS / "large.blk")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_what_links_nodes(tmp_path: Path) -> None:
    def links(network: str) -> tuple[object, ...]:
        text = MINIMAL.replace("cluster box {", f"cluster box {{ network {{ {network} }}")
        assert network in text
        own = deployment_of(text, tmp_path).cluster
        return own.link_bytes_per_s, own.node_bytes_per_s, float(own.node_latency_s)

    assert links("inter_node = 1Gbps") == (None, 125_000_000, 20e-6)
    assert links("intra_node = 2GB/s  inter_node = 1Gbps  latency = 1ms") == (2 * 10**9, 125_000_000, 1e-3)
    assert deployment_of(MINIMAL, tmp_path).cluster.node_bytes_per_s is None
