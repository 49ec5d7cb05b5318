"""What a sample can be asked, as one value."""

from typing import NamedTuple


class Exchange(NamedTuple):
    """One thing to ask: all its wordings, its answer, and the same in German."""

    topic: str
    asks: tuple[str, ...]
    answer: str
    word: str
    asks_de: tuple[str, ...]
    answer_de: str


def first_up(text: str) -> str:
    """Return ``text`` with its first letter raised and the rest left alone."""
    return text[:1].upper() + text[1:]
