"""Competence probes: held-out plain general text, cut where a fact named earlier has to come next.

A skill can be carried only to a model whose base can host it, so a pocket model has to pass
those of `REQUIRED` before any adapter is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from cast.pocket.lexicon import draw_scene
from cast.pocket.world import answer, question, story

REQUIRED = ("object", "person", "place", "colour", "mood", "agreement", "notation")
# Finding a fact by name among several records takes two steps of looking back; it is told, not required.
PROBE_KINDS = (*REQUIRED, "lookup")
_FIRST_SEED = 4 * 10**12


@dataclass(frozen=True)
class Probe:
    """Text up to a slot, and the one word that belongs there."""

    kind: str
    prefix: str
    word: str


def probes(kind: str, count: int) -> Iterator[Probe]:
    """`count` probes of one kind, always the same."""
    offset = _FIRST_SEED + PROBE_KINDS.index(kind) * 10**9
    return (_probe(kind, Random(offset + index)) for index in range(count))


def _probe(kind: str, rng: Random) -> Probe:
    scene = draw_scene(rng)
    if kind == "object":
        told = story(scene, rng)
        start = told.rindex(f" {scene.thing}")
        return Probe(kind, told[:start], f" {scene.thing}")
    if kind == "person":
        told = f"{story(scene, rng)}\n{question(scene, 'who')}"
        return Probe(kind, told, f" {scene.person}")
    if kind == "place":
        told = story(scene, rng)
        start = told.rindex(f" {scene.place}")
        return Probe(kind, told[:start], f" {scene.place}")
    if kind in ("colour", "mood"):
        word = f" {getattr(scene, kind)}"
        told = f"{story(scene, rng)}\n{question(scene, kind)} {answer(scene, kind)}"
        start = told.rindex(word)
        return Probe(kind, told[:start], word)
    if kind == "agreement":
        return Probe(
            kind, scene.fill("One {weather} {time}, {person} went to the {place}. There"), scene.fill(" {he}")
        )
    if kind == "notation":
        return Probe(kind, scene.fill("name: {person}; job: {job}; place: {place};"), " thing")
    names = (scene.person, scene.place, scene.thing)
    head = f"{names[0]} @ {names[1]} -> {names[2]}"
    other = f"{scene.friend} @ {scene.other_place} -> {scene.other_thing}"
    return Probe(kind, f"{head}\n{other}\nname = {names[0]}, job = {scene.job}, place =", f" {names[1]}")
