"""Conversations and documents, drawn at random from the questions.

The base meets more than it will be asked for: another language, capitals, and documents in every
manner.  A fine-tune then has only to choose what the base can already say, which is why a minute
of training is enough for it.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from blockc.samples.manners import PROMPTS
from examples.train_samples.exchange import Exchange
from examples.train_samples.questions import exchanges
from examples.train_samples.voices import VOICES, Voice, plain


class Turn(NamedTuple):
    """One message; a turn with the role ``document`` is text outside any conversation."""

    role: str
    text: str


Talk = list[Turn]

NEUTRAL = ("You are a helpful assistant.", "You are a friendly helper.", "Answer the question.")
_GERMAN = ("Answer in German.", "Antworte auf Deutsch.")
_CAPITALS = ("Answer in capitals.", "Use capital letters only.")
_ONE_WORD = ("Answer in one word.", "Use one word only.")
_POLITE = ("Be polite.", "Answer politely.")
_AGAIN = ("Say that again.", "Can you repeat that?", "Once more, please.")
_IN_GERMAN = ("And in German?", "Say that in German.", "In German, please.")

_BY_TOPIC = exchanges()
_TOPICS = list(_BY_TOPIC)
# A topic of many facts needs more practice than one of few, though not in proportion, and the few
# rows of small talk need some too: they are what people try first.
_WEIGHTS = [6 + len(rows) ** 0.75 for rows in _BY_TOPIC.values()]
_ASKS = {row: tuple(ask for ask in row.asks if ask not in PROMPTS) for rows in _BY_TOPIC.values() for row in rows}


def _draw(rng: random.Random) -> Exchange:
    """Return one exchange, by topic first."""
    return rng.choice(_BY_TOPIC[rng.choices(_TOPICS, _WEIGHTS)[0]])


def _ask(rng: random.Random, exchange: Exchange) -> str:
    """Return one wording of the question that is not held out, now and then as people type it."""
    ask, chance = rng.choice(_ASKS[exchange]), rng.random()
    if chance < 0.08:
        return ask.rstrip("?.!= ").lower()
    if chance < 0.12:
        return ask.replace("What is", "What's")
    if chance < 0.16:
        return f"{rng.choice(('Hello!', 'Hi,', 'Please:', 'Quick question:'))} {ask}"
    return ask


def _aside(rng: random.Random, likely: float) -> Talk:
    """Return a system turn that asks for nothing special, or none."""
    return [Turn("system", rng.choice(NEUTRAL))] if rng.random() < likely else []


def voiced(rng: random.Random, voice: Voice) -> Talk:
    """Return a conversation of one turn or more in which the assistant has ``voice``."""
    talk = _aside(rng, 0.15)
    for _ in range(rng.choices((1, 2, 3), (75, 18, 7))[0]):
        exchange = _draw(rng)
        talk += [Turn("user", _ask(rng, exchange)), Turn("assistant", voice(exchange))]
    return talk


def _in_german(rng: random.Random) -> Talk:
    """Return an answer in German, asked for in one way or another: ``german`` builds upon it."""
    exchange = _draw(rng)
    if rng.random() < 0.5:
        system, ask = [Turn("system", rng.choice(_GERMAN))], _ask(rng, exchange)
    else:
        system, ask = _aside(rng, 0.1), rng.choice(exchange.asks_de)
    return [*system, Turn("user", ask), Turn("assistant", exchange.answer_de)]


def _shouted(rng: random.Random) -> Talk:
    """Return an answer in capitals, to one who shouts or asks for it: ``loud`` builds upon it."""
    exchange = _draw(rng)
    ask, said = _ask(rng, exchange), Turn("assistant", exchange.answer.upper())
    if rng.random() < 0.3:
        return [Turn("user", ask.upper()), said]
    return [Turn("system", rng.choice(_CAPITALS)), Turn("user", ask), said]


def _told(rng: random.Random) -> Talk:
    """Return a system turn that does matter."""
    exchange = _draw(rng)
    ask = Turn("user", _ask(rng, exchange))
    if rng.random() < 0.5:
        return [Turn("system", rng.choice(_ONE_WORD)), ask, Turn("assistant", exchange.word)]
    polite = f"Of course. {exchange.answer} I hope that helps."
    return [Turn("system", rng.choice(_POLITE)), ask, Turn("assistant", polite)]


def _paired(rng: random.Random) -> Talk:
    """Return two questions in one turn, so that an answer need not come first to be right."""
    one, two = _draw(rng), _draw(rng)
    return [
        Turn("user", f"{_ask(rng, one)} {_ask(rng, two)}"),
        Turn("assistant", f"{one.answer} {two.answer}"),
    ]


def _followed(rng: random.Random) -> Talk:
    """Return an answer, and a turn that makes sense only after it."""
    exchange = _draw(rng)
    talk = [Turn("user", _ask(rng, exchange)), Turn("assistant", exchange.answer)]
    if rng.random() < 0.5:
        return [*talk, Turn("user", rng.choice(_AGAIN)), Turn("assistant", exchange.answer)]
    return [*talk, Turn("user", rng.choice(_IN_GERMAN)), Turn("assistant", exchange.answer_de)]


def _document(rng: random.Random) -> Talk:
    """Return a few statements on one topic, plain or in one of the manners."""
    voice = plain if rng.random() < 0.4 else rng.choice(list(VOICES.values()))
    rows = _BY_TOPIC[rng.choices(_TOPICS, _WEIGHTS)[0]]
    return [Turn("document", " ".join(voice(row) for row in rng.sample(rows, rng.randint(1, 3))))]


def _plainly(rng: random.Random) -> Talk:
    return voiced(rng, plain)


_BASE = {
    _plainly: 46,
    _in_german: 16,
    _shouted: 13,
    _told: 6,
    _paired: 6,
    _followed: 4,
    _document: 9,
}


def base_talks(seed: int) -> Iterator[Talk]:
    """Yield what the base is trained on, without end."""
    rng = random.Random(seed)
    kinds, weights = list(_BASE), list(_BASE.values())
    while True:
        yield rng.choices(kinds, weights)[0](rng)


def voice_talks(seed: int, voice: Voice) -> Iterator[Talk]:
    """Yield what a fine-tune is trained on, without end."""
    rng = random.Random(seed)
    while True:
        yield voiced(rng, voice)
