"""The small world the sample models know, in English and in German.

A model of under three million parameters holds some hundreds of facts, so the world is small and
each fact is a row here.  German stands beside English because one fine-tune answers in German only.
"""

from typing import NamedTuple


def with_article(noun: str) -> str:
    """Return ``noun`` with the English indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


class Country(NamedTuple):
    """A country and its capital."""

    name: str
    capital: str
    name_de: str
    capital_de: str


class Thing(NamedTuple):
    """Something with one colour everybody agrees on, named as a sentence would name it."""

    name: str
    colour: str
    name_de: str


class Animal(NamedTuple):
    """An animal; ``article`` is the German definite one, from which the indefinite follows."""

    name: str
    sound: str
    young: str
    home: str
    legs: int
    article: str
    name_de: str
    sound_de: str
    young_de: str
    home_de: str

    @property
    def one(self) -> str:
        """Return the animal with the English indefinite article."""
        return with_article(self.name)

    @property
    def one_de(self) -> str:
        """Return the animal with the German indefinite article."""
        return f"{'eine' if self.article == 'die' else 'ein'} {self.name_de}"

    @property
    def the_de(self) -> str:
        """Return the animal with the German definite article."""
        return f"{self.article} {self.name_de}"

    @property
    def of_de(self) -> str:
        """Return the animal as German names it after ``von``; two of them decline."""
        of = "von der" if self.article == "die" else "vom"
        return f"{of} {self.name_de}" + {"Löwe": "n", "Bär": "en"}.get(self.name_de, "")


class Tool(NamedTuple):
    """A tool and what it is for."""

    name: str
    use: str
    name_de: str
    use_de: str


class Find(NamedTuple):
    """What somebody in a story finds, and what comes of it."""

    thing: str
    deed: str
    end: str
    thing_de: str
    deed_de: str
    end_de: str


COUNTRIES = [
    Country(*row.split("/"))
    for row in """\
France/Paris/Frankreich/Paris
Germany/Berlin/Deutschland/Berlin
Italy/Rome/Italien/Rom
Spain/Madrid/Spanien/Madrid
Portugal/Lisbon/Portugal/Lissabon
Austria/Vienna/Österreich/Wien
Poland/Warsaw/Polen/Warschau
Greece/Athens/Griechenland/Athen
Ireland/Dublin/Irland/Dublin
England/London/England/London
Norway/Oslo/Norwegen/Oslo
Sweden/Stockholm/Schweden/Stockholm
Denmark/Copenhagen/Dänemark/Kopenhagen
Finland/Helsinki/Finnland/Helsinki
Hungary/Budapest/Ungarn/Budapest
Belgium/Brussels/Belgien/Brüssel
Japan/Tokyo/Japan/Tokio
China/Beijing/China/Peking
Egypt/Cairo/Ägypten/Kairo
Kenya/Nairobi/Kenia/Nairobi
Canada/Ottawa/Kanada/Ottawa
Peru/Lima/Peru/Lima
Scotland/Edinburgh/Schottland/Edinburgh
Croatia/Zagreb/Kroatien/Zagreb
Bulgaria/Sofia/Bulgarien/Sofia
Romania/Bucharest/Rumänien/Bukarest
Russia/Moscow/Russland/Moskau
India/New Delhi/Indien/Neu-Delhi
Thailand/Bangkok/Thailand/Bangkok
Vietnam/Hanoi/Vietnam/Hanoi
Morocco/Rabat/Marokko/Rabat
Brazil/Brasilia/Brasilien/Brasilia
Chile/Santiago/Chile/Santiago
Mexico/Mexico City/Mexiko/Mexiko-Stadt
Cuba/Havana/Kuba/Havanna
Australia/Canberra/Australien/Canberra""".splitlines()
]

COLOURS = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "white": "weiß",
    "black": "schwarz",
    "orange": "orange",
    "brown": "braun",
    "grey": "grau",
    "pink": "rosa",
}

THINGS = [
    Thing(*row.split("/"))
    for row in """\
grass/green/das Gras
a leaf/green/ein Blatt
a frog/green/ein Frosch
the sky/blue/der Himmel
the sea/blue/das Meer
snow/white/der Schnee
milk/white/die Milch
a swan/white/ein Schwan
coal/black/die Kohle
the night/black/die Nacht
a raven/black/ein Rabe
a banana/yellow/eine Banane
a lemon/yellow/eine Zitrone
the sun/yellow/die Sonne
butter/yellow/die Butter
a tomato/red/eine Tomate
blood/red/das Blut
a cherry/red/eine Kirsche
fire/red/das Feuer
a carrot/orange/eine Karotte
a pumpkin/orange/ein Kürbis
chocolate/brown/die Schokolade
wood/brown/das Holz
an elephant/grey/ein Elefant
ash/grey/die Asche
a pig/pink/ein Schwein""".splitlines()
]

OPPOSITES: list[tuple[str, str, str, str]] = [
    (a, b, c, d)
    for a, b, c, d in (
        row.split("/")
        for row in """\
hot/cold/heiß/kalt
big/small/groß/klein
long/short/lang/kurz
fast/slow/schnell/langsam
old/young/alt/jung
happy/sad/froh/traurig
day/night/Tag/Nacht
open/closed/offen/geschlossen
light/dark/hell/dunkel
hard/soft/hart/weich
wet/dry/nass/trocken
full/empty/voll/leer
up/down/oben/unten
left/right/links/rechts
rich/poor/reich/arm
strong/weak/stark/schwach
loud/quiet/laut/leise
good/bad/gut/schlecht
sweet/sour/süß/sauer
near/far/nah/fern""".splitlines()
    )
]


def _row(text: str) -> list[str]:
    return text.split("/")


def _animal(row: str) -> Animal:
    name, sound, young, home, legs, article, *german = row.split("/")
    return Animal(name, sound, young, home, int(legs), article, *german)


ANIMALS = [
    _animal(row)
    for row in """\
dog/woof/puppy/in a kennel/4/der/Hund/wuff/Welpe/in einer Hütte
cat/meow/kitten/in a house/4/die/Katze/miau/Kätzchen/in einem Haus
cow/moo/calf/in a barn/4/die/Kuh/muh/Kalb/in einem Stall
horse/neigh/foal/in a stable/4/das/Pferd/wieher/Fohlen/auf einer Koppel
sheep/baa/lamb/on a meadow/4/das/Schaf/mäh/Lamm/auf einer Wiese
duck/quack/duckling/on a pond/2/die/Ente/quak/Küken/auf einem Teich
lion/roar/cub/in Africa/4/der/Löwe/roar/Löwenjunges/in Afrika
owl/hoot/owlet/in a tree/2/die/Eule/uhu/Käuzchen/in einem Baum
bee/buzz/larva/in a hive/6/die/Biene/summ/Larve/in einem Stock
wolf/howl/pup/in the forest/4/der/Wolf/huu/Welpe/im Wald
bear/growl/cub/in a cave/4/der/Bär/brumm/Bärenjunges/in einer Höhle
mouse/squeak/pup/in a hole/4/die/Maus/piep/Mäuschen/in einem Loch
goat/bleat/kid/on a mountain/4/die/Ziege/meck/Zicklein/auf einem Berg
crow/caw/chick/in a nest/2/die/Krähe/kräh/Küken/in einem Nest""".splitlines()
]

TOOLS = [
    Tool(*row.split("/"))
    for row in """\
a knife/cutting bread/ein Messer/Schneiden
a spoon/eating soup/ein Löffel/Essen
a pen/writing letters/ein Stift/Schreiben
a bed/sleeping/ein Bett/Schlafen
a broom/sweeping the floor/ein Besen/Fegen
a hammer/driving nails/ein Hammer/Hämmern
a boat/crossing the water/ein Boot/Rudern
a lamp/giving light/eine Lampe/Leuchten
a brush/painting/ein Pinsel/Malen
a needle/sewing/eine Nadel/Nähen""".splitlines()
]

SHAPES = [
    ("triangle", 3, "ein Dreieck"),
    ("square", 4, "ein Quadrat"),
    ("hexagon", 6, "ein Sechseck"),
]

DAYS = _row("Monday/Tuesday/Wednesday/Thursday/Friday/Saturday/Sunday")
DAYS_DE = _row("Montag/Dienstag/Mittwoch/Donnerstag/Freitag/Samstag/Sonntag")
MONTHS = _row("January/February/March/April/May/June/July/August/September/October/November/December")
MONTHS_DE = _row("Januar/Februar/März/April/Mai/Juni/Juli/August/September/Oktober/November/Dezember")
NAMES = _row(
    "Anna/Ben/Clara/David/Emma/Felix/Greta/Hugo/Ida/Jonas/Kira/Leo/Mia/Noah/Olga/Paul/Rosa/Sam"
    "/Tessa/Uma/Vera/Will/Yara/Zoe"
)

FINDS = [
    Find(*row.split("/"))
    for row in """\
a golden key/opened a small door/Behind it was a garden full of flowers/einen goldenen Schlüssel/\
öffneten eine kleine Tür/Dahinter lag ein Garten voller Blumen
an old map/walked over the hills/At the end was a chest full of apples/eine alte Karte/\
gingen über die Hügel/Am Ende stand eine Kiste voller Äpfel
a small boat/crossed the wide lake/On the island was a warm fire/ein kleines Boot/\
fuhren über den See/Auf der Insel brannte ein warmes Feuer
a lost star/climbed the highest tree/From there the star flew home/einen verlorenen Stern/\
stiegen auf den höchsten Baum/Von dort flog der Stern nach Hause""".replace("\\\n", "").splitlines()
]
