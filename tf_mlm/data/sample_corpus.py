"""The sample corpus: generated short film reviews, the data of `configs/sample.toml`.

The first run must work without a network, and its curve must be meaningful. A model memorizes a few fixed sentences,
and text whose next word follows from the previous two does not need a masked language model. So each document is
drawn from a grammar whose rules apply across sentences:

* a film, its genre, its people and its place are drawn once and named again later, so that other sentences help to
  fill a mask;
* pronouns, relations (`her sister Ida`) and actors agree in gender with a name that may come before or after;
* one verdict determines adjectives, verbs, feelings and rating in all sentences; only the first half of a contrast
  (`Although the music was bland, ...`, `..., but ...`) says the opposite;
* one tense and one reviewer (`I` or `we`) are used in the whole document, and verbs agree with their subject.

Films and people are invented: titles and full names are random combinations.
"""

import random
import re
from collections.abc import Iterator

# Tables. Entries are separated by commas; a document draws one per line unless a comment says otherwise.


def _entries(line: str) -> list[str]:
    return line.split(", ")


TITLE_OPENINGS = _entries("The, The, The, Under the, Beyond the")
TITLE_MODIFIERS = _entries(
    "Copper, Paper, Crimson, Silver, Frozen, Velvet, Amber, Crooked, Rusty, Stolen, Purple, Floating"
)
TITLE_NOUNS = _entries(
    "Orchard, Lantern, Umbrella, Thimble, Carousel, Feather, Anchor, Kettle, Ladder, Parrot, Windmill, Bicycle"
)

FIRST_NAMES = {
    "male": _entries("Albert, Bruno, Edgar, Felix, Hector, Leon, Oscar, Peter, Thomas"),
    "female": _entries("Agnes, Clara, Edith, Flora, Greta, Helen, Ida, Nora, Sylvia"),
}
SURNAMES = _entries(
    "Abbelow, Corvane, Dunmarsh, Elverby, Fennick, Garrowby, Kestrow, Lambrook, Nethercot, Quillon, Sorrelby, Wexmoor"
)
PRONOUNS = {
    "male": {"he": "he", "him": "him", "his": "his"},
    "female": {"he": "she", "him": "her", "his": "her"},
}
RELATIONS = {
    "male": _entries("brother, uncle, father, nephew, grandfather"),
    "female": _entries("sister, aunt, mother, niece, grandmother"),
}
REVIEWERS = (
    {"I": "I", "my": "my", "me": "me"},
    {"I": "we", "my": "our", "me": "us"},
)

AGES = _entries("young, old, retired, shy, stubborn, ambitious")
LOSSES = _entries("job, house, memory, savings, diary, passport")
OCCASIONS = _entries("last week, on television, at a festival, on a rainy evening, on a long flight, last summer")
COMPANIONS = _entries("neighbor, dentist, roommate, teacher, children, cousins, parents, friends")

# Two elements are drawn; the first word of a quest is a verb that follows "to".
GENRES: dict[str, dict[str, list[str]]] = {
    "western": {
        "genres": ["westerns"],
        "role": _entries("sheriff, rancher, cowboy"),
        "place": _entries("desert town, canyon, mining camp"),
        "elements": _entries("horses, gunfights, saloons"),
        "enemies": _entries("bandits, outlaws"),
        "quest": _entries("save the ranch, find the gold"),
    },
    "comedy": {
        "genres": ["comedies"],
        "role": _entries("waiter, baker, clown"),
        "place": _entries("hotel, bakery, restaurant"),
        "elements": _entries("jokes, pranks, gags"),
        "enemies": _entries("rivals, tourists"),
        "quest": _entries("throw a party, hide a monkey"),
    },
    "thriller": {
        "genres": ["thrillers"],
        "role": _entries("spy, agent, reporter"),
        "place": _entries("harbor city, embassy, airport"),
        "elements": _entries("chases, explosions, twists"),
        "enemies": _entries("assassins, kidnappers"),
        "quest": _entries("stop the bomb, deliver the code"),
    },
    "musical": {
        "genres": ["musicals"],
        "role": _entries("singer, dancer, pianist"),
        "place": _entries("theater, music hall, ballroom"),
        "elements": _entries("songs, dances, choruses"),
        "enemies": _entries("critics, producers"),
        "quest": _entries("write a hit, open the show"),
    },
    "romance": {
        "genres": ["romances"],
        "role": _entries("florist, gardener, poet"),
        "place": _entries("seaside village, vineyard, rose garden"),
        "elements": _entries("kisses, letters, weddings"),
        "enemies": _entries("suitors, matchmakers"),
        "quest": _entries("write a poem, forget the past"),
    },
    "mystery": {
        "genres": ["mysteries"],
        "role": _entries("detective, inspector, librarian"),
        "place": _entries("mansion, museum, country house"),
        "elements": _entries("clues, suspects, secrets"),
        "enemies": _entries("thieves, forgers"),
        "quest": _entries("solve the murder, find the necklace"),
    },
    "fantasy": {
        "genres": ["fantasies"],
        "role": _entries("knight, healer, blacksmith"),
        "place": _entries("castle, dark forest, kingdom"),
        "elements": _entries("dragons, spells, elves"),
        "enemies": _entries("goblins, trolls"),
        "quest": _entries("break the curse, wake the king"),
    },
    "war film": {
        "genres": ["war films"],
        "role": _entries("soldier, pilot, medic"),
        "place": _entries("trench, bunker, ruined city"),
        "elements": _entries("battles, tanks, bombers"),
        "enemies": _entries("invaders, snipers"),
        "quest": _entries("cross the border, hold the bridge"),
    },
}

# Words that express the verdict. No word is in both tables. `adjectives` fit all aspects.
PRAISE = {
    "adjectives": _entries("wonderful, brilliant, excellent, superb, delightful, beautiful"),
    "loved": _entries("loved, enjoyed"),
    "enjoy": _entries("love, enjoy"),
    "happy": _entries("happy, thrilled"),
    "proud": _entries("proud, praised"),
    "best": ["best"],
    "triumph": _entries("triumph, masterpiece, gem"),
    "rating": _entries("seven, eight, nine, ten"),
}
BLAME = {
    "adjectives": _entries("terrible, awful, dreadful, horrible, dull, boring"),
    "loved": _entries("hated, disliked"),
    "enjoy": _entries("hate, dislike"),
    "happy": _entries("bored, angry"),
    "proud": _entries("ashamed, blamed"),
    "best": ["worst"],
    "triumph": _entries("failure, disaster, mess"),
    "rating": _entries("zero, two, three, four"),
}

# Aspect, number of its verb, and adjectives for this aspect only: praise, then blame.
ASPECTS = (
    ("acting", "singular", _entries("convincing, subtle"), _entries("wooden, stiff")),
    ("story", "singular", _entries("gripping, touching"), _entries("predictable, confusing")),
    ("script", "singular", _entries("clever, witty"), _entries("lazy, childish")),
    ("music", "singular", _entries("haunting, stirring"), _entries("loud, bland")),
    ("ending", "singular", _entries("surprising, satisfying"), _entries("rushed, pointless")),
    ("pace", "singular", _entries("brisk, lively"), _entries("slow, sluggish")),
    ("costumes", "plural", _entries("colorful, authentic"), _entries("cheap, shabby")),
    ("effects", "plural", _entries("dazzling, inventive"), _entries("fake, clumsy")),
)

# Templates. {present/past} follows the tense of the document. {adjective} and {clause} express the verdict, {contrary}
# and {contrary clause} its opposite; these four are drawn at each use, the other slots once per document.
# Two rules distinguish people: {he}, {him} and {his} are the lead or the actor of the lead, who share a gender, {their}
# is the director; and the second character is always called by relation and name.
OPENINGS = (
    "{title} {is/was} a {genre} directed by {director}.",
    "{title}, the latest {genre} by {director}, {is/was} {adjective}.",
    "{director} {gives/gave} {me} a {adjective} {genre} with {title}.",
    "{I} saw {title} {occasion} and {loved} it.",
    "{I} watched this {genre} {occasion} with {my} {companion}.",
    "If you watch many {genres}, you will {enjoy} {title}.",
    "{I} expected a {contrary} {genre}, but {title} {is/was} {adjective}.",
    "Few {genres} {are/were} as {adjective} as {title} by {director}.",
    "{title} {is/was} the most {adjective} {genre} that {I} saw {occasion}.",
    "With {title}, {director} {shows/showed} how {adjective} a {genre} {can/could} be.",
)
INTRODUCTIONS = (
    "It {tells/told} the story of {lead}, a {age} {role} who {lives/lived} in a {place}.",
    "{lead} {is/was} a {age} {role} who {wants/wanted} to {quest}.",
    "In a {place}, a {age} {role} called {lead} {tries/tried} to {quest}.",
    "When {he} {loses/lost} {his} {loss}, the {age} {role} {lead} {decides/decided} to {quest}.",
    "{lead} {works/worked} as a {role} in a {place} until {he} {loses/lost} {his} {loss}.",
    "The {enemies} {chase/chased} {lead}, a {age} {role}, out of a {place}.",
)
COMPLICATIONS = (
    "{he} {asks/asked} {his} {relation} {friend} to help {him} {quest}.",
    "{his} {relation} {friend} {warns/warned} {him} about the {enemies}.",
    "Nobody {believes/believed} {him} except {his} {relation} {friend}.",
    "Before {he} {can/could} {quest}, the {role} {has/had} to face the {enemies}.",
    "{he} {hides/hid} in the {place} with {his} {relation} {friend}.",
    "When the {enemies} {arrive/arrived} in the {place}, {he} {needs/needed} {his} {relation} {friend}.",
    "Only {his} {relation} {friend} {knows/knew} why the {enemies} {follow/followed} {lead}.",
    "In the end {lead} {forgives/forgave} {his} {relation} {friend} and {escapes/escaped} from the {enemies}.",
)
PERFORMANCES = (
    "{actor} {plays/played} {lead}, and {he} {is/was} {adjective}.",
    "As {lead}, {actor} {gives/gave} a {adjective} performance.",
    "{actor} {is/was} {adjective} and {adjective} as the {age} {role} {lead}.",
    "The {best} thing about it {is/was} {actor}, who {plays/played} the {role}.",
    "{I} {loved} {actor} as {lead}, and {his} scenes with the {enemies} {are/were} {adjective}.",
)
OPINIONS = (
    "{clause} and {clause}.",
    "{clause}, {clause}, and {clause}.",
    "Although {contrary clause}, {clause}.",
    "{contrary clause}, but {clause}.",
    "The {element} and the {other element} {are/were} {adjective}.",
    "{I} {loved} the {element}, and {clause}.",
    "As in most {genres}, there {are/were} {element} and {other element}, and {clause}.",
    "The {element} {are/were} {adjective}, and {I} {loved} the {other element} too.",
    "{director} {directs/directed} the {element} in {their} own {adjective} way.",
)
REACTIONS = (
    "{I} {loved} every minute of it.",
    "{my} {companion} {loved} the {genre} as much as {I} did.",
    "It left {me} {happy}, and {my} {companion} felt the same.",
    "{I} went home {happy}, because {clause}.",
    "{my} {companion} told {me} that {clause}.",
)
HEADLINES = (
    "{rating} out of ten.",
    "{rating} stars out of ten for {title}.",
    "What a {adjective}, {adjective} {genre}!",
    "{title} {is/was} a {triumph}.",
    "A {adjective} and {adjective} {genre}.",
)
VERDICTS = (
    "{rating} out of ten.",
    "{I} gave it {rating} out of ten.",
    "{rating} stars out of ten for {title}.",
    "What a {adjective} and {adjective} {genre}!",
    "In short, {title} {is/was} a {triumph}.",
    "{director} should be {proud} for this {adjective} {genre}.",
    "This {genre} about a {role} {is/was} a {triumph}, and {I} {loved} it.",
    "It {is/was} the {best} {genre} of the year.",
)


def generate_documents(num_documents: int, seed: int) -> list[str]:
    """Generate `num_documents` distinct film reviews of 4 to 6 sentences, reproducible by `seed`.

    It uses only `random.Random`, so the text is the same on all platforms and Python versions.
    """
    if num_documents < 0:
        raise ValueError(f"num_documents must be at least 0, got {num_documents}")
    rng = random.Random(seed)
    documents: dict[str, None] = {}  # a dict keeps the order, a set does not
    while len(documents) < num_documents:
        documents[_write_document(rng)] = None
    return list(documents)


def _write_document(rng: random.Random) -> str:
    praises = rng.random() < 0.5
    tense = rng.choice(["present", "past"])
    facts = _draw_facts(rng, PRAISE if praises else BLAME, tense)
    judgments = _draw_judgments(rng, praises, tense)

    plot = [rng.choice(INTRODUCTIONS), *rng.sample(COMPLICATIONS, rng.choice([0, 0, 0, 1]))]
    opinions = rng.sample(PERFORMANCES + OPINIONS, 1)
    body = plot + opinions if rng.random() < 0.7 else opinions + plot
    reaction = rng.sample(REACTIONS, rng.choice([0, 0, 1]))
    if rng.random() < 0.3:  # the verdict comes first
        templates = [rng.choice(HEADLINES), rng.choice(OPENINGS), *body, *reaction]
    else:
        templates = [rng.choice(OPENINGS), *body, *reaction, rng.choice(VERDICTS)]
    return " ".join(_fill(template, facts, judgments) for template in templates)


def _draw_facts(rng: random.Random, verdict: dict[str, list[str]], tense: str) -> dict[str, str]:
    """The words that stay the same in a document, by name of the slot."""
    genre = rng.choice(list(GENRES))
    genre_words = GENRES[genre]
    lead_gender, friend_gender, director_gender = (rng.choice(["male", "female"]) for _ in range(3))
    lead, actor = rng.sample(FIRST_NAMES[lead_gender], 2)
    friend = rng.choice([name for name in FIRST_NAMES[friend_gender] if name != lead])
    director = rng.choice([name for name in FIRST_NAMES[director_gender] if name not in (lead, actor, friend)])
    actor_surname, director_surname = rng.sample(SURNAMES, 2)
    element, other_element = rng.sample(genre_words["elements"], 2)
    return {
        "tense": tense,
        "title": " ".join(rng.choice(words) for words in (TITLE_OPENINGS, TITLE_MODIFIERS, TITLE_NOUNS)),
        "genre": genre,
        "genres": genre_words["genres"][0],
        "role": rng.choice(genre_words["role"]),
        "place": rng.choice(genre_words["place"]),
        "element": element,
        "other element": other_element,
        "enemies": rng.choice(genre_words["enemies"]),
        "quest": rng.choice(genre_words["quest"]),
        "lead": lead,
        "age": rng.choice(AGES),
        "loss": rng.choice(LOSSES),
        **PRONOUNS[lead_gender],
        "actor": f"{actor} {actor_surname}",
        "friend": friend,
        "relation": rng.choice(RELATIONS[friend_gender]),
        "director": f"{director} {director_surname}",
        "their": PRONOUNS[director_gender]["his"],
        **rng.choice(REVIEWERS),
        "companion": rng.choice(COMPANIONS),
        "occasion": rng.choice(OCCASIONS),
        **{slot: rng.choice(words) for slot, words in verdict.items() if slot != "adjectives"},
    }


def _draw_judgments(rng: random.Random, praises: bool, tense: str) -> dict[str, Iterator[str]]:
    """Iterators of new words for each slot. A document judges each aspect at most once."""
    agreeing, contrary = (PRAISE, BLAME) if praises else (BLAME, PRAISE)
    adjectives = _shuffle_forever(rng, agreeing["adjectives"])
    contrary_adjectives = _shuffle_forever(rng, contrary["adjectives"])
    aspects = iter(rng.sample(ASPECTS, len(ASPECTS)))

    verbs = {"present": {"singular": "is", "plural": "are"}, "past": {"singular": "was", "plural": "were"}}[tense]

    def clauses(says_praise: bool, general_adjectives: Iterator[str]) -> Iterator[str]:
        for noun, number, praise, blame in aspects:  # shared, so that no two clauses judge the same aspect
            own_adjectives = praise if says_praise else blame
            adjective = rng.choice(own_adjectives) if rng.random() < 0.3 else next(general_adjectives)
            # A pair of adjectives shows that both express the same verdict.
            pair = f" and {next(general_adjectives)}" if rng.random() < 0.5 else ""
            yield f"the {noun} {verbs[number]} {adjective}{pair}"

    return {
        "adjective": adjectives,
        "contrary": contrary_adjectives,
        "clause": clauses(praises, adjectives),
        "contrary clause": clauses(not praises, contrary_adjectives),
    }


def _shuffle_forever(rng: random.Random, words: list[str]) -> Iterator[str]:
    while True:  # use each word once before repeating any
        yield from rng.sample(words, len(words))


def _fill(template: str, facts: dict[str, str], judgments: dict[str, Iterator[str]]) -> str:
    def word(match: re.Match[str]) -> str:
        slot = match[1]
        if "/" in slot:
            present, past = slot.split("/")
            return present if facts["tense"] == "present" else past
        return facts[slot] if slot in facts else next(judgments[slot])

    sentence = re.sub(r"\{([^}]+)\}", word, template)
    sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
    return sentence[0].upper() + sentence[1:]
