"""Questions about countries, colours, words, animals and things."""

from collections.abc import Iterator

from examples.train_samples import facts as f
from examples.train_samples.exchange import Exchange, first_up


def places() -> Iterator[Exchange]:
    """Yield capitals, asked both ways round."""
    for c in f.COUNTRIES:
        yield Exchange(
            "places",
            (
                f"What is the capital of {c.name}?",
                f"Which city is the capital of {c.name}?",
                f"Name the capital of {c.name}.",
                f"Do you know the capital of {c.name}?",
            ),
            f"The capital of {c.name} is {c.capital}.",
            c.capital,
            (
                f"Was ist die Hauptstadt von {c.name_de}?",
                f"Wie heißt die Hauptstadt von {c.name_de}?",
            ),
            f"Die Hauptstadt von {c.name_de} ist {c.capital_de}.",
        )
        yield Exchange(
            "places",
            (f"Where is {c.capital}?", f"In which country is {c.capital}?"),
            f"{c.capital} is a city in {c.name}.",
            c.name,
            (f"Wo liegt {c.capital_de}?", f"In welchem Land liegt {c.capital_de}?"),
            f"{c.capital_de} ist eine Stadt in {c.name_de}.",
        )


def colours() -> Iterator[Exchange]:
    """Yield colours of things, and whether a thing has a colour."""
    colours = list(f.COLOURS)
    for n, t in enumerate(f.THINGS):
        answer, answer_de = f"{t.name} is {t.colour}.", f"{t.name_de} ist {f.COLOURS[t.colour]}."
        yield Exchange(
            "colours",
            (
                f"What colour is {t.name}?",
                f"Which colour is {t.name}?",
                f"Tell me the colour of {t.name}.",
                f"What is the colour of {t.name}?",
                f"What color is {t.name}?",
            ),
            first_up(answer),
            t.colour,
            (f"Welche Farbe hat {t.name_de}?", f"Was für eine Farbe hat {t.name_de}?"),
            first_up(answer_de),
        )
        false = next(colour for colour in colours[n % 7 :] if colour != t.colour)
        for other in (t.colour, false):
            yes = other == t.colour
            yield Exchange(
                "colours",
                (f"Is {t.name} {other}?", f"Is it true that {t.name} is {other}?"),
                f"{'Yes' if yes else 'No'}, {answer}",
                "Yes" if yes else "No",
                (f"Ist {t.name_de} {f.COLOURS[other]}?",),
                f"{'Ja' if yes else 'Nein'}, {answer_de}",
            )


def words() -> Iterator[Exchange]:
    """Yield opposites, and the German words for them."""
    for a, b, a_de, b_de in f.OPPOSITES:
        for x, y, x_de, y_de in ((a, b, a_de, b_de), (b, a, b_de, a_de)):
            yield Exchange(
                "words",
                (
                    f"What is the opposite of {x}?",
                    f"What is the contrary of {x}?",
                    f"Tell me the opposite of {x}.",
                    f"Which word is the opposite of {x}?",
                ),
                f"The opposite of {x} is {y}.",
                y,
                (f"Was ist das Gegenteil von {x_de}?", f"Nenne das Gegenteil von {x_de}."),
                f"Das Gegenteil von {x_de} ist {y_de}.",
            )
            yield Exchange(
                "words",
                (f"What is the German word for {x}?", f"How do you say {x} in German?"),
                f"The German word for {x} is {x_de}.",
                x_de,
                (f"Was ist das deutsche Wort für {x}?", f"Wie sagt man {x} auf Deutsch?"),
                f"Das deutsche Wort für {x} ist {x_de}.",
            )


def animals() -> Iterator[Exchange]:
    """Yield sounds, legs, young ones and homes of animals, and all of it at once."""
    for a in f.ANIMALS:
        rows = (
            (
                (
                    f"What sound does {a.one} make?",
                    f"What does {a.one} say?",
                    f"Which sound does the {a.name} make?",
                ),
                f"{a.one} says {a.sound}.",
                a.sound,
                (f"Was macht {a.one_de}?", f"Wie macht {a.the_de}?"),
                f"{a.one_de} macht {a.sound_de}.",
            ),
            (
                (f"How many legs does {a.one} have?", f"How many legs has {a.one}?"),
                f"{a.one} has {a.legs} legs.",
                str(a.legs),
                (f"Wie viele Beine hat {a.one_de}?",),
                f"{a.one_de} hat {a.legs} Beine.",
            ),
            (
                (f"What is a young {a.name} called?", f"What is the name for a young {a.name}?"),
                f"A young {a.name} is called {f.with_article(a.young)}.",
                a.young,
                (f"Wie heißt das Junge {a.of_de}?",),
                f"Das Junge {a.of_de} heißt {a.young_de}.",
            ),
            (
                (
                    f"Where does {a.one} live?",
                    f"Where does the {a.name} live?",
                    f"Where can I find {a.one}?",
                ),
                f"{a.one} lives {a.home}.",
                a.home,
                (f"Wo lebt {a.one_de}?", f"Wo lebt {a.the_de}?"),
                f"{a.one_de} lebt {a.home_de}.",
            ),
            (
                (
                    f"Tell me about the {a.name}.",
                    f"What do you know about {a.one}?",
                    f"Describe {a.one}.",
                ),
                f"{a.one} lives {a.home}. It has {a.legs} legs and it says {a.sound}. "
                f"A young {a.name} is called {f.with_article(a.young)}.",
                a.sound,
                (f"Erzähle mir etwas {a.of_de}.",),
                f"{a.one_de} lebt {a.home_de}, hat {a.legs} Beine und macht {a.sound_de}. "
                f"Das Junge {a.of_de} heißt {a.young_de}.",
            ),
        )
        for asks, answer, word, asks_de, answer_de in rows:
            yield Exchange("animals", asks, first_up(answer), word, asks_de, first_up(answer_de))


def things() -> Iterator[Exchange]:
    """Yield what tools are for, and how many sides shapes have."""
    for t in f.TOOLS:
        yield Exchange(
            "things",
            (
                f"What is {t.name} for?",
                f"What do people use {t.name} for?",
                f"Why do I need {t.name}?",
            ),
            f"{first_up(t.name)} is for {t.use}.",
            t.use,
            (f"Wozu dient {t.name_de}?", f"Wofür braucht man {t.name_de}?"),
            f"{first_up(t.name_de)} dient zum {t.use_de}.",
        )
    for name, sides, name_de in f.SHAPES:
        yield Exchange(
            "things",
            (f"How many sides does a {name} have?", f"How many sides has a {name}?"),
            f"A {name} has {sides} sides.",
            str(sides),
            (f"Wie viele Seiten hat {name_de}?",),
            f"{first_up(name_de)} hat {sides} Seiten.",
        )
