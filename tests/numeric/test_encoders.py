"""Encoders through the compiler and the executor: embeddings and scores equal transformers', many texts in a step."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from blockc.architectures import ENCODERS
from blockc.plan.verify import plan_problem
from blockc.trace import Head, trace
from blockc.verify.served import Question, encode
from blockc.verify.verify import verify
from tests.support.architectures import POSITIONS, copied_layers, randomize, tiny_config
from tests.support.deployments import deployment
from tests.support.encoders import save_pooling
from tests.support.fine_tunes import save_adapter
from tests.support.serving import compiled

# RoBERTa and its descendants count positions from the padding token's id.
_ROOM = POSITIONS - 4


def _save(model_type, root, *, classes=False):
    torch.manual_seed(0)
    loader = AutoModelForSequenceClassification if classes else AutoModel
    config = tiny_config(model_type, num_labels=3) if classes else tiny_config(model_type)
    randomize(loader.from_config(config)).save_pretrained(root)
    return root


def _reports(root, tmp_path, **settings):
    served = compiled(deployment(root, max_model_len=_ROOM, **settings), tmp_path / "zoo")
    return served, verify(served.plan, served.zoo, root=root.parent, prompts=5, output_tokens=1)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_embeddings_and_scores_equal_transformers(model_type, tmp_path):
    for classes in (False, True):
        folder = tmp_path / str(classes)
        root = _save(model_type, folder / "model", classes=classes)
        _, (report,) = _reports(root, folder)
        assert report.max_error < 2e-5, (classes, report)


@pytest.mark.parametrize(("mode", "normalize"), [("cls_token", True), ("lasttoken", False), ("mean_tokens", True)])
def test_pooling_is_what_the_files_beside_the_model_say(mode, normalize, tmp_path):
    root = _save("bert", tmp_path / "model")
    save_pooling(root, mode, normalize=normalize)
    served, (report,) = _reports(root, tmp_path)
    assert report.max_error < 2e-5
    (root / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (root / "modules.json").write_text("[]")
    (other,) = verify(served.plan, served.zoo, root=tmp_path, prompts=3, output_tokens=1)
    assert not other.passed, "another pooling must be caught"


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert"])
def test_of_a_checkpoint_with_a_masked_language_head_the_tokens_mean_is_the_embedding(model_type, tmp_path):
    torch.manual_seed(0)
    model = randomize(AutoModelForMaskedLM.from_config(tiny_config(model_type)))
    model.save_pretrained(tmp_path / "model")
    served, (report,) = _reports(tmp_path / "model", tmp_path)
    assert report.max_error < 2e-5
    (vector,) = encode(served.plan, served.zoo, [Question(app=0, tokens=(5, 6, 7), output_tokens=1)])
    with torch.inference_mode():
        hidden = model.eval().base_model(torch.tensor([[5, 6, 7]])).last_hidden_state[0]
    torch.testing.assert_close(vector, hidden.mean(0), atol=2e-5, rtol=1e-4)


def test_an_adapter_is_pooled_as_the_files_beside_it_say(tmp_path):
    root = _save("bert", tmp_path / "base")
    save_pooling(root, "mean_tokens", normalize=False)
    config = LoraConfig(r=4, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
    fine_tunes = {}
    for name, mode in {"first": "cls_token", "same": "mean_tokens", "plain": None}.items():
        adapter = save_adapter(root, tmp_path / name, config, model=AutoModel.from_pretrained(root))
        if mode is not None:
            save_pooling(adapter, mode, normalize=name == "first")
        fine_tunes[name] = ("base", adapter)
    served = compiled(deployment(root, fine_tunes, max_model_len=_ROOM), tmp_path / "zoo")
    for report in verify(served.plan, served.zoo, root=tmp_path, prompts=4, output_tokens=1):
        assert report.max_error < 2e-5, report
    paths = {app.model: served.plan.paths[served.plan.chains[app.chain].path].blocks for app in served.plan.apps}
    assert paths["base"] == paths["same"] == paths["plain"] != paths["first"]
    assert paths["base"][:-1] == paths["first"][:-1]
    texts = [Question(app=app, tokens=(5, 6, 7), output_tokens=1) for app in range(4)]
    models = [app.model for app in served.plan.apps]
    vectors = dict(zip(models, encode(served.plan, served.zoo, texts), strict=True))
    tuned = PeftModel.from_pretrained(AutoModel.from_pretrained(root), tmp_path / "first").eval()
    with torch.inference_mode():
        hidden = tuned(torch.tensor([[5, 6, 7]])).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden[0], dim=0)
    torch.testing.assert_close(vectors["first"], expected, atol=2e-5, rtol=1e-4)


def test_a_text_does_not_change_with_its_neighbours(tmp_path):
    root = _save("modernbert", tmp_path / "model")
    served = compiled(deployment(root, max_model_len=_ROOM), tmp_path / "zoo")
    generator = torch.Generator().manual_seed(3)
    texts = [
        Question(app=0, tokens=tuple(torch.randint(3, 128, (n,), generator=generator).tolist()), output_tokens=1)
        for n in (1, _ROOM, 17, 40, 2)
    ]
    for text, vector in zip(texts, encode(served.plan, served.zoo, texts), strict=True):
        (alone,) = encode(served.plan, served.zoo, [text])
        assert torch.allclose(alone, vector, atol=1e-5)


@pytest.mark.parametrize(
    ("architectures", "modules", "says"),
    [
        (["BertForQuestionAnswering"], None, "BertForQuestionAnswering"),
        (
            ["BertModel"],
            [{"type": "models.Transformer"}, {"type": "models.Pooling"}, {"type": "models.Dense"}],
            "Dense",
        ),
        (["BertModel"], [{"type": "models.Transformer"}], "pooling"),
    ],
)
def test_heads_that_are_not_understood_are_refused(architectures, modules, says, tmp_path):
    from tests.support.chains import chains_of

    root = _save("bert", tmp_path / "model")
    config = json.loads((root / "config.json").read_text()) | {"architectures": architectures}
    (root / "config.json").write_text(json.dumps(config))
    if modules is not None:
        (root / "modules.json").write_text(json.dumps(modules))
    chains, _, diags = chains_of(deployment(root, max_model_len=None), tmp_path / "zoo")
    assert not chains
    assert [item.code.id for item in diags] == ["BC205"]
    assert says in next(iter(diags)).message


def test_a_plan_that_does_not_fit_its_heads_is_found_out(tmp_path):
    served = compiled(deployment(_save("bert", tmp_path / "model"), max_model_len=_ROOM), tmp_path / "zoo")
    (chain,) = served.plan.chains
    assert plan_problem(served.plan) is None
    for change, says in (
        ({"embedding": None}, "does not say"),
        ({"embedding": chain.embedding.model_copy(update={"width": 63})}, "63"),
        ({"embedding": chain.embedding.model_copy(update={"widths": (8, 65)})}, "may be cut"),
        ({"labels": tuple("ab")}, "classes"),
    ):
        wrong = served.plan.model_copy(update={"chains": (chain.model_copy(update=change),)})
        assert says in plan_problem(wrong), change


@pytest.mark.parametrize(("model_type", "layers"), [("bert", 3), ("modernbert", 5)])
def test_copies_of_one_layer_equal_a_capture_of_all(model_type, layers):
    head = Head(kind="embedding", pooling="first", normalize=True)
    config = tiny_config(model_type, layers=layers)
    assert copied_layers(config, head)
    one, every = (trace(config, dtype="float32", head=head, every_layer=whole) for whole in (False, True))
    assert one.blocks == every.blocks
    assert one.prelude == every.prelude
    assert not one.kv_layers


def test_an_adapter_of_an_encoder_equals_peft_in_one_step_with_its_base(tmp_path):
    root = _save("bert", tmp_path / "base")
    torch.manual_seed(4)
    tuned = get_peft_model(
        AutoModel.from_pretrained(root),
        LoraConfig(
            r=4, lora_alpha=8, target_modules=r".*\.layer\..*(query|value|dense)", task_type="FEATURE_EXTRACTION"
        ),
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    tuned.save_pretrained(tmp_path / "tuned")
    served = compiled(deployment(root, {"tuned": ("base", tmp_path / "tuned")}, max_model_len=_ROOM), tmp_path / "zoo")
    for report in verify(served.plan, served.zoo, root=tmp_path, prompts=4, output_tokens=1):
        assert report.max_error < 2e-5, report
    texts = [Question(app=app, tokens=(5, 6, 7), output_tokens=1) for app in (0, 1)]
    one, other = encode(served.plan, served.zoo, texts)
    assert (one - other).abs().max() > 1e-2, "the adapter changes nothing"
