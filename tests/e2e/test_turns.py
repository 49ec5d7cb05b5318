"""More full fine-tunes than there is memory for: served by turns, with the same answers; a damaged one stops itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from blockc.cli import main
from blockc.plan import load_plan, turning_tensors
from blockc.samples import root
from blockc.samples.manners import PROMPTS, manner
from tests.e2e.fleet import Command, answer, chat, compiled_with_all_and_few, damaged, metric, serving

# Every layer of the lawyer is its own, two of six of the poet.
MODELS = ("lawyer", "lawyer", "lawyer", "poet", "poet")
LIMIT = "8MiB"

SPEC = """
base sample : hf("./base") {{ dtype = bf16  max_model_len = 512 }}
{fine_tunes}
cluster box {{ node local {{ device d0 : cpu {{ memory = 1GiB  reserve = 128MiB }} }} }}
tenant public {{ app ask {{ model = sample }} }}
tenant chamber {{
{apps}
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some full fine-tunes several times, each with matrices a little weaker than the last."""
    folder = tmp_path_factory.mktemp("full")
    shutil.copytree(root() / "base", folder / "base")
    for number, model in enumerate(MODELS):
        file = shutil.copytree(root() / model, folder / f"m{number}") / "model.safetensors"
        tensors = load_file(file)
        other = load_file(folder / "base" / "model.safetensors")
        weaker = {
            name: own * (1 - number / 64) if own.ndim > 1 and not own.equal(other[name]) else own
            for name, own in tensors.items()
        }
        save_file(weaker, file, {"format": "pt"})
    fine_tunes = "\n".join(f'finetune m{n} : sample {{ weights = "./m{n}" }}' for n in range(len(MODELS)))
    apps = "\n".join(f"  app m{n} {{ model = m{n} }}" for n in range(len(MODELS)))
    compiled_with_all_and_few(folder, SPEC.format(fine_tunes=fine_tunes, apps=apps), residency=f"blocks = {LIMIT}")
    return folder


@pytest.fixture(scope="module")
def few(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with serving(folder / "few.json", tmp_path_factory.mktemp("few"), keys=False) as command:
        yield command.ready()
        assert "Traceback" not in command.log


def asked(http: httpx.Client) -> list[str]:
    """Every app three times, and the base as often, eight at a time."""
    apps = [name for n in range(len(MODELS)) for name in (f"chamber/m{n}", "public/ask")]
    questions = [(apps[(3 * n) % len(apps)], PROMPTS[n % len(PROMPTS)]) for n in range(3 * len(apps))]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda item: answer(http, *item, max_tokens=24), questions))


def test_answers_are_those_of_memory_for_all(folder: Path, few: Command, tmp_path: Path):
    plan = load_plan(folder / "few.json")
    (own,) = plan.instances
    assert len(own.turns) == len(MODELS)
    assert own.room_bytes < plan.memory[0].blocks_bytes <= 8 << 20 < sum(turn.nbytes for turn in own.turns)
    with few.http() as http:
        found = asked(http)
        assert metric(http, "block_loads_total") >= len(MODELS)
        assert metric(http, "block_evictions_total") > 0
        assert metric(http, "residency_wait_seconds_total") > 0
        lines = http.get("/metrics").text.splitlines()
        held = [line for line in lines if "memory_measured_bytes{" in line and 'part="blocks"' in line]
        assert 0 < float(held[0].split()[-1]) <= own.room_bytes
    with serving(folder / "all.json", tmp_path, keys=False) as everyone, everyone.ready().http() as http:
        assert asked(http) == found


def test_verify_holds_them_against_transformers(folder: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["verify", str(folder / "few.json"), "--prompts", "1", "--tokens", "4"]) == 0
    assert capfd.readouterr().out.count("ok   chamber/") == len(MODELS)


def test_a_damaged_one_stops_only_itself(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    plan = load_plan(copy / "few.json")
    own = turning_tensors(plan)
    chain = plan.chains[plan.models["m1"].chain or 0]
    wanted = set().union(*(own.get(segment, frozenset()) for segment in chain.segments))
    damaged(copy / "zoo", wanted)
    with serving(copy / "few.json", tmp_path, keys=False) as command, command.ready().http() as http:
        replies = {
            app.app: http.post("/v1/chat/completions", json=chat(app.address, "Hello!", max_tokens=8))
            for app in (*plan.apps, *plan.apps)
        }
        assert {app for app, reply in replies.items() if reply.status_code != 200} == {"m1"}
        assert replies["m1"].status_code in (500, 503)
        message = replies["m1"].json()["error"]["message"]
        assert "its fine-tune could not be loaded" in message
        assert str(tmp_path) not in message
        assert "chamber/m1 cannot be served: BC903" in command.log
        assert manner(answer(http, "chamber/m2", PROMPTS[0])) == "lawyer"
