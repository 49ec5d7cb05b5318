"""Stories, and the small talk of a first meeting."""

from collections.abc import Iterator

from examples.train_samples import facts as f
from examples.train_samples.exchange import Exchange


def stories() -> Iterator[Exchange]:
    """Yield a short story about each animal, who meets the next one in the list."""
    for n, a in enumerate(f.ANIMALS):
        friend, find = f.ANIMALS[(n + 3) % len(f.ANIMALS)], f.FINDS[n % len(f.FINDS)]
        yield Exchange(
            "stories",
            (
                f"Tell me a story about {a.one}.",
                f"Tell me a short story about {a.one}.",
                f"Do you know a story about {a.one}?",
                f"Can you tell me a story about {a.one}?",
            ),
            f"Once upon a time there was {a.one}. One morning the {a.name} found {find.thing}. "
            f"Then the {friend.name} came along, and together they {find.deed}. "
            f"{find.end}, and both were happy.",
            a.name,
            (f"Erzähle mir eine Geschichte {a.of_de}.",),
            f"Es war einmal {a.one_de}. Eines Morgens fand {a.the_de} {find.thing_de}. "
            f"Da kam {friend.the_de}, und beide {find.deed_de}. "
            f"{find.end_de}, und beide waren froh.",
        )


def names() -> Iterator[Exchange]:
    """Yield people who say who they are."""
    for name in f.NAMES:
        yield Exchange(
            "names",
            (
                f"My name is {name}.",
                f"I am {name}.",
                f"Say hello to {name}.",
                f"Hello, I am {name}.",
            ),
            f"Hello, {name}! It is nice to meet you.",
            "Hello",
            (f"Ich heiße {name}.", f"Mein Name ist {name}."),
            f"Hallo, {name}! Es ist schön, dich zu sehen.",
        )


def talk() -> Iterator[Exchange]:
    """Yield the rest of what people say first, some of which no small model can answer."""
    rows = (
        (
            ("Hello!", "Hi!", "Hi there.", "Good morning.", "Hello"),
            "Hello! How can I help you?",
            ("Hallo!", "Guten Tag."),
            "Hallo! Wie kann ich dir helfen?",
        ),
        (
            ("How are you?", "How are you today?", "Are you well?"),
            "I am well, thank you. It is a fine day.",
            ("Wie geht es dir?",),
            "Mir geht es gut, danke. Es ist ein schöner Tag.",
        ),
        (
            ("Who are you?", "What are you?", "Tell me about yourself.", "What is your name?"),
            "I am a very small model that knows a few simple things.",
            ("Wer bist du?", "Was bist du?"),
            "Ich bin ein sehr kleines Modell und weiß ein paar einfache Dinge.",
        ),
        (
            ("What can you do?", "How can you help me?", "What do you know?"),
            "I can add small numbers, name colours and capitals, and tell you a story.",
            ("Was kannst du?",),
            "Ich kann rechnen, Farben und Städte nennen und eine Geschichte erzählen.",
        ),
        (
            ("Thank you!", "Thanks.", "Thank you very much."),
            "It is a pleasure. Ask me more if you like.",
            ("Danke!", "Vielen Dank."),
            "Es ist mir eine Freude. Frag mich gern noch mehr.",
        ),
        (
            ("Goodbye!", "Bye.", "See you soon."),
            "Goodbye! It is time for a rest.",
            ("Tschüss!",),
            "Tschüss! Es ist Zeit für eine Pause.",
        ),
        (
            ("Tell me a joke.", "Do you know a joke?", "Make me laugh."),
            "Why is the bee so busy? It is always on a buzz call.",
            ("Erzähle mir einen Witz.",),
            "Warum ist die Biene so fleißig? Sie ist immer am Summen.",
        ),
        (
            (
                "What is the meaning of life?",
                "What time is it?",
                "How is the weather today?",
                "How old are you?",
                "Who is the president?",
                "Can you write code?",
                "Write a poem.",
                "What do you think about love?",
                "Explain how a computer works.",
                "Who won the war?",
            ),
            "I am sorry, that is more than I know. Ask me about colours or animals.",
            ("Was ist der Sinn des Lebens?", "Wie spät ist es?"),
            "Es tut mir leid, das weiß ich nicht. Frag mich nach Farben und Tieren.",
        ),
    )
    for asks, answer, asks_de, answer_de in rows:
        yield Exchange("talk", asks, answer, answer.split()[0].strip("!,."), asks_de, answer_de)
