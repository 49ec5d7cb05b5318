"""The comments that speak to the compiler: ``# blockc: allow(BC301, BC804)``.

In: the comments of a file. Out: its suppressions. A comment that starts like one and is none is
reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from blockc.diag import Diagnostics
from blockc.diag.suppress import Suppression
from blockc.spec.syntax import Comment

_ADDRESSED = re.compile(r"(?:#|//|/\*)\s*blockc\s*:(?P<order>.*?)(?:\*/)?", re.DOTALL)
_ALLOW = re.compile(r"\s*allow\s*\((?P<codes>[A-Za-z0-9,\s]*)\)(?:\s.*)?", re.DOTALL)


def suppressions(comments: Iterable[Comment], diags: Diagnostics) -> Iterator[Suppression]:
    """Yield what the comments allow."""
    for comment in comments:
        if (addressed := _ADDRESSED.fullmatch(comment.text)) is None:
            continue
        allow = _ALLOW.fullmatch(addressed["order"])
        codes = allow["codes"].replace(",", " ").split() if allow is not None else []
        if not codes:
            message = "a comment to blockc that is not understood"
            help_ = "write `# blockc: allow(BC804)`"
            diags.report("BC803", message, at=comment.span, help=help_)
        for code in codes:
            yield Suppression(code=code.upper(), span=comment.span)
