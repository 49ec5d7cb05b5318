"""``python -m benchmarks``: the serving benchmark at both batch sizes."""

from __future__ import annotations

from benchmarks.serving import main

main()
