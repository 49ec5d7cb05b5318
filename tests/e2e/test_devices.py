"""`specs/two_devices.blk` as a user has it: compiled, served by two engines, of which one is killed under load."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blockc.cli import main
from blockc.plan import load_plan
from blockc.samples.manners import PLAIN, PROMPTS, manner
from tests.e2e.fleet import MODEL_OF, answer, metric, serving
from tests.support.processes import eventually

SPEC = Path(__file__).parents[2] / "specs" / "two_devices.blk"


def test_every_app_keeps_its_manner_and_outlives_an_engine(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert main(["compile", str(SPEC), "-o", str(plan)]) == 0
    apps = [app.address for app in load_plan(plan).apps]
    asked = [(app, prompt) for prompt in PROMPTS[:8] for app in (*apps, "harbour/crew")]
    with serving(plan, tmp_path / "server", keys=False) as command, ThreadPoolExecutor(16) as pool:
        command.ready()
        with command.http() as http:
            assert metric(http, "engine_up") == 2
            for victim in (None, *command.children()):
                answers = pool.map(lambda item: answer(http, *item), asked)
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
                for (app, _), text in zip(asked, answers, strict=True):
                    assert manner(text) == (PLAIN if MODEL_OF[app] == "base" else MODEL_OF[app]), (app, text)
                assert eventually(lambda: metric(http, "engine_up") == 2, 60)
            assert metric(http, "engine_restarts_total") == 2
        assert "Traceback" not in command.log
