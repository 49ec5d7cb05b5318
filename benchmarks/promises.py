"""What blockc promises, beside what its tests measure: the table of docs/promises.md.

    python -m benchmarks.promises [--rows load,faults] [--select WORDS] [--quick] [--soak-s 600]
                                  [--fleet-requests 10000] [--json FILE] [--document docs/promises.md] [--note WORDS]

Runs every test that is marked `promise`, the long ones, too (`--quick`: only those that always run), and prints a line
for each figure: what was promised, what was measured, kept or not. Exits with 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# The rows of the design's table.
ROWS = (
    "load", "cancellation", "drain", "faults", "files", "plan swap", "requests", "specs", "isolation", "fairness",
    "scheduler",
)  # fmt: skip
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
HEAD = ("row", "what", "promised", "measured", "kept")

Line = dict[str, Any]


class Collector:
    """A pytest plugin: which tests are whose, and what they found."""

    def __init__(self, rows: Sequence[str], *, quick: bool) -> None:
        self._rows, self._quick = rows, quick
        self._row_of: dict[str, str] = {}
        self._found: list[Line] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests of the wanted rows; of a test with a long form that one, or the other with ``quick``."""
        marked = {item: marker.args[0] for item in items if (marker := item.get_closest_marker("promise"))}
        assert set(marked.values()) <= set(ROWS), set(marked.values()) - set(ROWS)
        long = {item.nodeid.partition("[")[0] for item in marked if _is_slow(item)}
        kept, others = [], []
        for item in items:
            is_other_form = _is_slow(item) if self._quick else not _is_slow(item) and _name(item) in long
            wanted = item in marked and marked[item] in self._rows and not is_other_form
            (kept if wanted else others).append(item)
        items[:] = sorted(kept, key=lambda item: self._rows.index(marked[item]))
        config.hook.pytest_deselected(items=others)
        self._row_of = {item.nodeid: marked[item] for item in kept}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the figures of a test, or that it failed."""
        row = self._row_of[report.nodeid]
        if report.failed:
            reason = str(report.longrepr).strip().splitlines()[-1][:200]
            line = {"what": report.nodeid, "promised": "the test passes", "measured": reason, "kept": False}
            self._found.append({"row": row, **line})
        elif report.when == "call":
            lines = [value for name, value in report.user_properties if name == "promise"]
            self._found += [{"row": row, **line} for line in lines if isinstance(line, Mapping)]

    def lines(self) -> list[Line]:
        """One for each promise, in the order of the rows: figures of the same one stand together."""
        merged: dict[tuple[str, str, str], list[Line]] = {}
        for line in self._found:
            merged.setdefault((line["row"], line["what"], line["promised"]), []).append(line)
        return [
            {
                **dict(zip(HEAD[:3], key, strict=True)),
                "measured": _together([line["measured"] for line in own]),
                "kept": all(line["kept"] for line in own),
            }
            for key, own in sorted(merged.items(), key=lambda item: ROWS.index(item[0][0]))
        ]


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _name(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _together(figures: Sequence[str]) -> str:
    if len(figures) > 1 and len(set(figures)) == 1:
        return f"{len(figures)} x {figures[0]}"
    return ", ".join(figures)


def table(lines: Iterable[Line]) -> str:
    """The lines as Markdown."""
    rows = [[*(str(line[name]) for name in HEAD[:4]), "yes" if line["kept"] else "**no**"] for line in lines]
    text = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    return "\n".join([*text, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)])


def documented(text: str, lines: Iterable[Line]) -> str:
    """A document with the table between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(lines)}\n{END}{after}"


def run(rows: Sequence[str], *, select: str, quick: bool, soak_s: float, fleet_requests: int) -> list[Line]:
    """Run the tests and return the lines."""
    collector = Collector(rows, quick=quick)
    options = ["-q", "-p", "no:cacheprovider", "--soak-s", str(soak_s), "--fleet-requests", str(fleet_requests)]
    options += ["-k", select] if select else []
    pytest.main([*options, str(ROOT / "tests")], plugins=[collector])
    return collector.lines()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, with commas")
    parser.add_argument("--quick", action="store_true", help="without the long forms")
    parser.add_argument("--soak-s", type=float, default=600.0)
    parser.add_argument("--fleet-requests", type=int, default=10_000)
    parser.add_argument("--select", default="", metavar="WORDS", help="only tests whose names hold this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the figures there, in place of older ones")
    parser.add_argument("--document", type=Path, metavar="FILE", help="put the table in this document")
    parser.add_argument("--note", default="", help="what to say of the machine beside its cores")
    options = parser.parse_args()
    rows = [name.strip() for name in options.rows.split(",")]
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"no row `{unknown[0]}`; there are {', '.join(ROWS)}")
    # One thread: OpenMP's would outnumber the cores of a server and its clients.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began_s, commit = time.monotonic(), _commit()
    lines = run(
        rows, select=options.select, quick=options.quick, soak_s=options.soak_s, fleet_requests=options.fleet_requests
    )
    this = {
        "command": _command(options),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "note": options.note,
        "seconds": round(time.monotonic() - began_s),
    }
    print(table(lines))
    is_kept = bool(lines) and all(line["kept"] for line in lines)
    if options.json is not None:
        document = updated(options.json, this, lines)
        lines = document["lines"]
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.document is not None:
        options.document.write_text(documented(options.document.read_text(encoding="utf-8"), lines), encoding="utf-8")
    missing = set(rows) - {line["row"] for line in lines}
    for row in sorted(missing):
        print(f"no figure: {row}", file=sys.stderr)
    return 0 if is_kept else 1


def updated(path: Path, this: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    """What is in a file, with these lines in place of those of the same promises; and the runs that they are of."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": [], "lines": []}
    runs = [*old["runs"], dict(this)]
    new = [{**line, "run": len(runs) - 1} for line in lines]
    replaced = {(line["row"], line["what"]) for line in new}
    kept = [line for line in old["lines"] if (line["row"], line["what"]) not in replaced]
    merged = sorted([*kept, *new], key=lambda line: ROWS.index(line["row"]))
    used = sorted({line["run"] for line in merged})
    return {
        "runs": [runs[number] for number in used],
        "lines": [{**line, "run": used.index(line["run"])} for line in merged],
    }


def _command(options: argparse.Namespace) -> str:
    """What ran, without where its figures went."""
    words = ["python -m benchmarks.promises", "--rows", options.rows]
    words += ["--select", repr(options.select)] if options.select else []
    words += ["--quick"] if options.quick else []
    return " ".join([*words, "--soak-s", f"{options.soak_s:g}", "--fleet-requests", str(options.fleet_requests)])


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
