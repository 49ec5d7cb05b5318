"""``python -m blockc``."""

from __future__ import annotations

import sys

from blockc.cli import main

sys.exit(main())
