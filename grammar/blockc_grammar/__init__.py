"""The grammar of ``*.blk`` specs, as text: the reference of the language's form.

What may stand in a spec beyond its form (kinds of blocks, attributes, units) is data of
``blockc.spec.schema``.
"""

from __future__ import annotations

from pathlib import Path

GRAMMAR_PATH = Path(__file__).with_name("blockc.lark")


def grammar_text() -> str:
    """Return the grammar in lark's notation."""
    return GRAMMAR_PATH.read_text(encoding="utf-8")
