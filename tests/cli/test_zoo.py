"""`blockc zoo`: what an operator sees and what ends with which exit code."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockc.cli import main
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan, TenantEntry, dump_plan, load_plan
from blockc.zoo import Zoo, publish, references, survey
from tests.zoo.plans import files, missing, stored_plan


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    errors: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def blockc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def run(*arguments: object) -> Ended:
        code = main([str(argument) for argument in arguments])
        out, errors = capsys.readouterr()
        assert "BC999" not in errors + out
        return Ended(code, out, errors)

    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Plans `a` and `b` with their zoo beside them."""
    folder = tmp_path_factory.mktemp("operator")
    zoo = Zoo(folder / "zoo", create=True)
    for name, variant in (("a.json", 1), ("b.json", 2)):
        publish(stored_plan(zoo, variant=variant), folder / name, zoo)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "work"))
    return tmp_path / "work"


def plan_of(folder: Path, name: str) -> str:
    return next(item.plan for item in references(Zoo(folder / "zoo")) if item.place == f"../{name}")


def pack_of(folder: Path, name: str) -> Path:
    """A pack of which the plan needs something."""
    found = survey(Zoo(folder / "zoo"), diags=Diagnostics())
    plan = plan_of(folder, name)
    return next(
        folder / "zoo" / "packs" / pack
        for pack, spans in found.packs.items()
        if any(plan in found.plans_of[span.name] for span in spans)
    )


def test_ls(folder: Path, blockc):
    done = blockc("zoo", "ls")
    assert done.code == 0
    assert "PLANS  (2 references)" in done.out
    assert f"{plan_of(folder, 'a.json')[:12]}  ../a.json (in place)" in done.out
    assert "NEEDED BY NO PLAN  (0 tensors, 0 blobs, 0 B" in done.out
    (folder / "a.json").unlink()
    assert "../a.json (its file is gone)" in blockc("zoo", "ls").out
    shutil.copy(folder / "b.json", folder / "a.json")
    assert "../a.json (another plan lies there)" in blockc("zoo", "ls").out


def test_ls_as_json_says_who_needs_what(folder: Path, blockc):
    document = blockc("zoo", "ls", "--json").document
    assert document["ok"]
    plans = sorted(item["plan"] for item in document["plans"])
    assert plans == sorted(plan_of(folder, name) for name in ("a.json", "b.json"))
    needed = {item["digest"]: item["plans"] for pack in document["packs"] for item in pack["tensors"]}
    assert {tuple(plans) for plans in needed.values()} == {(plans[0],), (plans[1],), tuple(plans)}
    for item in document["plans"]:
        total = sum(
            entry["bytes"]
            for entry in [*document["blobs"], *(tensor for pack in document["packs"] for tensor in pack["tensors"])]
            if item["plan"] in entry["plans"]
        )
        assert total == item["bytes"] > item["own_bytes"] > 0
    everything = blockc("zoo", "ls", "--all").out
    assert all(digest in everything for digest in needed)
    assert all(item["digest"] in everything for item in document["blobs"])


def test_show_a_tensor(folder: Path, blockc):
    plan = ExecutionPlan.model_validate(json.loads((folder / "a.json").read_bytes())["plan"])
    embed = next(b.tensors["embed"] for b in plan.blocks.values() if "embed" in b.tensors)
    document = blockc("zoo", "show", embed.digest[:16], "--json").document
    assert (document["digest"], document["dtype"], document["shape"]) == (embed.digest, "BF16", [256, 64])
    for name in ("a.json", "b.json"):
        uses = document["uses"][plan_of(folder, name)]
        assert len(uses) == 2, "embedding and head are tied"
        assert uses[0]["models"] == ["adapter0", "adapter1", "base", "tuned"]
        assert uses[0]["apps"] == ["acme/chat", "acme/draft", "zoo/law"]
    text = blockc("zoo", "show", embed.digest[:16]).out
    assert text.startswith(f"tensor {embed.digest}: BF16[256,64], 32.0 KiB\n  in packs/")
    assert "parameter embed of block" in text


def test_show_a_side_and_a_blob(folder: Path, blockc):
    plan = ExecutionPlan.model_validate(json.loads((folder / "a.json").read_bytes())["plan"])
    manifest = plan.chains[3].sides
    assert manifest is not None
    side = json.loads(Zoo(folder / "zoo").blob(manifest))["sides"][0]["terms"][0]["tensors"]["a"]["digest"]
    done = blockc("zoo", "show", side)
    assert "a of low_rank at q of occurrence 1: models adapter1" in done.out
    assert plan_of(folder, "b.json")[:12] not in done.out, "its second adapter is another"
    assert "manifest of sides: models adapter1" in blockc("zoo", "show", manifest).out
    assert (
        "tokenizer.json: models adapter0, adapter1, base, tuned"
        in blockc("zoo", "show", plan.chains[0].assets["tokenizer.json"]).out
    )


@pytest.mark.parametrize("name", ["a.json", "../a.json", "digest"])
def test_show_a_plan(folder: Path, blockc, name: str):
    """By its file, by the place that the zoo remembers, by its digest; the file may be gone."""
    digest = plan_of(folder, "a.json")
    if name != "a.json":
        (folder / "a.json").unlink()
    done = blockc("zoo", "show", digest[:10] if name == "digest" else name)
    assert done.code == 0
    assert done.out.startswith(f"plan {digest}\n  referred to as ../a.json")
    assert "one model each (PM)" in done.out


def test_show_a_plan_that_lacks_something(folder: Path, blockc):
    pack = pack_of(folder, "a.json")
    lost = [span.name for span in Zoo(folder / "zoo").packs()[pack.name]]
    pack.unlink()
    done = blockc("zoo", "show", "a.json")
    assert done.code == 1
    assert any(digest in done.errors for digest in lost)
    assert "BC904" in done.errors


def test_show_tenants_and_plans_without_weights(folder: Path, blockc):
    content = json.loads((folder / "a.json").read_bytes())["plan"]
    plan = ExecutionPlan.model_validate(content)
    share = TenantEntry(
        tenant="acme", pm_bytes=9, private_bytes=3, shared_bytes=4, fair_bytes=plan.baselines.ours_bytes
    )
    (folder / "c.json").write_bytes(dump_plan(plan.model_copy(update={"tenants": (share,)})))
    done = blockc("zoo", "show", "c.json")
    assert "not referred to by this zoo" in done.out
    assert "  acme  PM       9 B  private       3 B  shared       4 B" in done.out
    assert blockc("zoo", "show", "c.json", "--json").document["tenants"][0]["private_bytes"] == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_show_a_plan_that_was_made_without_weights(folder: Path, blockc, monkeypatch):
    plan = load_plan(folder / "a.json").model_copy(update={"target": "sim"})
    monkeypatch.setattr("blockc.plan.load_plan", lambda path: plan)
    done = blockc("zoo", "show", "a.json")
    assert done.code == 0
    assert "made without weights (target sim): no zoo holds its tensors" in done.out
    publish(plan, folder / "sim.json", None)
    assert len(references(Zoo(folder / "zoo"))) == 2, "it leaves no reference"


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "called ``"), ("zz", "called `zz`"), ("0123456789abcdef", "called"), ("missing/plan.json", "called")],
)
def test_show_what_is_not_there(folder: Path, blockc, name: str, said: str):
    done = blockc("zoo", "show", name)
    assert done.code == 1
    assert "BC907" in done.errors
    assert said in done.errors


def test_a_prefix_of_several_digests_names_them(folder: Path, blockc):
    known = [span.name for spans in Zoo(folder / "zoo").packs().values() for span in spans]
    prefix = next(digest[:1] for digest in known if sum(other.startswith(digest[:1]) for other in known) > 1)
    done = blockc("zoo", "show", prefix)
    assert done.code == 1
    assert "is the beginning of" in done.errors
    assert next(digest[:9] for digest in sorted(known) if digest.startswith(prefix)) in done.errors


def test_verify(folder: Path, blockc):
    done = blockc("zoo", "verify")
    assert (done.code, done.errors) == (0, "")
    assert "ok (" in done.out
    assert "2 plans" in done.out
    pack = sorted((folder / "zoo" / "packs").iterdir())[0]
    span = Zoo(folder / "zoo").packs()[pack.name][0]
    data = bytearray(pack.read_bytes())
    data[span.start] ^= 1
    pack.write_bytes(data)
    done = blockc("zoo", "verify")
    assert done.code == 1
    assert pack.name in done.errors
    assert span.name in done.errors
    document = blockc("zoo", "verify", "--json").document
    assert not document["ok"]
    assert [item["code"] for item in document["diagnostics"]] == ["BC903"]


def test_verify_shows_how_far_it_is_on_a_terminal(folder: Path, blockc, monkeypatch):
    assert blockc("zoo", "verify").errors == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = blockc("zoo", "verify").errors.split("\r")
    assert shown[1].startswith("\x1b[K  0 % of ")
    assert shown[-1] == "\x1b[K", "the line is gone at the end"


def test_gc_forgets_by_path_and_by_digest(folder: Path, blockc):
    before = Zoo(folder / "zoo").tensors_bytes()
    done = blockc("zoo", "gc", "--forget", "a.json", "--dry-run")
    assert "would be removed" in done.out
    assert Zoo(folder / "zoo").tensors_bytes() == before
    done = blockc("zoo", "gc", "--forget", "a.json")
    assert done.code == 0
    assert done.out.startswith("forgotten: ")
    assert Zoo(folder / "zoo").tensors_bytes() < before
    assert missing(folder / "zoo", folder / "b.json") == []
    document = blockc("zoo", "gc", "--forget", plan_of(folder, "b.json")[:8], "--json").document
    assert document["kept_tensors"] == 0
    assert [item["place"] for item in document["forgotten"]] == ["../b.json"]
    assert files(folder / "zoo") == {}


def test_gc_forgets_what_is_gone_only_if_told_to(folder: Path, blockc):
    (folder / "a.json").unlink()
    assert blockc("zoo", "gc").code == 0
    assert len(references(Zoo(folder / "zoo"))) == 2
    assert blockc("zoo", "gc", "--forget-gone").code == 0
    assert [item.place for item in references(Zoo(folder / "zoo"))] == ["../b.json"]


def test_gc_keeps_a_plan_that_is_named(folder: Path, blockc):
    shutil.copy(folder / "a.json", folder / "copy.json")
    done = blockc("zoo", "gc", "--forget", "a.json", "--keep", "copy.json")
    assert done.code == 0
    assert missing(folder / "zoo", folder / "copy.json") == []
    done = blockc("zoo", "gc", "--keep", "none.json")
    assert done.code == 1
    assert "BC003" in done.errors


def test_gc_does_not_empty_a_zoo_that_has_no_references(folder: Path, blockc):
    shutil.rmtree(folder / "zoo" / "plans")
    done = blockc("zoo", "gc")
    assert done.code == 1
    assert "BC907" in done.errors
    assert "--keep PLAN" in done.errors
    assert Zoo(folder / "zoo").packs()
    assert blockc("zoo", "gc", "--keep", "a.json").code == 0
    assert missing(folder / "zoo", folder / "a.json") == []


def test_gc_beside_a_writer(folder: Path, blockc):
    lock = os.open(folder / "zoo" / ".lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        done = blockc("zoo", "gc", "--no-wait")
    finally:
        os.close(lock)
    assert done.code == 1
    assert "BC908" in done.errors
    assert blockc("zoo", "gc", "--no-wait").code == 0


def test_import(folder: Path, blockc):
    done = blockc("zoo", "import", "zoo", "--zoo", "all")
    assert done.code == 0
    assert "2 plans referred to" in done.out
    assert files(folder / "all") == files(folder / "zoo")
    digest = plan_of(folder, "a.json")
    for name, target in (("a.json", "one"), (digest[:10], "two")):
        document = blockc("zoo", "import", "zoo", "--plan", name, "--zoo", target, "--json").document
        assert document["ok"]
        assert missing(folder / target, folder / "a.json") == []
        assert Zoo(folder / target).tensors_bytes() < Zoo(folder / "zoo").tensors_bytes()
        assert blockc("zoo", "gc", "--zoo", target).code == 0
        assert missing(folder / target, folder / "a.json") == []
    again = blockc("zoo", "import", "zoo", "--plan", "a.json", "--zoo", "one", "--json").document
    assert (again["tensors"], again["blobs"], again["bytes"]) == (0, 0, 0)


def test_import_takes_a_plan_from_several_zoos_together(folder: Path, blockc):
    shutil.copytree(folder / "zoo", folder / "other")
    lost = pack_of(folder, "a.json")
    lost.unlink()
    for path in (folder / "other" / "packs").iterdir():
        if path.name != lost.name:
            path.unlink()
    done = blockc("zoo", "import", "zoo", "--plan", "a.json", "--zoo", "new")
    assert done.code == 1
    assert "BC904" in done.errors
    assert references(Zoo(folder / "new")) == (), "nothing is promised that is not there"
    assert blockc("zoo", "import", "zoo", "other", "--plan", "a.json", "--zoo", "new").code == 0
    assert missing(folder / "new", folder / "a.json") == []


def test_damage_does_not_come_in(folder: Path, blockc):
    pack = sorted((folder / "zoo" / "packs").iterdir())[0]
    span = Zoo(folder / "zoo").packs()[pack.name][0]
    data = bytearray(pack.read_bytes())
    data[span.start] ^= 1
    pack.write_bytes(data)
    done = blockc("zoo", "import", "zoo", "--zoo", "new")
    assert done.code == 1
    assert str(pack.name) in done.errors
    assert span.name in done.errors
    assert not len(Zoo(folder / "new").verify())
    assert references(Zoo(folder / "new")) == ()


@pytest.mark.parametrize("command", [["ls"], ["show", "ab"], ["verify"], ["gc"], ["import", "none"]])
def test_no_zoo(tmp_path: Path, blockc, command: list[str], monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = blockc("zoo", *command)
    assert done.code == 1
    assert "BC904" in done.errors
    assert not (tmp_path / "zoo").exists()
    assert not blockc("zoo", *command, "--json").document["ok"]


def test_a_checkpoint_is_no_zoo(tmp_path: Path, blockc):
    (tmp_path / "config.json").write_text("{}")
    done = blockc("zoo", "import", tmp_path, "--zoo", tmp_path / "zoo")
    assert done.code == 1
    assert "is a checkpoint, not a zoo" in done.errors


def test_usage(blockc):
    assert blockc("zoo").code == 64
    assert blockc("zoo", "frob").code == 64
