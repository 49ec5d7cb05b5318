"""Compilers that write to one zoo at once, while another process collects in a loop."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import traceback
from pathlib import Path

import pytest

from blockc import compiler
from blockc.compiler import compile_deployment
from blockc.diag import Diagnostics
from blockc.plan import load_plan
from blockc.spec.deployment import Deployment
from blockc.trace import TracedModel
from blockc.tune import read_models, trace_models
from blockc.zoo import Zoo, collect, publish, references, survey, verify_zoo
from tests.conftest import Promised
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.tiny_models import save_model
from tests.zoo.plans import missing

_COMPILERS = 8
_ROUNDS = 3


@pytest.fixture(scope="module")
def deployments(tmp_path_factory) -> list[Deployment]:
    """One base alone, and with each of four adapters; another base that shares nothing with it."""
    root = tmp_path_factory.mktemp("models")
    base = save_model("llama", root / "base")
    adapters = [save_lora(base, root / f"a{index}", seed=index) for index in range(4)]
    other = save_model("llama", root / "other", seed=1)
    return [
        deployment(base),
        *(deployment(base, {path.name: ("base", path)}) for path in adapters),
        deployment(other),
    ]


@pytest.fixture(scope="module")
def traced(deployments) -> dict[str, TracedModel]:
    """The two bases, by directory."""
    first, second = (
        trace_models(read_models(item, diags=Diagnostics()), diags=Diagnostics()) for item in deployments[::5]
    )
    return {"base": first["base"], "other": second["base"]}


@pytest.fixture
def traced_before(traced, monkeypatch) -> None:
    """Tracing touches no zoo and takes most of the time: it is done once, before there are eight processes."""
    monkeypatch.setattr(
        compiler,
        "trace_models",
        lambda files, *, diags: {
            name: traced[item.directory.name] for name, item in files.items() if item.kind != "lora"
        },
    )


def _compile(root: Path, plan: Path, wanted: list[Deployment]) -> None:
    try:
        for item in wanted:
            diags = Diagnostics()
            compiled = compile_deployment(item, zoo=Zoo(root, create=True), diags=diags)
            publish(compiled.plan, plan, compiled.zoo)
    except BaseException:
        traceback.print_exc()
        raise


def _collect(root: Path, done: multiprocessing.synchronize.Event, rounds: multiprocessing.Queue) -> None:
    turns, removed = 0, 0
    while not done.is_set():
        diags = Diagnostics()
        found = collect(Zoo(root), diags=diags)
        assert not len(diags)
        removed += sum(len(work.drops) for work in found.packs) + len(found.blobs)
        turns += 1
    rounds.put((turns, removed))


@pytest.mark.promise("files")
@pytest.mark.usefixtures("traced_before")
def test_eight_compilers_and_a_collector(deployments, tmp_path: Path, promised: Promised):
    """The same model in several, other models in others; each writes its plan anew with another model in it."""
    root = tmp_path / "zoo"
    Zoo(root, create=True)
    context = multiprocessing.get_context("fork")
    done, rounds = context.Event(), context.Queue()
    collector = context.Process(target=_collect, args=(root, done, rounds))
    plans = [tmp_path / f"plan{index}.json" for index in range(_COMPILERS)]
    compilers = [
        context.Process(
            target=_compile,
            args=(root, plan, [deployments[(index + turn) % len(deployments)] for turn in range(_ROUNDS)]),
        )
        for index, plan in enumerate(plans)
    ]
    for process in (collector, *compilers):
        process.start()
    for process in compilers:
        process.join(timeout=240)
    done.set()
    turns, removed = rounds.get(timeout=60)
    collector.join(timeout=60)
    assert [process.exitcode for process in (*compilers, collector)] == [0] * (_COMPILERS + 1)
    assert turns > 2
    assert removed > 0, "plans were replaced while it ran"

    found, _ = verify_zoo(Zoo(root), lambda path, nbytes: None)
    assert list(found) == []
    assert len(references(Zoo(root))) == _COMPILERS
    for index, plan in enumerate(plans):
        assert missing(root, plan) == []
        last = deployments[(index + _ROUNDS - 1) % len(deployments)]
        assert set(load_plan(plan).models) == {*last.bases, *last.fine_tunes}

    collect(Zoo(root), diags=Diagnostics())
    zoo = Zoo(root)
    held = [span.name for spans in zoo.packs().values() for span in spans]
    assert len(held) == len(set(held)), "no tensor is stored twice"
    assert survey(zoo, diags=Diagnostics()).unneeded == ()
    assert list((root / "leases").iterdir()) == []
    figure = f"{_COMPILERS} compilers, {_COMPILERS * _ROUNDS} plans, {turns} collections beside: nothing damaged"
    promised("compilers on one zoo", "8 at once: no corruption", figure, kept=True)


@pytest.mark.usefixtures("traced_before")
def test_a_collection_between_compiling_and_writing_the_plan(deployments, tmp_path: Path):
    zoo = Zoo(tmp_path / "zoo", create=True)
    compiled = compile_deployment(deployments[1], zoo=zoo, diags=Diagnostics())
    collect(Zoo(zoo.root), diags=Diagnostics())
    publish(compiled.plan, tmp_path / "plan.json", compiled.zoo)
    collect(Zoo(zoo.root), diags=Diagnostics())
    assert missing(zoo.root, tmp_path / "plan.json") == []
