"""A collection removes what no plan needs, and nothing that a plan, a compilation or a reader relies on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir import TensorRef
from blockc.plan import dump_plan
from blockc.zoo import Zoo, collect, publish, references, state_of, survey, verify_zoo
from blockc.zoo.lease import Lease, leased, sweep
from tests.zoo.plans import files, missing, referred, stored_plan

Make = Callable[..., tuple[TensorRef, bytes]]


def gc(root: Path, **options):
    diags = Diagnostics()
    done = collect(Zoo(root), diags=diags, **options)
    assert not len(diags), list(diags)
    return done


def damage(root: Path) -> list[str]:
    return [str(item.message) for item in verify_zoo(Zoo(root), lambda path, nbytes: None)[0]]


def published(root: Path, path: Path, **options):
    zoo = Zoo(root, create=True)
    plan = stored_plan(zoo, **options)
    publish(plan, path, zoo)
    return plan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "zoo"


def test_what_plans_need_stays_and_the_rest_goes(root: Path, tmp_path: Path, tensor: Make):
    published(root, tmp_path / "a.json")
    before = files(root)
    Zoo(root).put_tensors([tensor(1), tensor(2)])
    Zoo(root).put_blob(b"nobody's")
    done = gc(root)
    assert files(root) == before
    assert sum(len(work.drops) for work in done.packs) == 2
    assert list(done.blobs) == [hashlib.sha256(b"nobody's").hexdigest()]
    assert damage(root) == []


def test_packs_of_which_a_part_is_needed_are_rewritten(root: Path, tmp_path: Path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    published(root, a, variant=1)
    published(root, b, variant=2)
    zoo = Zoo(root)
    both = zoo.tensors_bytes()
    gone = [item for item in references(zoo) if item.place == "../a.json"]
    done = gc(root, ended=gone)
    assert any(work.keeps and work.drops for work in done.packs)
    assert missing(root, b) == []
    assert missing(root, a)
    assert damage(root) == []
    # Exactly what a zoo of its own would hold.
    published(tmp_path / "alone", tmp_path / "c.json", variant=2)
    assert Zoo(root).tensors_bytes() == Zoo(tmp_path / "alone").tensors_bytes() < both
    assert {name for name in files(root) if name.startswith("blobs")} == {
        name for name in files(tmp_path / "alone") if name.startswith("blobs")
    }
    assert gc(root).packs == ()


def test_a_dry_run_says_the_same_and_changes_nothing(root: Path, tmp_path: Path):
    published(root, tmp_path / "a.json", variant=1)
    published(root, tmp_path / "a.json", variant=2)
    before = files(root)
    said = gc(root, dry_run=True)
    assert files(root) == before
    done = gc(root)
    assert (said.packs, said.blobs, said.kept_tensors) == (done.packs, done.blobs, done.kept_tensors)
    assert said.files_bytes_after is None
    assert done.files_bytes_after == Zoo(root).files_bytes() < done.files_bytes_before


def test_a_plan_compiled_again_in_place_replaces_its_reference(root: Path, tmp_path: Path):
    path = tmp_path / "a.json"
    for variant in (1, 2, 1, 3):
        plan = published(root, path, variant=variant)
        assert referred(Zoo(root)) == [("../a.json", hashlib.sha256(dump_plan(plan)).hexdigest())]
    gc(root)
    assert missing(root, path) == []
    assert survey(Zoo(root), diags=Diagnostics()).unneeded == ()


def test_plans_of_one_name_in_two_folders_are_two(root: Path, tmp_path: Path):
    for folder, variant in (("one", 1), ("two", 2)):
        published(root, tmp_path / folder / "plan.json", variant=variant)
    published(root, tmp_path / "one" / "plan.json", variant=3)
    gc(root)
    assert [place for place, _ in referred(Zoo(root))] == ["../one/plan.json", "../two/plan.json"]
    for folder in ("one", "two"):
        assert missing(root, tmp_path / folder / "plan.json") == []


def test_a_folder_that_was_moved_keeps_its_references(tmp_path: Path):
    published(tmp_path / "old" / "zoo", tmp_path / "old" / "plan.json", variant=1)
    (tmp_path / "old").rename(tmp_path / "new")
    root, path = tmp_path / "new" / "zoo", tmp_path / "new" / "plan.json"
    (reference,) = references(Zoo(root))
    assert state_of(Zoo(root), reference) == "there"
    published(root, path, variant=2)
    assert len(references(Zoo(root))) == 1


def test_a_plan_whose_file_is_gone_is_kept_until_somebody_says_so(root: Path, tmp_path: Path):
    path = tmp_path / "a.json"
    published(root, path)
    saved = shutil.move(path, tmp_path / "moved.json")
    (reference,) = references(Zoo(root))
    assert state_of(Zoo(root), reference) == "gone"
    gc(root)
    assert missing(root, Path(saved)) == []
    gc(root, ended=[reference])
    assert Zoo(root).packs() == {}
    assert files(root) == {}


def test_the_same_place_on_another_machine_is_another_place(root: Path, tmp_path: Path, monkeypatch):
    path = tmp_path / "a.json"
    with monkeypatch.context() as patch:
        patch.setattr("blockc.zoo.reference.host_name", lambda: "elsewhere")
        plan = published(root, path, variant=1)
    path.unlink()
    published(root, path, variant=2)
    states = {state_of(Zoo(root), item) for item in references(Zoo(root))}
    assert states == {"elsewhere", "there"}
    gc(root)
    (tmp_path / "theirs.json").write_bytes(dump_plan(plan))
    assert missing(root, tmp_path / "theirs.json") == []


def test_kept_plans_need_no_reference(root: Path, tmp_path: Path):
    path = tmp_path / "a.json"
    zoo = Zoo(root, create=True)
    path.write_bytes(dump_plan(stored_plan(zoo)))
    del zoo
    gc(root, keep=[path.read_bytes()])
    assert missing(root, path) == []
    gc(root)
    assert missing(root, path)


def test_what_a_compilation_has_put_stays_before_its_plan_is_written(root: Path, tmp_path: Path):
    compiling = Zoo(root, create=True)
    plan = stored_plan(compiling)
    gc(root)
    publish(plan, tmp_path / "a.json", compiling)
    gc(root)
    assert missing(root, tmp_path / "a.json") == []


def test_what_a_compilation_has_found_stays_too(root: Path, tmp_path: Path):
    """The plan that it was stored for may be forgotten while another compilation counts on it."""
    published(root, tmp_path / "a.json")
    compiling = Zoo(root)
    before = files(root)
    plan = stored_plan(compiling)  # all of it is there
    gc(root, ended=references(Zoo(root)))
    publish(plan, tmp_path / "b.json", compiling)
    gc(root)
    assert missing(root, tmp_path / "b.json") == []
    assert {name for name in files(root) if name.startswith("packs")} == {
        name for name in before if name.startswith("packs")
    }


def test_a_writer_notices_what_was_collected_before_it_came_to_it(root: Path, tmp_path: Path):
    """An index read earlier must not make a tensor pass for stored."""
    published(root, tmp_path / "a.json")
    early = Zoo(root)
    gc(root, ended=references(Zoo(root)))
    publish(stored_plan(early), tmp_path / "b.json", early)
    assert missing(root, tmp_path / "b.json") == []


def test_a_lease_ends_with_its_process(root: Path, tmp_path: Path):
    Zoo(root, create=True)
    child = os.fork()
    if child == 0:
        zoo = Zoo(root)
        stored_plan(zoo)
        os._exit(0)
    os.waitpid(child, 0)
    assert list((root / "leases").iterdir()), "nobody tidied up"
    assert Zoo(root).packs()
    gc(root)
    assert Zoo(root).packs() == {}
    assert list((root / "leases").iterdir()) == []


def test_a_forked_child_does_not_end_the_lease(root: Path):
    zoo = Zoo(root, create=True)
    stored_plan(zoo)
    child = os.fork()
    if child == 0:
        del zoo
        os._exit(0)
    os.waitpid(child, 0)
    assert leased(root / "leases")
    del zoo
    assert list((root / "leases").iterdir()) == []


def test_leases_of_other_machines_are_in_force_for_a_day(root: Path, monkeypatch):
    Zoo(root, create=True)
    with monkeypatch.context() as patch:
        patch.setattr("blockc.zoo.lease.host_name", lambda: "far.example")
        lease = Lease(root / "leases")
    lease.add(["a" * 64])
    (path,) = (root / "leases").iterdir()
    assert path.name.startswith("far.example.")
    sweep(root / "leases")
    assert leased(root / "leases") == {"a" * 64}
    old = path.stat().st_mtime - 25 * 3600
    os.utime(path, (old, old))
    assert leased(root / "leases") == set()
    sweep(root / "leases")
    assert not path.exists()


def test_readers_go_on_reading_what_moves_and_what_goes(root: Path, tmp_path: Path, tensor: Make):
    published(root, tmp_path / "a.json", variant=1)
    published(root, tmp_path / "b.json", variant=2)
    reader = Zoo(root)
    lost = tensor(1)
    Zoo(root).put_tensors([lost])
    held = reader.tensor(lost[0].digest)
    packs = dict(reader.packs())
    gc(root, ended=[item for item in references(reader) if item.place == "../a.json"])
    assert bytes(held.data) == lost[1], "a mapping outlives its pack"
    moved = [span for name, spans in packs.items() if not (root / "packs" / name).exists() for span in spans]
    assert moved
    needed = {span.name for spans in Zoo(root).packs().values() for span in spans}
    read = [reader.tensor(span.name) for span in moved if span.name in needed]
    assert read, "some of them lie in new packs now"


def test_a_tensor_in_two_packs_stays_in_one(root: Path, tmp_path: Path):
    """Writers on a file system without locks may store it twice, and so does a crash in a collection."""
    published(root, tmp_path / "a.json")
    other = tmp_path / "other"
    zoo = Zoo(other, create=True)
    spans = [span for spans in Zoo(root).packs().values() for span in spans][:3]
    source = Zoo(root)
    zoo.put_tensors(
        (TensorRef(digest=span.name, dtype=span.dtype, shape=span.shape), source.tensor(span.name).data)
        for span in spans
    )
    (extra,) = (other / "packs").iterdir()
    shutil.copy(extra, root / "packs" / extra.name)
    gc(root)
    names = [span.name for spans in Zoo(root).packs().values() for span in spans]
    assert len(names) == len(set(names))
    assert missing(root, tmp_path / "a.json") == []


@pytest.mark.parametrize("kind", ["reference", "plan", "manifest", "no copy"])
def test_nothing_is_collected_where_it_is_not_known_what_is_needed(root: Path, tmp_path: Path, kind: str):
    plan = published(root, tmp_path / "a.json")
    (reference,) = references(Zoo(root))
    path = {
        "reference": root / "plans" / reference.file_name,
        "plan": root / "blobs" / reference.plan,
        "no copy": root / "blobs" / reference.plan,
        "manifest": root / "blobs" / str(plan.chains[2].sides),
    }[kind]
    if kind == "no copy":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    before = files(root)
    with pytest.raises(DiagnosticError) as caught:
        gc(root)
    (item,) = caught.value.diagnostics
    assert item.code.id == ("BC904" if kind == "no copy" else "BC903")
    assert (reference.plan[:12] if kind == "no copy" else path.name) in item.message
    assert files(root) == before
    if kind in ("plan", "no copy"):
        gc(root, ended=[reference])
        assert Zoo(root).packs() == {}


def test_a_damaged_tensor_is_not_copied_to_a_new_pack(root: Path, tmp_path: Path):
    published(root, tmp_path / "a.json", variant=1)
    published(root, tmp_path / "b.json", variant=2)
    ended = [item for item in references(Zoo(root)) if item.place == "../a.json"]
    work = next(work for work in gc(root, ended=ended, dry_run=True).packs if work.keeps and work.drops)
    path = root / "packs" / work.name
    data = bytearray(path.read_bytes())
    data[work.keeps[0].start] ^= 1
    path.write_bytes(data)
    diags = Diagnostics()
    collect(Zoo(root), ended=ended, diags=diags)
    (item,) = diags
    assert item.code.id == "BC903"
    assert work.name in item.message
    assert work.keeps[0].name in item.message
    assert path.exists()


def test_without_locks_nothing_is_collected(root: Path, tmp_path: Path, monkeypatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    published(root, tmp_path / "a.json")
    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(DiagnosticError, match=r"BC908.*no locks"):
        gc(root)


def test_a_disk_that_cannot_be_written_is_a_diagnostic(root: Path, tmp_path: Path, monkeypatch):
    published(root, tmp_path / "a.json")
    real = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(DiagnosticError, match=r"BC003.*Read-only file system"):
        gc(root)
    assert gc(root, dry_run=True).packs == ()
    assert damage(root) == []


def test_digests_of_any_version_of_a_plan_keep_their_tensors(root: Path, tmp_path: Path):
    """A later version may name tensors in fields that are not known here."""
    zoo = Zoo(root, create=True)
    plan = json.loads(dump_plan(stored_plan(zoo)))
    plan["plan"]["format_version"] = 99
    plan["plan"]["unheard_of"] = plan["plan"].pop("blocks")
    data = json.dumps(plan).encode()
    del zoo
    before = {name for name in files(root) if name.startswith("packs")}
    gc(root, keep=[data])
    assert {name for name in files(root) if name.startswith("packs")} == before
