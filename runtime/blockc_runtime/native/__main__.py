"""``python -m blockc_runtime.native``: build the kernels of this machine again."""

from __future__ import annotations

import sys

from blockc_runtime.native.build import BuildError, build


def main() -> int:
    """The exit code."""
    try:
        for path in build():
            print(path.name)
    except BuildError as error:
        print(f"the kernels were not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
