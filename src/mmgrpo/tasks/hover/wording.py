"""Words and sentences of the fictional encyclopedia. Names are invented; no other data of the project uses them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """How a page of one kind names a page of another."""

    source: str
    target: str
    sentences: tuple[str, ...]  # of the source's page
    phrases: tuple[str, ...]  # of a claim, around the phrase for the source


RELATIONS = (
    Relation(
        "work",
        "person",
        (
            "The {role} of {name} was {linked} in later years.",
            "The {role} {linked} worked on {name} for three winters.",
            "{name} made the {role} {linked} known far beyond the province.",
        ),
        ("the {role} of {}",),
    ),
    Relation(
        "person",
        "person",
        (
            "The teacher of {name} was {linked}, a strict and generous guide.",
            "All that {name} knew came from a teacher called {linked}.",
            "For years {linked} was the only teacher of {name}.",
        ),
        ("the teacher of {}", "the person who taught {}"),
    ),
    Relation(
        "person",
        "town",
        (
            "The birthplace of {name} was {linked}, where the family kept a shop.",
            "Born in {linked}, {name} left home at sixteen with one suitcase.",
            "{name} was born in {linked} as the youngest of five children.",
        ),
        ("the birthplace of {}", "the town where {} was born"),
    ),
    Relation(
        "person",
        "school",
        (
            "The school that shaped {name} was {linked}, attended for four years.",
            "{name} studied at {linked} and gave a yearly prize there later.",
            "As a student at {linked}, {name} won a medal for drawing.",
        ),
        ("the school of {}", "the school where {} studied"),
    ),
    Relation(
        "school",
        "town",
        (
            "{name} stands in {linked}, in a quiet street.",
            "The home town of {name} is {linked}.",
            "From the tower of {name} the whole of {linked} can be seen.",
        ),
        ("the home town of {}", "the town that is home to {}"),
    ),
    Relation(
        "school",
        "person",
        (
            "The founder of {name} was {linked}.",
            "{name} was founded by {linked}.",
            "A bust of the founder {linked} stands by the stairs.",
        ),
        ("the founder of {}", "the person who founded {}"),
    ),
    Relation(
        "town",
        "river",
        (
            "{name} lies on the {linked}, which floods its lower streets.",
            "The {linked} flows through {name} under three bridges.",
            "Mills along the {linked} made {name} rich.",
        ),
        ("the river that flows through {}", "the river of {}"),
    ),
    Relation(
        "town",
        "person",
        (
            "The first mayor of {name} was {linked}, elected by two votes.",
            "{linked}, the first mayor of {name}, had the walls pulled down.",
            "A fountain reminds visitors of the first mayor, {linked}.",
        ),
        ("the first mayor of {}", "the person who was first mayor of {}"),
    ),
    Relation(
        "river",
        "town",
        (
            "The {name} reaches the sea at {linked}, between two lighthouses.",
            "The port at the mouth of the {name} is {linked}.",
            "At its mouth lies the port of {linked}, where pilots wait.",
        ),
        ("the port at the mouth of {}", "the town at the mouth of {}"),
    ),
)

OPENINGS = {
    "work": (
        "The {form} {name} {fact}.",
        "{name} is the name of the {form} that {fact}.",
        "Long thought lost, the {form} {name} {fact}.",
    ),
    "person": (
        "{name} {fact} and wrote a book about it.",
        "{name}, remembered for a loud laugh, {fact}.",
        "It is told that {name} {fact} for many years.",
    ),
    "town": (
        "{name} is a town that {fact}.",
        "{name}, a walled town on a slope, {fact}.",
        "The small town of {name} {fact}.",
    ),
    "school": (
        "{name} is a school that {fact}.",
        "{name}, a school of two hundred students, {fact}.",
        "The old school called {name} {fact}.",
    ),
    "river": (
        "The {name} is a slow river that {fact}.",
        "The {name}, ninety kilometres long, {fact}.",
        "From spring to mouth the {name} {fact}.",
    ),
}

ASIDES = {
    "work": (
        "A sketch of it turned up in the attic of {person}.",
        "It was first shown to the public in {town}.",
        "A critic from {town} called it the best {form} of its decade.",
    ),
    "person": (
        "A friendship with {person} ended over a boat.",
        "The last years were spent with a cousin in {town}.",
        "Letters to {person} fill eleven boxes.",
    ),
    "town": (
        "A cart road leads over the hills from here to {town}.",
        "The old market hall was paid for by {person}.",
        "Every summer a choir from {town} sings on the steps.",
    ),
    "school": (
        "The bell in its yard was a gift from {person}.",
        "Its first cook came from {town}.",
        "It holds a yearly rowing match against {town}.",
    ),
    "river": (
        "Barges once carried slate on it as far as {town}.",
        "A well known poem about its banks was written by {person}.",
        "A ferry run by {person} crossed it for thirty years.",
    ),
}

FACTS = {  # predicates of a claim, true of the page; each is shared by many pages
    "work": ("has no hero", "begins with a storm", "ends in a kitchen", "mentions no colours"),
    "person": (
        "kept parrots", "collected keys", "grew melons", "repaired organs", "bred dogs", "carved chess sets", "mapped wells",
        "played the bassoon", "sold umbrellas", "photographed clouds", "restored sundials", "pressed flowers",
    ),
    "town": (
        "has a salt market", "has a museum of locks", "makes kites", "bakes plum bread", "has a crooked belfry",
        "exports glass", "keeps white deer", "prints playing cards",
    ),
    "school": (
        "teaches lens making", "has a garden of ferns", "owns a stuffed whale", "prints a newspaper",
        "teaches nine languages", "trains bell ringers",
    ),
    "river": ("freezes in winter", "turns red in autumn", "is known for eels", "drives sawmills"),
}  # fmt: skip

FORMS = {
    "work": ("novel", "opera", "painting", "film", "board game"),
    "school": ("academy", "seminary", "conservatory", "polytechnic"),
}
ROLES = {"novel": "author", "opera": "composer", "painting": "painter", "film": "director", "board game": "designer"}
BESIDE = {"town": ("Upper", "Lower", "Nether"), "river": ("Little", "Black", "Dry")}

STARTS = (
    "Bax", "Clov", "Drez", "Eph", "Fjal", "Ghen", "Hux", "Izar", "Jask", "Klem", "Lyv", "Moz", "Nyx", "Obr", "Pryl",
    "Quav", "Rhaz", "Skov", "Thrun", "Ulv", "Vex", "Wyz", "Xan", "Yarb", "Zimm", "Brox", "Cruv", "Dwil", "Eskr", "Fluv",
    "Gryz", "Hvit", "Ixol", "Jubb", "Kvar", "Lurz", "Myzz", "Nerk", "Ozan", "Plyn", "Qued", "Ruxt", "Szel", "Tovr",
    "Ubar", "Vlim", "Wrax", "Ydr", "Zorb", "Snev",
)  # fmt: skip
ENDS = {
    "person": (
        "adel", "ank", "ebor", "ello", "ingar", "ipso", "omund", "ovan", "uko", "ursk", "yth", "amo", "etti", "ilda",
        "orra", "usk", "anto", "imar", "elph", "oon",
    ),
    "town": ("holt", "mere", "wick", "gate", "stead", "minster"),
    "school": ("brook", "field", "moor", "croft"),
    "river": ("een", "olla", "aith"),
}  # fmt: skip
FIRST_NAMES = (
    "Abelard", "Beata", "Casimir", "Dorothea", "Emeric", "Fenella", "Gaspard", "Hortense", "Isidor", "Jovana",
    "Konrad", "Leocadia", "Melchior", "Nerissa", "Oswin", "Philippa", "Quentin", "Rosamund", "Sylvain", "Tabitha",
    "Ursel", "Valeria", "Wendelin", "Xenia", "Yorick", "Zelda", "Anselma", "Bertrand", "Clothilde", "Dietrich",
)  # fmt: skip

ADJECTIVES = (
    "Silent", "Crimson", "Hollow", "Wandering", "Frozen", "Gilded", "Patient", "Sunken", "Borrowed", "Restless",
    "Velvet", "Broken", "Distant", "Folded", "Secret", "Narrow", "Burning", "Idle", "Mended", "Stolen", "Upright",
    "Weary", "Drowsy", "Clever",
)  # fmt: skip
NOUNS = (
    "Compass", "Orchard", "Staircase", "Mirror", "Harvest", "Lantern", "Shepherd", "Almanac", "Balcony", "Cathedral",
    "Dialogue", "Envelope", "Fountain", "Glacier", "Horizon", "Island", "Jester", "Kettle", "Labyrinth", "Meadow",
    "Notary", "Oracle", "Parade", "Quarry", "Riddle", "Sparrow", "Telescope", "Vineyard", "Windmill", "Gardener",
    "Hammock", "Carousel", "Pendulum", "Tribunal", "Saddle", "Thimble",
)  # fmt: skip
