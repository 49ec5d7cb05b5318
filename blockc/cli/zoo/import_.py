"""``blockc zoo import SOURCE...``: take over what other zoos hold, checked on the way in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockc.cli.options import JsonOption
from blockc.cli.zoo.names import WhichZoo, digest_of

if TYPE_CHECKING:
    from blockc.zoo import PlanFile, Zoo


def import_(
    source: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Other zoos.")],
    zoo: WhichZoo = Path("zoo"),
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="PLAN", help="Only what this plan needs: its path, or digest in a source."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take over everything that other zoos hold, or what one plan needs."""
    from blockc.cli.report import exit_code, print_document, reporting, show
    from blockc.diag import Diagnostics
    from blockc.diag.json import diagnostics_document
    from blockc.render import counted, format_bytes
    from blockc.zoo import Zoo, import_plan, import_zoos

    diags = Diagnostics()
    with reporting("zoo import", as_json=as_json):
        sources = [_source(path) for path in source]
        wanted = None if plan is None else _plan_file(plan, sources)
        target = Zoo(zoo, create=True)
        if wanted is None:
            done = import_zoos(target, sources, diags=diags)
        else:
            done = import_plan(target, sources, wanted, diags=diags)
    if as_json:
        print_document(
            "zoo import",
            ok=not diags.has_errors,
            zoo=str(zoo),
            tensors=done.tensors,
            blobs=done.blobs,
            bytes=done.nbytes,
            plans=done.plans,
            diagnostics=diagnostics_document(diags),
        )
    else:
        print(
            f"{zoo}: {counted(done.tensors, 'new tensor')} and {counted(done.blobs, 'new blob')} "
            f"({format_bytes(done.nbytes)}), {counted(done.plans, 'plan')} referred to"
        )
        show(diags)
    raise typer.Exit(int(exit_code(diags)))


def _source(path: Path) -> Zoo:
    from blockc.diag import DiagnosticError, Diagnostics
    from blockc.zoo import Zoo

    if path.suffix == ".safetensors" or (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        diags = Diagnostics()
        diags.report(
            "BC904",
            f"{path} is a checkpoint, not a zoo",
            notes=("what a model takes from it depends on its spec: dtype, names, tied tensors",),
            help="name it in a spec and compile that; blocks that are stored already are not stored again",
        )
        raise DiagnosticError(diags)
    return Zoo(path)


def _plan_file(name: str, sources: list[Zoo]) -> PlanFile:
    """A plan's file as it lies on the disk, or as a source keeps it."""
    from blockc.plan import dump_plan, load_plan
    from blockc.zoo import PlanFile, path_of, references

    if Path(name).exists():
        return PlanFile(data=dump_plan(load_plan(Path(name))), path=Path(name), host=None)
    where = {item: store for store in sources for item in references(store)}
    digest = digest_of(name, (item.plan for item in where), where="the plans of these zoos")
    reference = min(item for item in where if item.plan == digest)
    store = where[reference]
    return PlanFile(data=store.blob(digest), path=path_of(store, reference), host=reference.host)
