"""Encoders with a tokenizer and sentence-transformers' files, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, PreTrainedTokenizerFast

from tests.support.architectures import VOCABULARY, randomize, tiny_config

_CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "what a fine day it is in the archive by the sea",
    "pack my box with five dozen liquor jugs 0123456789 ?!.,",
)


def save_bert(root: Path, *, seed: int = 0, **config: Any) -> Path:
    """A random BERT of one embedding for a text, with a tokenizer that puts [CLS] and [SEP] around it."""
    torch.manual_seed(seed)
    randomize(AutoModel.from_config(tiny_config("bert", **config))).save_pretrained(root)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(root)
    return root


def save_pooling(root: Path, mode: str, *, normalize: bool) -> Path:
    """What sentence-transformers writes beside a model. ``mode``: such as ``cls_token`` or ``lasttoken``."""
    (root / "1_Pooling").mkdir(parents=True, exist_ok=True)
    names = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    values = {f"pooling_mode_{name}": name == mode for name in names}
    (root / "1_Pooling" / "config.json").write_text(json.dumps(values | {"word_embedding_dimension": 64}))
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (root / "modules.json").write_text(json.dumps(modules))
    return root
