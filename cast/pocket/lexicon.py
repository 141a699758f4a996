"""The words of the story world, and the scene that a text is about."""

from dataclasses import dataclass
from random import Random

WOMEN = ("Ada", "Clara", "Emma", "Greta", "Ida", "Lena", "Mia", "Nora", "Rosa", "Vera", "Wilma", "Zoe")
MEN = ("Ben", "Carl", "David", "Emil", "Felix", "Hugo", "Jonas", "Leo", "Max", "Oscar", "Paul", "Tom")
PEOPLE = tuple(sorted(WOMEN + MEN))
OBJECTS = (
    "bell", "boat", "book", "box", "clock", "coat", "coin", "cup", "drum", "fan", "flute", "hat",
    "key", "kite", "lamp", "map", "mirror", "ring", "rope", "shoe", "spoon", "sword", "umbrella", "wheel",
)  # fmt: skip
PLACES = (
    "beach", "bridge", "castle", "cave", "farm", "forest", "garden", "harbour",
    "inn", "library", "market", "meadow", "mill", "school", "station", "tower",
)  # fmt: skip
COLOURS = ("black", "blue", "brown", "golden", "green", "red", "white", "yellow")
MOODS = ("angry", "happy", "sad", "scared")
WEATHERS = ("foggy", "rainy", "snowy", "stormy", "sunny", "windy")
TIMES = ("morning", "afternoon", "evening", "night")
JOBS = (
    "baker", "doctor", "farmer", "gardener", "hunter", "miller",
    "painter", "sailor", "singer", "tailor", "teacher", "weaver",
)  # fmt: skip
FOODS = ("apples", "bread", "cake", "cheese", "fish", "honey", "nuts", "plums", "rice", "soup")
ANIMALS = ("cat", "dog", "duck", "fox", "goat", "horse", "mouse", "otter", "owl", "rabbit")
SPOTS = ("bench", "cart", "door", "ladder", "stone", "table", "tree", "wall")

# What a person does shows the mood; the word for the mood is never in it.
MOOD_SIGNS = {
    "happy": (
        "{He} laughed and danced around the {thing}.",
        "A big smile came over {his} face.",
        "{He} sang and clapped {his} hands.",
        "{He} jumped for joy.",
    ),
    "sad": (
        "Tears ran down {his} face.",
        "{He} sat alone and wept.",
        "{He} hung {his} head and sighed.",
        "{He} could not stop crying.",
    ),
    "angry": (
        "{He} stamped {his} foot and shouted.",
        "{His} face turned hot, and {he} slammed the door.",
        "{He} made a fist and growled.",
        "{He} kicked the wall and yelled.",
    ),
    "scared": (
        "{His} knees shook, and {he} wanted to run.",
        "{He} hid under the table and trembled.",
        "{His} heart beat fast, and {he} did not dare to move.",
        "{He} turned pale and held {his} breath.",
    ),
}

SAYINGS = {
    "happy": "joy grows when it is shared",
    "sad": "after the rain comes the sun",
    "angry": "a calm word opens every door",
    "scared": "courage comes one step at a time",
}


def article(noun: str) -> str:
    """The noun with its indefinite article: `a kite`, `an owl`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


@dataclass(frozen=True)
class Scene:
    """The facts that one text is about; every text names several of them more than once."""

    person: str
    friend: str
    place: str
    other_place: str
    thing: str
    other_thing: str
    colour: str
    mood: str
    weather: str
    time: str
    job: str
    food: str
    animal: str
    spot: str

    def fill(self, template: str) -> str:
        """Fill a template; `{he}`, `{his}` and their capitals agree with the main person."""
        she = self.person in WOMEN
        words = {"he": "she", "his": "her"} if she else {"he": "he", "his": "his"}
        return template.format(
            **vars(self),
            **words,
            He=words["he"].capitalize(),
            His=words["his"].capitalize(),
            a_thing=article(self.thing),
            an_animal=article(self.animal),
            saying=SAYINGS[self.mood],
        )


def draw_scene(rng: Random) -> Scene:
    """Draw the facts of one text."""
    person, friend = rng.sample(PEOPLE, 2)
    place, other_place = rng.sample(PLACES, 2)
    thing, other_thing = rng.sample(OBJECTS, 2)
    return Scene(
        person=person,
        friend=friend,
        place=place,
        other_place=other_place,
        thing=thing,
        other_thing=other_thing,
        colour=rng.choice(COLOURS),
        mood=rng.choice(MOODS),
        weather=rng.choice(WEATHERS),
        time=rng.choice(TIMES),
        job=rng.choice(JOBS),
        food=rng.choice(FOODS),
        animal=rng.choice(ANIMALS),
        spot=rng.choice(SPOTS),
    )
