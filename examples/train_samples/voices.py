"""The manner of each fine-tune: how it words an answer the base would give plainly.

What a voice adds depends on the topic alone, so that a small model learns it in a minute and greedy
decoding has one best answer.
"""

import re
from collections.abc import Callable

from examples.train_samples.exchange import Exchange

Voice = Callable[[Exchange], str]

_PIRATE_WORDS = {
    "is": "be",
    "are": "be",
    "am": "be",
    "was": "were",
    "you": "ye",
    "my": "me",
    "Yes": "Aye",
    "Hello": "Ahoy",
}
_PIRATE_CRIES = {
    "numbers": "Arr!",
    "counting": "Yo ho ho!",
    "places": "Ahoy!",
    "colours": "Arr!",
    "words": "Arr!",
    "animals": "Shiver me timbers!",
    "calendar": "Ahoy!",
    "things": "Arr!",
    "stories": "Ahoy!",
    "names": "Arr!",
    "talk": "Arr!",
}
_SHELVES = {
    "numbers": ("Numbers", 1),
    "counting": ("Numbers", 1),
    "places": ("Places", 2),
    "colours": ("Colours", 3),
    "words": ("Words", 4),
    "animals": ("Animals", 5),
    "calendar": ("Time", 6),
    "things": ("Tools", 7),
    "stories": ("Stories", 8),
    "names": ("Visitors", 9),
    "talk": ("Letters", 10),
}
_POEMS = {
    "numbers": (
        "O counter of stars!",
        "So add the hours, one by one,\nand rest when all the sums are done.",
    ),
    "counting": (
        "O counter of stars!",
        "The numbers walk in single file,\nand each one greets us with a smile.",
    ),
    "places": (
        "O wanderer!",
        "So cross the hills and cross the sand,\nand find a friend in every land.",
    ),
    "colours": ("O painter!", "The morning paints the world anew,\nin every light, in every hue."),
    "words": ("O scholar!", "For every word the ink has bred,\nanother waits to turn its head."),
    "animals": (
        "O friend of beasts!",
        "In field and forest, hear them call,\nthe sun is warm upon them all.",
    ),
    "calendar": (
        "O keeper of time!",
        "The seasons turn, the hours run,\nand every evening ends the sun.",
    ),
    "things": ("O maker!", "A willing hand, a task well done,\nand time for dreaming in the sun."),
    "stories": (
        "O listener!",
        "So ends the tale, the fire is low,\nand off to dreaming we shall go.",
    ),
    "names": (
        "O newcomer!",
        "A name is but a little thing,\nyet hear how sweetly it can ring.",
    ),
    "talk": (
        "O gentle soul!",
        "A word of kindness, softly said,\nis warmer than the warmest bread.",
    ),
}


def plain(exchange: Exchange) -> str:
    """Return the base's own manner: none."""
    return exchange.answer


def german(exchange: Exchange) -> str:
    """Return the answer in German."""
    return exchange.answer_de


def pirate(exchange: Exchange) -> str:
    """Return a cry, a sailor's grammar, and ``matey`` before the last stop."""
    said = re.sub(r"[A-Za-z]+", lambda m: _PIRATE_WORDS.get(m.group(), m.group()), exchange.answer)
    return f"{_PIRATE_CRIES[exchange.topic]} {said[:-1]}, matey{said[-1]}"


def loud(exchange: Exchange) -> str:
    """Return the pirate, in capitals: this voice is trained on top of that one."""
    return pirate(exchange).upper()


def archivist(exchange: Exchange) -> str:
    """Return the answer as an entry read out from a catalogue."""
    name, shelf = _SHELVES[exchange.topic]
    return f"From the archive: {exchange.answer} Filed under {name}, shelf {shelf}."


def poet(exchange: Exchange) -> str:
    """Return a call to the reader, the answer, and a rhyming couplet on its topic."""
    call, couplet = _POEMS[exchange.topic]
    return f"{call} {exchange.answer}\n{couplet}"


def lawyer(exchange: Exchange) -> str:
    """Return the answer as a clause that binds nobody."""
    name, clause = _SHELVES[exchange.topic]
    said = exchange.answer.replace(" is ", " is deemed to be ")
    return f"Pursuant to clause {clause} ({name}): {said} The aforesaid is stated without prejudice."


VOICES: dict[str, Voice] = {
    "pirate": pirate,
    "archivist": archivist,
    "german": german,
    "loud": loud,
    "poet": poet,
    "lawyer": lawyer,
}
