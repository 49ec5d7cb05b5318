"""A small trained model and six fine-tunes of it, for the demo, the examples and the tests."""

from pathlib import Path


def root() -> Path:
    """Return the directory of the samples; ``README.md`` there tells what each one is."""
    return Path(__file__).resolve().parent
