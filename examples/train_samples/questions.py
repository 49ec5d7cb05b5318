"""The world of ``facts`` as questions with their answers.

An answer has one wording per kind of question, so that a small model learns it; a question has
several, so that a newcomer's own words are likely to be understood.
"""

from examples.train_samples import counted, tales, world
from examples.train_samples.exchange import Exchange

_MAKERS = (
    counted.numbers,
    counted.counting,
    world.places,
    world.colours,
    world.words,
    world.animals,
    counted.calendar,
    world.things,
    tales.stories,
    tales.names,
    tales.talk,
)


def exchanges() -> dict[str, list[Exchange]]:
    """Return everything there is to ask, by topic."""
    found: dict[str, list[Exchange]] = {}
    for make in _MAKERS:
        for exchange in make():
            found.setdefault(exchange.topic, []).append(exchange)
    return found
