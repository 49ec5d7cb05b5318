"""The byte-level BPE, the chat template, and conversations as tokens with a mask."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples.train_samples.corpus import Talk

VOCABULARY = 2048
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
SPECIALS = (PAD, BEGIN, END, *ROLES.values())

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('This model knows the roles system, user and assistant.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def learn(talks: Iterable[Talk]) -> Tokenizer:
    """Return a tokenizer learnt from the text of ``talks``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((turn.text for talk in talks for turn in talk), trainer)
    return tokenizer


def marks(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens."""
    vocabulary = tokenizer.get_vocab()
    return {mark: vocabulary[mark] for mark in SPECIALS}


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer files as transformers reads them, the chat template among them."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    wrapped.save_pretrained(directory, save_jinja_files=False)


class Encoder:
    """Conversations as token ids, and which of them the model should learn to say."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids = cache(lambda text: tuple(tokenizer.encode(text).ids))
        self._mark = marks(tokenizer)
        self.pad = self._mark[PAD]

    def __call__(self, talk: Talk) -> tuple[list[int], list[bool]]:
        """Return ``talk`` as the chat template would lay it out, and which of it to learn."""
        ids, learn_it = [self._mark[BEGIN]], [False]
        for role, text in talk:
            if role in ROLES:
                ids.append(self._mark[ROLES[role]])
                learn_it.append(False)
            said = (*self._ids(text), self._mark[END])
            ids += said
            learn_it += [role in ("assistant", "document")] * len(said)
        return ids, learn_it
