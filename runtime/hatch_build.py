"""Builds the kernels when blockc is installed. Where they cannot be built the wheel is pure, and serving says so."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface[Any]):
    """Puts ``kernels.<level>.so`` beside their sources, in the tree and in the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling for each wheel; ``version``: standard or editable."""
        path = Path(self.root, "runtime/blockc_runtime/native/build.py")
        spec = importlib.util.spec_from_file_location("blockc_native_build", path)
        assert spec is not None
        assert spec.loader is not None
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        try:
            built = native.build()
        except native.BuildError as error:
            self.app.display_warning(f"serving on CPU will be slower: blockc's kernels were not built: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"] += [f"/{library.relative_to(self.root)}" for library in built]
