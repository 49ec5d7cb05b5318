"""Traces in their formats, and wrong ones with the line that is wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.diag import DiagnosticError, Diagnostics
from blockc.simulate import Spread, read_trace, workload_of

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109

2023-11-16 18:15:51.2224670,879,0
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
45,ChatGPT,472,18,490,Conversation log
118,GPT-4,1087,230,1317,API log
119,ChatGPT,417,0,417,Conversation log
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 1024, "output_length": 26, "hash_ids": [46, 47]}
{"timestamp": 30000, "input_length": 900, "output_length": 1, "hash_ids": [3, 4]}
"""
JSONL = """{"timestamp": 1.5, "prompt_tokens": 10, "output_tokens": 3, "app": "acme/sql"}
{"timestamp": 2, "prompt_tokens": 11, "output_tokens": 4, "model": "acme/chat"}
{"timestamp": 0.5, "prompt_tokens": 12, "output_tokens": 5}
"""
APPS = ("acme/chat", "acme/sql")


def read(tmp_path: Path, text: str, **options):
    path = tmp_path / "trace"
    path.write_text(text, encoding="utf-8")
    return read_trace(path, diags=Diagnostics(), **options)


def problems(tmp_path: Path, text: str, **options) -> list[tuple[str, int | None, str]]:
    with pytest.raises(DiagnosticError) as caught:
        read(tmp_path, text, **options)
    return [
        (item.code.id, item.primary.span.start_line if item.primary else None, item.message)
        for item in caught.value.diagnostics
    ]


def test_azure(tmp_path: Path) -> None:
    trace = read(tmp_path, AZURE)
    assert trace.format == "azure"
    assert [(row.prompt_tokens, row.output_tokens) for row in trace.rows] == [(374, 44), (396, 109)]
    assert [row.at_s for row in trace.rows] == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert trace.left_out == (("no answer", 1),)


def test_azure_of_2024_has_time_zones(tmp_path: Path) -> None:
    trace = read(tmp_path, AZURE.splitlines()[0] + "\n2024-05-10 00:00:00.5+00:00,1,2\n2024-05-10 02:00:00+02:00,3,4\n")
    assert [(row.prompt_tokens, row.at_s) for row in trace.rows] == [(3, 0.0), (1, 0.5)]


def test_burstgpt_leaves_failures_out(tmp_path: Path) -> None:
    trace = read(tmp_path, BURSTGPT)
    assert trace.format == "burstgpt"
    assert [(row.at_s, row.prompt_tokens, row.output_tokens) for row in trace.rows] == [
        (0.0, 472, 18),
        (73.0, 1087, 230),
    ]
    assert trace.left_out == (("no answer", 1),)


def test_mooncake_keeps_blocks_and_puts_rows_in_order(tmp_path: Path) -> None:
    trace = read(tmp_path, MOONCAKE)
    assert trace.format == "mooncake"
    assert [row.at_s for row in trace.rows] == pytest.approx([0.0, 2.518, 3.053])
    assert [row.blocks for row in trace.rows] == [(46, 47, 48), (3, 4), (46, 47)]
    arrivals = workload_of(trace, APPS, Spread(skew=0.0), diags=Diagnostics()).arrivals
    assert arrivals[0].app == arrivals[2].app


def test_json_lines_may_name_apps(tmp_path: Path) -> None:
    trace = read(tmp_path, JSONL)
    assert trace.format == "jsonl"
    arrivals = workload_of(trace, APPS, Spread(), diags=Diagnostics()).arrivals
    assert [item.prompt_tokens for item in arrivals] == [12, 10, 11]
    assert [item.app for item in arrivals][1:] == [1, 0]


def test_an_app_that_the_plan_lacks(tmp_path: Path) -> None:
    trace = read(tmp_path, JSONL.replace("acme/sql", "acme/squl"))
    with pytest.raises(DiagnosticError) as caught:
        workload_of(trace, APPS, Spread(), diags=Diagnostics())
    (item,) = caught.value.diagnostics
    assert (item.code.id, item.primary.span.start_line) == ("BC101", 1)
    assert "acme/squl" in item.message
    assert "acme/chat" in item.help


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (AZURE.replace(",109", ",many"), 3, "`GeneratedTokens` is `many`"),
        (AZURE.replace(",396", ",-3"), 3, "`ContextTokens` is `-3`"),
        (AZURE.replace(",396", ",1e3"), 3, "`ContextTokens` is `1e3`"),
        (AZURE.replace(",396", ",99999999999999999999999"), 3, "at most 10,000,000"),
        (AZURE.replace("2023-11-16 18:15:50.9951690", "yesterday"), 3, "`TIMESTAMP` is `yesterday`"),
        (AZURE.replace(",396,109", ",396"), 3, "2 columns, expected 3"),
        (BURSTGPT.replace("118", "nan"), 3, "`Timestamp` is `nan`"),
        (MOONCAKE.replace("[46, 47]", '"46"'), 2, "`hash_ids` is no list"),
        (MOONCAKE.replace("[46, 47]", "[46, -1]"), 2, "`hash_ids` holds something else"),
        (MOONCAKE.replace('"output_length": 26, ', ""), 2, "no `output_length`"),
        (JSONL.replace("11,", "true,"), 2, "`prompt_tokens` is `True`"),
        (JSONL.replace('"output_tokens": 4', '"tokens": 4'), 2, "no `output_tokens` (nor "),
        (JSONL.replace('{"timestamp": 2', "timestamp: 2"), 2, "not a JSON object"),
        (JSONL.replace('"acme/chat"', "7"), 2, "`app` is no string"),
    ],
)
def test_wrong_lines(tmp_path: Path, text: str, line: int, words: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found[:2] == ("BC503", line)
    assert words in found[2]


@pytest.mark.parametrize("text", ["", "a,b,c\n1,2,3\n", "hello\n", "\x00\xff\n"])
def test_files_of_no_format(tmp_path: Path, text: str) -> None:
    ((code, line, message),) = problems(tmp_path, text)
    assert (code, line) == ("BC503", 1)
    assert "no trace of a known format" in message


def test_a_format_that_the_file_does_not_have(tmp_path: Path) -> None:
    ((code, _, message),) = problems(tmp_path, BURSTGPT, format_="azure")
    assert code == "BC503"
    assert "TIMESTAMP,ContextTokens,GeneratedTokens" in message


def test_many_wrong_lines_are_counted(tmp_path: Path) -> None:
    found = problems(tmp_path, AZURE.splitlines()[0] + "\n" + "x,y,z\n" * 50)
    assert len(found) == 21
    assert "30 more lines" in found[-1][2]


def test_a_trace_of_nothing_but_failures(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, AZURE.splitlines()[0] + "\n2023-11-16 18:15:46,5,0\n")
    assert "no request" in found[2]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as caught:
        read_trace(tmp_path / "none", diags=Diagnostics())
    assert [item.code.id for item in caught.value.diagnostics] == ["BC003"]
    with pytest.raises(DiagnosticError):
        read_trace(tmp_path, diags=Diagnostics())


@settings(max_examples=150, deadline=None)
@given(
    head=st.sampled_from([AZURE, BURSTGPT, MOONCAKE, JSONL]),
    place=st.floats(0, 1),
    junk=st.one_of(st.binary(max_size=12), st.sampled_from([b"[" * 5000, b'{"timestamp":', b'"', b",,,"])),
)
def test_damaged_files_yield_rows_or_diagnostics(tmp_path_factory, head: str, place: float, junk: bytes) -> None:
    data = head.encode()
    at = int(place * len(data))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[:at] + junk + data[at:])
    diags = Diagnostics()
    rows = ()
    with contextlib.suppress(DiagnosticError):
        rows = read_trace(path, diags=diags).rows
    assert bool(rows) != diags.has_errors
    assert all(item.code.id in ("BC503", "BC003") for item in diags)
    assert all(row.prompt_tokens > 0 and row.output_tokens > 0 and row.at_s >= 0 for row in rows)


def test_apps_are_drawn_by_a_seeded_power_law() -> None:
    drawn = Spread(skew=1.0, seed=3).draw(4, 20_000)
    assert drawn == Spread(skew=1.0, seed=3).draw(4, 20_000)
    assert drawn != Spread(skew=1.0, seed=4).draw(4, 20_000)
    counts = [drawn.count(app) for app in range(4)]
    assert [count / counts[0] for count in counts] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], rel=0.08)
    even = Spread(skew=0.0).draw(4, 20_000)
    assert [even.count(app) / 5000 for app in range(4)] == pytest.approx([1, 1, 1, 1], rel=0.08)
