"""Questions about numbers and the calendar."""

from collections.abc import Iterator
from itertools import product

from examples.train_samples import facts as f
from examples.train_samples.exchange import Exchange, first_up


def numbers() -> Iterator[Exchange]:
    """Yield sums, differences and products."""
    signs = [
        ("plus", "+", [(a, b, a + b) for a, b in product(range(11), range(11))]),
        ("minus", "-", [(a, b, a - b) for a, b in product(range(13), range(11)) if a >= b]),
        ("times", "*", [(a, b, a * b) for a, b in product(range(1, 11), range(1, 11))]),
    ]
    for name, sign, rows in signs:
        name_de = "mal" if name == "times" else name
        for a, b, c in rows:
            yield Exchange(
                "numbers",
                (
                    f"What is {a} {name} {b}?",
                    f"How much is {a} {name} {b}?",
                    f"{a} {sign} {b} = ?",
                    f"What is {a}{sign}{b}?",
                    f"Can you tell me what {a} {name} {b} is?",
                ),
                f"{a} {name} {b} is {c}.",
                str(c),
                (f"Was ist {a} {name_de} {b}?", f"Wie viel ist {a} {name_de} {b}?"),
                f"{a} {name_de} {b} ist {c}.",
            )


def counting() -> Iterator[Exchange]:
    """Yield counts from one number to another."""
    for start, length in product(range(1, 10), range(3, 9)):
        end = start + length - 1
        row = ", ".join(str(number) for number in range(start, end + 1))
        yield Exchange(
            "counting",
            (
                f"Count from {start} to {end}.",
                f"Please count from {start} to {end}.",
                f"Can you count from {start} to {end}?",
            ),
            f"Here we go: {row}.",
            str(end),
            (f"Zähle von {start} bis {end}.", f"Kannst du von {start} bis {end} zählen?"),
            f"Ich zähle: {row}.",
        )


def calendar() -> Iterator[Exchange]:
    """Yield what comes before and after each day and month."""
    kinds = [
        ("day", "Welcher Tag", f.DAYS, f.DAYS_DE),
        ("month", "Welcher Monat", f.MONTHS, f.MONTHS_DE),
    ]
    for kind, which_de, names, names_de in kinds:
        for n, (name, name_de) in enumerate(zip(names, names_de, strict=True)):
            for side, side_de, other in (("after", "nach", n + 1), ("before", "vor", n - 1)):
                there = other % len(names)
                yield Exchange(
                    "calendar",
                    (
                        f"Which {kind} comes {side} {name}?",
                        f"What {kind} comes {side} {name}?",
                        f"What comes {side} {name}?",
                        f"What is the {kind} {side} {name}?",
                    ),
                    f"The {kind} {side} {name} is {names[there]}.",
                    names[there],
                    (f"{which_de} kommt {side_de} {name_de}?", f"Was kommt {side_de} {name_de}?"),
                    f"{first_up(side_de)} {name_de} kommt {names_de[there]}.",
                )
