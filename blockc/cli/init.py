"""``blockc init DIR`` drafts a spec from the models that are in a folder.

In: a folder with checkpoints and adapters, this machine's devices. Out: a spec in that folder, ready to be checked and
changed. Never overwrites a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockc.diag import refuse

if TYPE_CHECKING:
    from blockc.spec.draft import DraftDevice

_GIB = 1 << 30


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where the models are; this folder, if not given.")
    ] = Path(),
    name: Annotated[str, typer.Option("--name", metavar="FILE", help="The spec's name, in DIR.")] = "fleet.blk",
    devices: Annotated[
        str, typer.Option("--devices", help="`auto`: the GPUs that the driver names, or else the CPU; or `cpu`.")
    ] = "auto",
) -> None:
    """Draft a spec from the models in a folder: bases, fine-tunes, devices, an app for each."""
    from blockc.render.units import printable
    from blockc.spec.draft import draft, find_models

    if devices not in ("auto", "cpu"):
        raise typer.BadParameter("there are `auto` and `cpu`", param_hint="--devices")
    if Path(name).name != name or not name.endswith(".blk"):
        raise typer.BadParameter("write the name of a `.blk` file, without folders", param_hint="--name")
    if not folder.is_dir():
        refuse("BC003", f"no folder {folder}", "name the folder that holds your models")
    found = draft(find_models(folder), _devices(use_gpus=devices == "auto"))
    if found is None:
        refuse(
            "BC201",
            f"no model that blockc can serve is in {folder}",
            "a model is a folder with config.json and *.safetensors, an adapter one with adapter_config.json;\n"
            "`blockc demo --keep DIR` shows a spec with models of its own",
        )
    path = folder / name
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(found.text)
    except FileExistsError:
        refuse("BC003", f"{path} is there already", "name another with `--name`; nothing is overwritten")
    except OSError as error:
        refuse("BC003", f"cannot write {path}: {error.strerror}", "name a folder that can be written to")
    bases, tunes = found.bases, found.fine_tunes
    print(f"{path}: {bases} base{'s'[: bases != 1]}, {tunes} fine-tune{'s'[: tunes != 1]}")
    for written, reason in found.unused:
        print(f"  left out: {printable(written)}: {printable(reason)}")
    print(f"next: blockc check {path}")


def _devices(*, use_gpus: bool) -> list[DraftDevice]:
    from blockc.cli.machine import gpus, memory_bytes
    from blockc.spec.draft import DraftDevice

    found = gpus() if use_gpus else ()
    if found:
        return [DraftDevice(kind="cuda", memory=f"{gpu.memory_bytes // _GIB}GiB", reserve="6%") for gpu in found]
    # What no model takes goes to the KV cache: half of a machine leaves room for everything else that it does.
    half = max(1, (memory_bytes() or 4 * _GIB) // 2 // _GIB)
    return [DraftDevice(kind="cpu", memory=f"{half}GiB", reserve="512MiB")]
