"""Client libraries as they are published, each in a process of its own, against the compiled samples.

`make clients` installs the versions of `requirements.txt` and `package.json` and runs these; without them they skip.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.fleet import OPERATOR, Command

HERE = Path(__file__).parent
INSTALLED = Path(os.environ.get("BLOCKC_CLIENTS", HERE.parents[1] / ".clients"))
PYTHON = INSTALLED / "bin" / "python"
NODE_MODULES = INSTALLED / "node_modules"
PATIENCE_S = 400

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no client libraries in {INSTALLED.name}: `make clients`"),
]


def run(served: Command, *command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """What a client's process printed, once it has ended well."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "HTTP_PROXY", "HTTPS_PROXY") if name in os.environ}
    ended = subprocess.run(
        [str(part) for part in command],
        env={
            **inherited, "HOME": str(cwd or INSTALLED), "BLOCKC_URL": served.url, "BLOCKC_KEY": OPERATOR,
            "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables,
        },
        cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("script", ["openai_python", "litellm_client", "langchain_client"])
def test_python(served: Command, script: str, tmp_path: Path):
    assert run(served, PYTHON, HERE / "scripts" / f"{script}.py", cwd=tmp_path).strip()


@pytest.mark.skipif(not NODE_MODULES.exists(), reason="no Node packages: `make clients` needs npm")
def test_node(served: Command, tmp_path: Path):
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    script = tmp_path / "openai_node.mjs"
    script.write_bytes((HERE / "scripts" / script.name).read_bytes())
    assert "openai for node" in run(served, "node", script, cwd=tmp_path)


TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{ data_files: {{ test: {data} }} }}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [ {{ metric: acc }} ]
"""


def test_lm_eval_local_completions(served: Command, sample: Path, tmp_path: Path):
    """A task of one file: the log probabilities of the right answers are the highest."""
    places = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid"}
    lines = [
        {
            "question": f"<|user|>What is the capital of {country}?</s><|assistant|>",
            "choices": [f"The capital of {country} is {city}." for city in places.values()],
            "answer": list(places).index(country),
        }
        for country in places
    ]
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "capitals.yaml").write_text(TASK.format(data=tmp_path / "capitals.jsonl"))
    arguments = (
        f"model=public/ask,base_url={served.url}/v1/completions,num_concurrent=2,max_retries=1,"
        f"tokenizer_backend=huggingface,tokenizer={sample},max_length=512"
    )
    run(
        served, PYTHON, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments,
        "--tasks", "capitals", "--include_path", tmp_path, "--output_path", tmp_path / "out",
        cwd=tmp_path, OPENAI_API_KEY=OPERATOR, HF_DATASETS_OFFLINE="1",
    )  # fmt: skip
    (found,) = (tmp_path / "out").rglob("results_*.json")
    result = json.loads(found.read_text())["results"]["capitals"]
    assert result["acc,none"] >= 0.75, result


def test_guidellm(served: Command, sample: Path, tmp_path: Path):
    report = tmp_path / "report.json"
    run(
        served, PYTHON, "-m", "guidellm", "run", "--disable-console",
        "--backend", f"kind=openai_http,target={served.url},model=berlin/chat,api_key={OPERATOR}",
        "--tokenizer", f"kind=huggingface_auto,model={sample}",
        "--data", "kind=synthetic_text,prompt_tokens=48,output_tokens=8",
        "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=4",
        "--output", f"kind=json,path={report}", cwd=tmp_path,
    )  # fmt: skip
    totals = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (4, 0), totals
