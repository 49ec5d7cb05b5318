"""Defaults come from the model's generation config; requests override them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockc.plan import load_plan
from blockc.zoo import Zoo
from blockc_runtime.request import Request, Steering
from blockc_runtime.server.auth import Caller
from blockc_runtime.server.catalogue import Catalogue, ServedApp, load_catalogue
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.generation import chat_generation, completion_generation
from blockc_runtime.server.schemas import ChatBody, CompletionBody, validate
from tests.runtime.server import world

EVERYBODY = Caller(tenant=None)


def load(root: Path, files: dict[str, bytes]) -> tuple[Catalogue, list[str]]:
    plan, zoo = world.build(root, files)
    lines: list[str] = []
    return load_catalogue(load_plan(plan), Zoo(zoo), lines.append), lines


def app_with(root: Path, **generation: object) -> ServedApp:
    catalogue, _ = load(root, world.assets(**generation))
    app = catalogue.find("acme/chat", EVERYBODY)
    assert app is not None
    return app


def completion(app: ServedApp, **fields: Any) -> Request:
    body = validate(CompletionBody, {"model": app.model, "prompt": [5, 6], **fields})
    return asyncio.run(completion_generation(body, app)).requests[0]


def chat(app: ServedApp, **fields: Any) -> Request:
    messages = [{"role": "user", "content": "hi"}]
    body = validate(ChatBody, {"model": app.model, "messages": messages, **fields})
    return asyncio.run(chat_generation(body, app)).requests[0]


def test_without_a_generation_config_openais_defaults_hold(tmp_path: Path):
    app = app_with(tmp_path)
    request = completion(app)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert (request.max_tokens, request.stop_token_ids, sampling.logprobs) == (16, (1,), None)
    assert chat(app).max_tokens > 1900


def test_the_generation_config_gives_defaults(tmp_path: Path):
    app = app_with(tmp_path, temperature=0.6, top_p=0.9, top_k=20, max_new_tokens=99, do_sample=False)
    for request in (completion(app), chat(app)):
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20)
    assert chat(app).max_tokens == 99
    assert completion(app).max_tokens == 16
    asked = completion(app, temperature=0, top_p=1, top_k=-1, max_tokens=200)
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (0, 1, 0)
    assert asked.max_tokens == 200


@pytest.mark.parametrize("eos", [2, [2, 3, 10**6, -1, "x"]])
def test_stop_tokens_are_the_chains_and_the_configs(tmp_path: Path, eos: object):
    app = app_with(tmp_path, eos_token_id=eos)
    expected = (1, 2) if eos == 2 else (1, 2, 3)
    assert completion(app).stop_token_ids == expected
    assert completion(app, stop_token_ids=[7]).stop_token_ids == (*expected, 7)
    assert completion(app, ignore_eos=True, stop_token_ids=[7]).stop_token_ids == (7,)


def test_what_a_generation_config_asks_for_in_vain_is_said(tmp_path: Path):
    _, lines = load(tmp_path, world.assets(suppress_tokens=[3], bad_words_ids=[]))
    assert len(lines) == len(world.APPS)
    assert all("BC804" in line and "suppress_tokens" in line for line in lines)


@pytest.mark.parametrize("config", [b"", b"[]", b'{"temperature": true, "top_k": "x"}'])
def test_a_generation_config_without_sense_is_none(tmp_path: Path, config: bytes):
    files = {**world.assets(), "generation_config.json": config}
    catalogue, _ = load(tmp_path, files)
    app = catalogue.find("acme/chat", EVERYBODY)
    assert app is not None
    assert (app.defaults.temperature, app.defaults.top_k) == (1.0, 0)


def test_equal_assets_are_loaded_once(tmp_path: Path):
    catalogue, _ = load(tmp_path, world.assets())
    assert len({id(app.text) for app in catalogue.visible(EVERYBODY)}) == 1


def test_a_seed_is_kept_and_a_missing_one_drawn(tmp_path: Path):
    app = app_with(tmp_path)
    assert completion(app, seed=7).sampling.seed == 7
    assert completion(app, seed=-1).sampling.seed == 2**64 - 1
    assert completion(app).sampling.seed != completion(app).sampling.seed


def all_of(app: ServedApp, **fields: Any) -> tuple[Request, ...]:
    body = validate(CompletionBody, {"model": app.model, "prompt": [[5, 6], [7]], **fields})
    return asyncio.run(completion_generation(body, app)).requests


def test_the_answers_to_a_prompt_have_seeds_of_their_own_and_the_first_has_the_clients(tmp_path: Path):
    app = app_with(tmp_path)
    seeds = [request.sampling.seed for request in all_of(app, seed=7, n=3)]
    assert seeds[0] == seeds[3] == 7
    assert len(set(seeds)) == 3
    assert seeds == [request.sampling.seed for request in all_of(app, seed=7, n=3)]
    assert len({request.sampling.seed for request in all_of(app, n=3)}) == 6


def test_what_asks_for_no_steering_has_none(tmp_path: Path):
    app = app_with(tmp_path)
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1, "logit_bias": {}, "min_p": 0.3}
    assert completion(app, **neutral).sampling.steering is None
    assert completion(app, min_p=0.3).sampling.min_p == 0.3


def test_steering(tmp_path: Path):
    app = app_with(tmp_path, repetition_penalty=1.5, min_p=0.1)
    steering = completion(app, logit_bias={"9": 5, "3": -100}, min_tokens=2, presence_penalty=1).sampling.steering
    assert steering == Steering(
        presence_penalty=1.0, repetition_penalty=1.5, logit_bias=((3, -100.0), (9, 5.0)), min_tokens=2,
        stop_token_ids=(1,),
    )  # fmt: skip
    assert completion(app, repetition_penalty=1.0).sampling.steering is None
    assert completion(app).sampling.min_p == 0.1


def test_logprobs(tmp_path: Path):
    app = app_with(tmp_path)
    assert completion(app, logprobs=0).sampling.logprobs == 0
    assert chat(app, logprobs=True, top_logprobs=5).sampling.logprobs == 5
    assert chat(app, logprobs=True).sampling.logprobs == 0
    assert chat(app, logprobs=False).sampling.logprobs is None


def test_a_model_without_a_template_has_no_chat(tmp_path: Path):
    files = {k: v for k, v in world.assets().items() if k != "chat_template.jinja"}
    catalogue, _ = load(tmp_path, files)
    app = catalogue.find("acme/chat", EVERYBODY)
    assert app is not None
    with pytest.raises(Exception, match="no chat template"):
        chat(app)


def test_long_texts_are_tokenised_beside_the_loop(tmp_path: Path):
    app = app_with(tmp_path)
    text = "the fox " * 700
    assert completion(app, prompt=text, max_tokens=1).prompt == tuple(world.tokenizer().encode(text).ids)


def test_virtual_tokens_take_room_and_no_client_sees_them(tmp_path: Path):
    path, zoo = world.build(tmp_path, world.assets())
    plan = load_plan(path)
    virtual = tuple(range(1 << 32, (1 << 32) + 48))
    chains = tuple(chain.model_copy(update={"virtual_tokens": virtual}) for chain in plan.chains)
    catalogue = load_catalogue(plan.model_copy(update={"chains": chains}), Zoo(zoo), lambda line: None)
    app = catalogue.find("acme/chat", EVERYBODY)
    assert app is not None
    assert app.max_model_len == world.MAX_MODEL_LEN - 48
    assert completion(app).prompt == (5, 6)
    assert completion(app, max_tokens=app.max_model_len - 2).max_tokens == app.max_model_len - 2
    with pytest.raises(ApiError, match=f"this model takes {app.max_model_len} tokens"):
        completion(app, max_tokens=app.max_model_len - 1)
    with pytest.raises(ApiError, match="token ids run from 0"):
        completion(app, prompt=[virtual[0]])


def test_order_and_sessions_reach_the_engine(tmp_path: Path):
    app = app_with(tmp_path)
    for ask in (completion, chat):
        request = ask(app, priority=-2, session_id="trip", session_ttl=90)
        assert (request.priority, request.session, request.keep_s) == (-2, "trip", 90.0)
        plain = ask(app)
        assert (plain.priority, plain.session) == (0, "")
        of_app = replace(app, priority=3)
        assert (ask(of_app).priority, ask(of_app, priority=0).priority) == (3, 0)
    for fields in ({"session_id": ""}, {"session_id": "s", "session_ttl": 601}, {"priority": 2**31}):
        with pytest.raises(ApiError):
            completion(app, **fields)
