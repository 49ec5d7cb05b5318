"""What a wheel installs: three packages, the grammar, the samples, the type markers, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.mark.wheel
def test_wheel_contents(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(_ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"blockc", "blockc_runtime", "blockc_grammar"}
    for wanted in (
        "blockc/py.typed",
        "blockc_runtime/py.typed",
        "blockc_grammar/py.typed",
        "blockc_grammar/blockc.lark",
        "blockc/samples/base/model.safetensors",
        "blockc/samples/fleet.blk",
        "blockc/render/page/page.css",
        "blockc/render/page/page.js",
        "blockc/render/page/live.js",
    ):
        assert wanted in names
    assert not [name for name in names if name.endswith((".pyc", ".pt", ".bin"))]


def test_the_runtime_loads_no_compiler():
    """Importing every module of the runtime pulls in none of the compiler's stages."""
    code = (
        "import importlib, pkgutil, sys, blockc_runtime\n"
        "for info in pkgutil.walk_packages(blockc_runtime.__path__, 'blockc_runtime.'):\n"
        "    if not info.name.endswith('__main__'): importlib.import_module(info.name)\n"
        "bad = {'transformers', 'peft', 'ortools', 'lark', 'blockc.spec', 'blockc.trace', 'blockc.tune',"
        " 'blockc.place', 'blockc.compiler'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
