"""Two apps of one base, one with tokens of its own, in the same batches: each speaks its own vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from blockc.cli import main
from tests.e2e.fleet import serving
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model

BASE, ADDED = 128, 12
SPEC = """
base tiny : hf("./base") { dtype = float32  max_model_len = 512 }
finetune worded : tiny { weights = "./worded" }
cluster box { node local { device d0 : cpu { memory = 1GiB  reserve = 128MiB } } }
tenant acme { app plain { model = tiny } }
tenant initech { app worded { model = worded } }
"""


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("vocabulary")
    base = save_model("llama", root / "base")
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(BASE)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    tokenizer.save_pretrained(base)
    assert tokenizer.add_tokens([f"<new{index}>" for index in range(ADDED)]) == ADDED
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    tokenizer.save_pretrained(save_adapter(base, root / "worded", config, vocabulary=len(tokenizer)))
    (root / "fleet.blk").write_text(SPEC)
    assert main(["compile", str(root / "fleet.blk"), "-o", str(root / "plan.json")]) == 0
    with serving(root / "plan.json", root / "server", keys=False) as command:
        with command.ready().http(None) as client:
            yield client
        assert "Traceback" not in command.log


def _completion(http: httpx.Client, app: str, prompt: str | list[int], **fields: Any) -> httpx.Response:
    body = {"model": app, "prompt": prompt, "max_tokens": 8, "return_token_ids": True, "ignore_eos": True, **fields}
    return http.post("/v1/completions", json=body)


def _choice(http: httpx.Client, app: str, prompt: str | list[int], **fields: Any) -> dict[str, Any]:
    reply = _completion(http, app, prompt, **fields)
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    assert isinstance(choice, dict)
    return choice


def test_each_text_is_read_in_its_own_words(http: httpx.Client):
    text = "w5 <new3> w7"
    assert _choice(http, "initech/worded", text)["prompt_token_ids"] == [5, BASE + 3, 7]
    assert _choice(http, "acme/plain", text)["prompt_token_ids"] == [5, 0, 7]


def test_ids_end_with_the_vocabulary(http: httpx.Client):
    assert _choice(http, "initech/worded", [5, BASE + ADDED - 1])["prompt_token_ids"] == [5, BASE + ADDED - 1]
    for app, size in (("initech/worded", BASE + ADDED), ("acme/plain", BASE)):
        reply = _completion(http, app, [5, size])
        assert reply.status_code == 400
        assert f"token ids run from 0 to {size - 1}" in reply.text


def test_no_draw_leaves_its_own_vocabulary(http: httpx.Client):
    """Hot draws of both apps in the same steps; words of the added tokens come out as text."""
    asked = [(app, seed) for seed in range(6) for app in ("acme/plain", "initech/worded")]

    def ask(one: tuple[str, int]) -> dict[str, Any]:
        app, seed = one
        return _choice(http, app, [5, 6, 7], max_tokens=200, temperature=2, seed=seed)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = dict(zip(asked, pool.map(ask, asked), strict=True))
    plain = [token for (app, _), own in answers.items() if app == "acme/plain" for token in own["token_ids"]]
    worded = [token for (app, _), own in answers.items() if app != "acme/plain" for token in own["token_ids"]]
    assert len(plain) == len(worded) == 6 * 200
    assert max(plain) < BASE
    assert BASE <= max(worded) < BASE + ADDED
    for (app, _), own in answers.items():
        assert ("<new" in own["text"]) == (max(own["token_ids"]) >= BASE) == (app != "acme/plain")
