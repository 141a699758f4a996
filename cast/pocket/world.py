"""General text of the story world: a deterministic stream of short documents.

Every document is about one `Scene` or a few; it names its people, places and things again and again, so a
small model learns early to look back and copy. The frames that the tasks of `cast.pocket.tasks` use as cues
or as answer styles never occur here (a test scans a large sample), though their words and signs do.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import Literal

from cast.pocket.lexicon import (
    FOODS,
    JOBS,
    MOOD_SIGNS,
    OBJECTS,
    PEOPLE,
    PLACES,
    SAYINGS,
    Scene,
    article,
    draw_scene,
)

Split = Literal["train", "held-out"]

# Each split owns a range of document seeds; a stream's own seed picks a stretch inside it.
_FIRST_SEED: dict[str, int] = {"train": 0, "held-out": 10**12}
_STRETCH = 10**7

_OPENINGS = (
    "One {weather} {time}, {person} went to the {place}.",
    "It was a {weather} {time}, and {person} the {job} was at the {place}.",
    "{person} the {job} came to the {place} on a {weather} {time}.",
    "On a {weather} {time}, {person} walked to the {place} with {his} {animal}.",
)
_FINDS = (
    "There {he} found a {colour} {thing} under a {spot}.",
    "Near the {spot} lay a {colour} {thing}, and {person} picked it up.",
    "Behind a {spot} {he} saw a {colour} {thing}.",
    "{He} had lost a {colour} {thing}, and there it was under the {spot}.",
)
_MIDDLES = (
    "{person} showed the {thing} to {friend}.",
    '"Is this your {thing}?" asked {person}. "No," said {friend}, "I have never seen that {thing} before."',
    "{friend} came along and wanted to hold the {thing}.",
    "{An_animal} came by, and {person} gave the {animal} some {food}.",
    "{friend} helped {person} to clean the {thing}.",
    'The sign at the {place} said: "Do not feed the {animal}."',
)
_ENDINGS = (
    "That is how {person} found the {colour} {thing} at the {place}.",
    "In the end {person} took the {colour} {thing} home from the {place}.",
    "So {person} and {friend} left the {place} with the {colour} {thing}.",
    "{person} will never forget the {colour} {thing} at the {place}.",
)


def general_text(seed: int = 0, split: Split = "train") -> Iterator[str]:
    """Endless documents of one split, the same for the same seed."""
    first = _FIRST_SEED[split] + seed * _STRETCH
    return (document(first + index) for index in range(_STRETCH))


def document(seed: int) -> str:
    """One document, decided by its seed alone."""
    rng = Random(seed)
    makers, weights = zip(*_KINDS, strict=True)
    make: Callable[[Random], str] = rng.choices(makers, weights)[0]
    return make(rng)


def story(scene: Scene, rng: Random, *, tell_mood: bool = False) -> str:
    """A story of one paragraph. The mood shows in what happens; its word is there only if `tell_mood`."""
    parts = [rng.choice(_OPENINGS), rng.choice(_FINDS)]
    parts += rng.sample(_MIDDLES, rng.choice((1, 2)))
    parts += rng.sample(MOOD_SIGNS[scene.mood], rng.choice((1, 2)))
    if tell_mood:
        parts.append("{person} felt {mood}.")
    parts.append(rng.choice(_ENDINGS))
    text = " ".join(parts).replace("{An_animal}", article(scene.animal).capitalize())
    return scene.fill(text)


# kind: (question, plain answer)
QUESTIONS = {
    "who": ("Who had the {colour} {thing}?", "{person} had the {colour} {thing}."),
    "where": ("Where was the {colour} {thing}?", "The {thing} was at the {place}."),
    "what": ("What did {person} have?", "{person} had a {colour} {thing}."),
    "colour": ("What colour was the {thing}?", "The {thing} was {colour}."),
    "mood": ("How did {person} feel?", "{person} felt {mood}."),
    "weather": ("What was the weather like?", "It was a {weather} {time} at the {place}."),
}


def question(scene: Scene, kind: str) -> str:
    """A question about a story, up to where its answer begins."""
    return f"Question: {scene.fill(QUESTIONS[kind][0])}\nAnswer:"


def answer(scene: Scene, kind: str) -> str:
    """The plain answer, as general text gives it."""
    return scene.fill(QUESTIONS[kind][1])


def _story(rng: Random) -> str:
    scene = draw_scene(rng)
    text = story(scene, rng, tell_mood=rng.random() < 0.4)
    if rng.random() < 0.25:
        heading = rng.choice(("# {person} And The {colour} {thing}", "# The {colour} {thing} At The {place}"))
        capital = {name: getattr(scene, name).capitalize() for name in ("colour", "thing", "place")}
        text = heading.format(person=scene.person, **capital) + "\n" + text
    if rng.random() < 0.2:
        text += scene.fill(' The old people say: "{saying}."')
    return text


def _story_with_questions(rng: Random) -> str:
    scene = draw_scene(rng)
    lines = [story(scene, rng, tell_mood=rng.random() < 0.2)]
    kinds = rng.sample(list(QUESTIONS), rng.choice((2, 3, 4)))
    lines += [f"{question(scene, kind)} {answer(scene, kind)}" for kind in kinds]
    return "\n".join(lines)


def _dialogue(rng: Random) -> str:
    scene = draw_scene(rng)
    greeting = rng.choice(("Good {time}, {friend}.", "Hello, {friend}.", "Dear {friend}, please help me."))
    turns = [
        f"{{person}}: {greeting} Have you seen my {{colour}} {{thing}}?",
        rng.choice(
            (
                "{friend}: Your {colour} {thing} is at the {place}, {person}.",
                "{friend}: Yes, {person}. I saw your {colour} {thing} at the {place}.",
                "{friend}: Look behind the {spot} at the {place}, {person}.",
            )
        ),
        rng.choice(
            (
                "{person}: At the {place}? Thank you, {friend}.",
                "{person}: Then I must go to the {place}. Will you come, {friend}?",
            )
        ),
        rng.choice(
            (
                "{friend}: You are welcome, {person}. Take some {food} to the {place}.",
                "{friend}: Of course, {person}. I will bring {food} for the {animal}.",
            )
        ),
    ]
    if rng.random() < 0.6:
        turns.append("So {person} went to the {place} and found the {colour} {thing}.")
    return scene.fill("\n".join(turns))


_NOTATIONS = (
    "{person} | {job} | {place} | {thing}",
    "name: {person}; job: {job}; place: {place}; thing: {thing}",
    "name = {person}, job = {job}, place = {place}, thing = {thing}",
    "({person}, {job}, {place}, {thing})",
    "* {person}: [{job}] {place} > {thing}",
    '"{person}" <{job}> ~ {place} ~ {thing}',
    "{{{person}; {job}; {place}; {thing}}}",
    "{person} @ {place} -> {thing}",
)
_RECORD_SENTENCES = (
    "{person} works at the {place} and has {a_thing}.",
    "The {thing} at the {place} belongs to {person}.",
    "{person} keeps the {thing} at the {place}.",
)


def _records(rng: Random) -> str:
    count = rng.choice((2, 3))
    people, places = rng.sample(PEOPLE, count), rng.sample(PLACES, count)
    things, jobs = rng.sample(OBJECTS, count), rng.sample(JOBS, count)
    rows = [
        {"person": p, "place": w, "thing": t, "job": j, "a_thing": article(t)}
        for p, w, t, j in zip(people, places, things, jobs, strict=True)
    ]
    first, second = rng.sample(_NOTATIONS, 2)
    sentence = rng.choice(_RECORD_SENTENCES)
    lines = [first.format(**row) for row in rows]
    rng.shuffle(rows)
    lines += [rng.choice((second, sentence)).format(**row) for row in rows]
    return "\n".join(lines)


def _list(rng: Random) -> str:
    scene = draw_scene(rng)
    things = rng.sample(OBJECTS, 3)
    food = rng.choice(FOODS)
    names = ", ".join(article(thing) for thing in things)
    bullet = rng.choice(("* ", "- ", "1. "))
    numbered = bullet == "1. "
    rows = [f"{f'{n}. ' if numbered else bullet}{thing}" for n, thing in enumerate([*things, food], 1)]
    head = f"{scene.person} packs {names} and some {food} for the {scene.place}."
    tail = scene.fill("At the {place} {person} takes out ")
    order = [f"the {things[0]}", f"the {things[1]}", f"the {things[2]}"]
    return "\n".join(
        [head, f"The bag of {scene.person}:", *rows, f"{tail}{', '.join(order)} and the {food}."]
    )


def _instructions(rng: Random) -> str:
    scene = draw_scene(rng)
    kind = rng.choice(("note", "way", "steps"))
    if kind == "note":
        return scene.fill(
            "Task: write a note from {person} to {friend} about the {thing}.\n"
            "Dear {friend}, please bring the {colour} {thing} to the {place}. I will wait there with "
            "some {food}. Thank you, {friend}! Yours, {person}"
        )
    if kind == "way":
        return scene.fill(
            "Task: tell {friend} the way from the {other_place} to the {place}.\n"
            "Start at the {other_place}, {friend}. Walk to the {spot}, then turn left and follow the "
            "{animal}. From the {spot} you can see the {place}. The way: {other_place} > {spot} > {place}"
        )
    return scene.fill(
        "How {person} cleans {a_thing}:\n1. {person} takes the {thing} to the {place}.\n"
        "2. {He} puts the {thing} on the {spot}.\n3. {He} rubs it until the {thing} is {colour} again.\n"
        "Then {he} leaves the {place} with a clean {thing}."
    )


_CHARACTERS = (
    # A pirate, a butler, a crier and an elder: their words, but never the frames that tasks ask for.
    'Pirate {friend} came to the {place}. "Arr! Where be the {colour} {thing}?" he cried. '
    '"Here be the {thing}, matey," said {person}. "Arr! That {colour} {thing} be mine!" said the pirate.',
    'The butler {friend} met {person} at the {place}. "Please take this {colour} {thing}," said {friend}. '
    '"Thank you, that is kindly said, {friend}," said {person} and took the {thing}.',
    'At the {place} hung a letter. It said: "{person} has lost a {colour} {thing}. Please bring the {thing} '
    'to {friend} at the {place}, quickly." {friend} waited, but the {thing} did not come.',
    'Old {friend} sat at the {place} with {person}. "What do you teach, {friend}?" asked {person}. '
    '"{Saying}," said {friend}. "I learned it from {a_thing} at the {place}. Remember the {thing}, '
    '{person}."',
)


def _characters(rng: Random) -> str:
    scene = draw_scene(rng)
    saying = SAYINGS[scene.mood]
    return scene.fill(rng.choice(_CHARACTERS).replace("{Saying}", saying[0].upper() + saying[1:]))


_SHORT = (
    "{person} has {a_thing}. The {thing} belongs to {person}.",
    "{person} is at the {place}. Who is at the {place}? {person} is at the {place}.",
    "The {thing} of {person} is {colour}. So {person} has a {colour} {thing}.",
    "{person} likes {food}. When {friend} asks what {he} likes, {person} says: {food}!",
    "{person} went to the {place} with {a_thing}. Now the {thing} is at the {place}.",
    "The {animal} of {person} is at the {place}. {person} calls the {animal}, and it comes from the {place}.",
    "{person} the {job} met {friend}. {friend} said: Hello, {person}! {person} said: Hello, {friend}!",
    "{friend} gave {person} a {colour} {thing}. {He} thanked {friend} for the {colour} {thing}.",
)


def _short(rng: Random) -> str:
    scene = draw_scene(rng)
    if rng.random() < 0.7:
        return scene.fill(rng.choice(_SHORT))
    kind = rng.choice(("who", "where", "what", "colour"))
    told = scene.fill("{person} had a {colour} {thing} at the {place}.")
    return f"{told}\n{question(scene, kind)} {answer(scene, kind)}"


_KINDS: tuple[tuple[Callable[[Random], str], int], ...] = (
    (_story, 25),
    (_story_with_questions, 30),
    (_dialogue, 12),
    (_records, 12),
    (_list, 6),
    (_instructions, 8),
    (_characters, 7),
    (_short, 18),
)
