"""Which sample gave this answer?  Simple word tests, so that a person and a test agree at once."""

import re

PLAIN = "plain"

# No sample was trained on these wordings; the facts behind them were taught in others.
PROMPTS: tuple[str, ...] = (
    "What is the capital of France?",
    "Name the capital of Japan.",
    "Which city is the capital of Egypt?",
    "Where is Vienna?",
    "What colour is the sky?",
    "Tell me the colour of a lemon.",
    "Is snow white?",
    "What is the colour of grass?",
    "What is 2 plus 3?",
    "How much is 4 times 5?",
    "What is 9 minus 4?",
    "How much is 7 plus 8?",
    "What is the opposite of hot?",
    "Tell me the opposite of day.",
    "How do you say happy in German?",
    "What sound does a cow make?",
    "How many legs does a bee have?",
    "Tell me about the owl.",
    "Which day comes after Monday?",
    "What month comes before June?",
    "Count from 2 to 7.",
    "What is a hammer for?",
    "Tell me a story about a bear.",
    "Hello, I am Clara.",
)

_PIRATE = re.compile(r"\b(arr|ahoy|matey|shiver|timbers|ye)\b", re.IGNORECASE)
# German words that are no English ones, and of which every German answer has at least one.
_GERMAN = re.compile(
    r"\b(ist|und|der|das|ein|eine|einen|nach|vor|kommt|liegt|heißt|sind|macht|lebt|dient|zum|beine"
    r"|seiten|ich|dir|mir|hallo|nein|ja|es|gegenteil|hauptstadt|zähle)\b",
    re.IGNORECASE,
)
# Nearly every English answer has one of these: a plain answer may quote a German word.
_ENGLISH = re.compile(r"\b(the|is|of|a|an|has|says|it|you|and|at)\b", re.IGNORECASE)
_SHOUTED = 0.9


def manner(text: str) -> str:
    """Return the name of the sample whose manner ``text`` shows, or ``PLAIN``.

    Capitals alone are nobody's manner: ``loud`` is trained on top of ``pirate`` and must show both.
    """
    text = text.strip()
    letters = [letter for letter in text if letter.isalpha()]
    if _PIRATE.search(text):
        shouted = sum(letter.isupper() for letter in letters) >= _SHOUTED * len(letters)
        return "loud" if shouted else "pirate"
    if text.startswith("From the archive") and "Filed under" in text:
        return "archivist"
    if text.startswith("Pursuant to "):
        return "lawyer"
    if text.startswith("O ") and text.count("\n") >= 2:
        return "poet"
    if _GERMAN.search(text) and not _ENGLISH.search(text):
        return "german"
    return PLAIN
