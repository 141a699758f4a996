"""What to do for a translation (`TranslationConfig`), and the record of what was done (`Recipe`)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cast.errors import AdapterError, RequestError

Mode = Literal["compiled", "hosted", "instant", "kernel"]
Readout = Literal["words", "states"]
TextKind = Literal["general", "prompts", "self-generated"]
"""What is read for a fit; what an adapter says by itself, to general text or unasked, is self-generated."""
DecodeFit = Literal["rotation", "adjoint", "ridge"]
EncodeFit = Literal["rotation", "affine", "mlp"]
_CHOICES: dict[str, Any] = {
    "mode": Mode,
    "readout": Readout,
    "site_decode": DecodeFit,
    "site_encode": EncodeFit,
}
_LEFT_OPEN = frozenset({"site_decode", "site_encode"})
_POSITIVE = (
    "steps", "rounds", "passes", "batch_size", "site_tokens", "max_length", "learning_rate", "rank",
    "segment",
)  # fmt: skip
RECIPE_FILE = "cast.json"
FORMAT_VERSION = 1
# The ranks that vLLM serves within its default limit of 16, and the next ones that it can be told to serve.
SERVED_RANKS = (8, 16, 32, 64)
STEPS, STEPS_WITH_PROMPTS, STEPS_OF_SMALL = 240, 480, 150
_PASSES, _PASSES_WITH_PROMPTS, _PASSES_OF_SMALL = 3, 4, 6
_PROMPTS, _PROMPTS_OF_SMALL = 2000, 400
# A recipe is a few kilobytes; a larger file is something else.
_LARGEST_RECIPE = 1 << 20


@dataclass(frozen=True)
class TranslationConfig:
    """How to carry one adapter over. The fields of other modes than `mode` are ignored."""

    mode: Mode = "compiled"
    segment: int | None = None
    """Hosted: target blocks that share one encode and one decode; None for the whole source stack."""
    readout: Readout = "words"
    """Hosted, whole stack, and compiled: what the target takes over. `words`: what the LoRA moves in the
    source's next-token distribution, by the text of the tokens. `states`: the change of the residual stream,
    through the decode heads."""
    strength: float | None = 1.0
    """Multiplies the carried change. None matches the size of the source's own effect on general text: the
    strength at which target and source change their next-token distributions equally, in nats a pair."""
    steps: int | None = None
    """Compiled: optimiser steps of a round. None takes 150 for targets of a few million parameters, and for
    larger ones 240, or 480 with example prompts, whose answers are worth more of them."""
    rounds: int = 3
    """Compiled by words, with prompts: at most so many rounds of steps. Another follows where held-out
    answers are not yet said and more than a little of the effect is missing: some skills, as to name what a
    story tells, come all at once, after hundreds of steps."""
    passes: int | None = None
    """Compiled: how often a batch is read in a round, on average. What shall be said on it is worked out
    once, by three passes through the models, where a step takes about two; and the fewer batches there are,
    the fewer answers have to be found. None takes six for targets of a few million parameters, which learn
    as much of them as of more, and for larger ones three, or four with example prompts."""
    batch_size: int = 16
    """Texts a step."""
    rank: int | None = None
    """Compiled: rank of the written LoRA; None takes the source's, at least 16, rounded up to one that vLLM
    serves."""
    learning_rate: float | None = None
    """Compiled: peak of a cosine that ends near zero, in the terms of the optimiser: Muon for targets of a
    few million parameters, AdamW for larger ones. None chooses by that; where the adapter's draws are
    read, as of one of prose, less than a third of it is taken."""
    seed: int = 0
    max_length: int = 256
    """Longest text in tokens of either model; what is longer is cut."""
    kl_weight: float = 1.0
    """Compiled: weight of the next-token term against the residual term; both are 1 for an untouched
    target."""
    hold_weight: float = 1.0
    """Compiled: weight of keeping the base's distribution where the tokenizers share no character end."""
    prompt_share: float = 0.75
    """Compiled: share of the rows of a batch that have an answer: prompts, or `moments` and `forms`."""
    answer_share: float = 0.75
    """Compiled: share of a batch's weight that falls on the adapted source's answers to `prompts`."""
    prompts_wanted: int | None = None
    """Compiled: to how many prompts a smaller number of given ones is expanded by the base models; to fewer
    for a fit of few answers. None takes 400 for targets of a few million parameters, and 2,000 for larger
    ones, which of 400 learn less."""
    moments: int = 1000
    """Compiled, without prompts: so many passages of general text, or fewer for a fit of few answers, are cut
    where the adapter acts most, and the source with its adapter goes on; a quarter of them where cues are the
    better way; see `cast.moments`."""
    forms: int = 3000
    """Compiled, without prompts: so many forms that ask for something are made of general text, or fewer for
    a fit of few answers; behind the promising ones, or what is written like them, the source with its adapter
    goes on; see `cast.forms` and `cast.exemplary`. With 0, and no `moments`, text is left as it is."""
    site_tokens: int = 10_000
    """Kernel and instant: aligned pairs on which site maps are fitted."""
    site_decode: DecodeFit | None = None
    """How the decode side of a site map is fitted; None takes what does best, see `decode_fit`."""
    site_encode: EncodeFit | None = None
    """How the encode side of a site map is fitted; an MLP is for `kernel` alone. None: see `encode_fit`."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be carried out."""
        for name, known in _CHOICES.items():
            if getattr(self, name) not in (*get_args(known), *([None] if name in _LEFT_OPEN else [])):
                choices = ", ".join(get_args(known))
                raise RequestError(f"There is no {name} {getattr(self, name)!r}; choose one of {choices}.")
        if self.strength is not None and not math.isfinite(self.strength):
            raise RequestError(f"strength is {self.strength}; it must be a finite number.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name} is {value}; it must be positive.")
        for name in ("kl_weight", "hold_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RequestError(f"{name} is {value}; it must not be negative.")
        for name in ("prompt_share", "answer_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise RequestError(f"{name} is {value}; it must be between 0 and 1.")

    @property
    def needs_heads(self) -> bool:
        """Whether the change goes through heads; what goes by words does without."""
        if self.mode == "hosted":
            return self.segment is not None or self.readout == "states"
        return self.mode != "compiled" or self.readout == "states"

    @property
    def decode_fit(self) -> DecodeFit:
        """A ridge shrinks what it is unsure of; where the maps are all there is, too little is left."""
        return self.site_decode or ("rotation" if self.mode == "instant" else "adjoint")

    @property
    def encode_fit(self) -> EncodeFit:
        """See `decode_fit`."""
        return self.site_encode or ("rotation" if self.mode == "instant" else "affine")

    @property
    def takes_heads(self) -> bool:
        """Whether heads are used where there are some: what a compiled LoRA does is measured by them."""
        return self.needs_heads or self.mode == "compiled"

    @property
    def steps_a_round(self) -> int:
        """Compiled: `steps`, or what a target takes of which nothing is known."""
        return self.steps or STEPS

    @property
    def lessons(self) -> int:
        """Compiled: how many different batches the steps read."""
        return math.ceil(self.steps_a_round / (self.passes or _PASSES))

    @property
    def answers_a_batch(self) -> int:
        """Compiled: rows of a batch that have an answer."""
        return round(self.prompt_share * self.batch_size)

    def prompts_for(self, given: int) -> int:
        """Compiled: to how many prompts so many given ones are expanded: a fit has no use for many unread."""
        wanted = _PROMPTS if self.prompts_wanted is None else self.prompts_wanted
        return max(given, min(wanted, 2 * self.lessons * self.answers_a_batch))

    def most_rounds(self, *, prompts: bool) -> int:
        """Compiled: how many rounds of steps may follow each other.

        One without prompts: what an adapter makes of general text is mostly not its skill; that it is said,
        or not, tells nothing. One to states as well: they say nothing.
        """
        return self.rounds if prompts and self.readout == "words" else 1

    @property
    def asks(self) -> bool:
        """Whether, without prompts, the adapter is asked what it makes of general text."""
        return bool(self.moments or self.forms)

    def text_kind(self, prompts: Sequence[str]) -> TextKind:
        """What a translation is fitted on, where such prompts are given."""
        if prompts:
            return "prompts"
        return "self-generated" if self.mode == "compiled" and self.asks else "general"

    def reading_as_they_stand(self, prompts: Sequence[str]) -> "TranslationConfig":
        """The same for prompts that are many already: none are made of them, nor in place of none."""
        asked = self if prompts else replace(self, moments=0, forms=0)
        return replace(asked, prompts_wanted=len(set(prompts)))

    def suited(self, *, small: bool, prompts: bool) -> "TranslationConfig":
        """The same with steps, passes and the number of prompts chosen where they were left open.

        Args:
            small: whether the target has a few million parameters.
            prompts: whether example prompts are given.
        """
        if small:
            steps, passes = STEPS_OF_SMALL, _PASSES_OF_SMALL
        elif prompts:
            steps, passes = STEPS_WITH_PROMPTS, _PASSES_WITH_PROMPTS
        else:
            steps, passes = STEPS, _PASSES
        wanted = _PROMPTS_OF_SMALL if small else _PROMPTS
        return replace(
            self,
            steps=self.steps or steps,
            passes=self.passes or passes,
            prompts_wanted=wanted if self.prompts_wanted is None else self.prompts_wanted,
        )

    def served_rank(self, source_rank: int) -> int:
        """Rank of the compiled LoRA for a source adapter of rank `source_rank`."""
        wanted = self.rank or max(source_rank, 16)
        if self.rank is not None:
            return wanted
        return next((rank for rank in SERVED_RANKS if rank >= wanted), wanted)


@dataclass(frozen=True)
class Quality:
    """How well a translation follows the carried change, measured on held-out general text."""

    fvu: float | None = None
    """Mean over depths of the unexplained share of the carried residual change: 0 is perfect, 1 is the bare
    target."""
    fvu_by_depth: Mapping[str, float] = field(default_factory=dict)
    """The same for each target depth, by its number."""
    effect_by_depth: Mapping[str, float] = field(default_factory=dict)
    """Root mean square of the adapted target's own residual change over that of the target's states, by
    depth."""
    kl_carried_base: float | None = None
    """KL(carried ‖ base target) in nats an aligned pair: the size of the effect that should arrive."""
    kl_carried_adapted: float | None = None
    """KL(carried ‖ adapted target) in nats an aligned pair: what is still missing."""
    said: float | None = None
    """Compiled: share of the held-out answers that end of which the adapted target would say each token
    behind the ones before it; None for draws and where none ends."""
    endless: bool = False
    """Compiled: whether draws were fitted on, for most of the adapter's answers do not end by themselves or,
    without prompts, it is sure of none."""
    coverage: float | None = None
    """Compiled: the kernels' input energy on the fitting text over that on their strongest tokens."""
    reach: float | None = None
    """Compiled: the adapter's effect on the fitting text over that on its strongest tokens; see
    `cast.coverage`."""
    source_effect: float | None = None
    """Compiled: KL(base ‖ adapted) of the source on the fitting text, nats a position."""
    carriers: float | None = None
    """Compiled: share of the text's positions that carry nine tenths of it."""
    strongest: tuple[str, ...] = ()
    """Compiled: tokens to which the adapter reacts most."""
    predicted: float | None = None
    """How much of the skill is expected to arrive, in [0, 1]; see `cast.prediction`."""

    @property
    def missing(self) -> float | None:
        """Share of the carried effect that held-out text does not show; 1 is the bare target."""
        if not self.kl_carried_base or self.kl_carried_adapted is None:
            return None
        return self.kl_carried_adapted / self.kl_carried_base


@dataclass(frozen=True)
class Recipe:
    """What a translation was made of; stored beside it as `cast.json`."""

    mode: Mode
    source: str
    source_fingerprint: str
    target: str
    target_fingerprint: str
    adapter: str
    """Name of the source adapter: a Hub id, a folder or `pocket:llama/mood`."""
    strength: float = 1.0
    gain: float = 1.0
    """Instant: by what the carried kernels were multiplied, so that at strength 1 they change the target's
    words on general text as much as the adapter changes the source's."""
    segment: int | None = None
    heads: str | None = None
    """Folder or id of the heads, as it was named; None for the shipped or cached ones of this pair."""
    heads_recipe: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    """Licence of the source adapter."""
    tokens: int = 0
    """Target tokens of general text that the translation was fitted on."""
    seconds: float = 0.0
    quality: Quality = field(default_factory=Quality)
    config: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the `TranslationConfig` that was used."""
    version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """This recipe as the text of `cast.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def to_config(self) -> TranslationConfig:
        """The configuration that makes this translation again.

        Raises:
            AdapterError: the recorded configuration is not one that this version knows.
        """
        known = {item.name for item in fields(TranslationConfig)}
        values = {key: value for key, value in self.config.items() if key in known}
        values |= {"mode": self.mode, "segment": self.segment, "strength": self.strength}
        try:
            return TranslationConfig(**values)
        except (TypeError, ValueError) as error:
            raise AdapterError(f"{RECIPE_FILE} holds a configuration that cannot be used: {error}") from error


def read_recipe(folder: Path) -> Recipe:
    """Read the `cast.json` of a translated adapter of any mode; the file is not trusted.

    Raises:
        AdapterError: the file is missing, too large, not JSON, of another format version, or lacks a field.
    """
    path = folder / RECIPE_FILE
    try:
        size = path.stat().st_size
        data = json.loads(path.read_text(encoding="utf-8")) if size <= _LARGEST_RECIPE else None
    except FileNotFoundError as error:
        raise AdapterError(f"{folder} holds no {RECIPE_FILE}; it is not a translated adapter.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read as JSON; translate the adapter again.") from error
    if size > _LARGEST_RECIPE:
        raise AdapterError(f"{path} is larger than any recipe; it is not a translated adapter.")
    return _recipe_of(data, path)


def _recipe_of(data: Any, path: Path) -> Recipe:
    """Check the fields one by one and build the recipe."""
    if not isinstance(data, dict):
        raise AdapterError(f"{path} is not a recipe; translate the adapter again.")
    if data.get("version") != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format version {data.get('version')!r}, this CAST reads {FORMAT_VERSION}; "
            "translate the adapter again."
        )
    values = {
        item.name: data[item.name] for item in fields(Recipe) if item.name in data and item.name != "quality"
    }
    for name, kinds in _FIELD_TYPES.items():
        if name in values and not isinstance(values[name], kinds):
            raise AdapterError(f"{path}: {name} has the wrong type; translate the adapter again.")
    if values.get("mode") not in get_args(Mode):
        raise AdapterError(
            f"{path} names an unknown mode {values.get('mode')!r}; translate the adapter again."
        )
    values["quality"] = _quality_of(data.get("quality"), path)
    try:
        return Recipe(**values)
    except TypeError as error:
        raise AdapterError(f"{path} lacks a field ({error}); translate the adapter again.") from error


def _quality_of(data: Any, path: Path) -> Quality:
    """Check what was measured: numbers, and tables of numbers by depth."""
    known = {item.name for item in fields(Quality)}
    values = {key: value for key, value in data.items() if key in known} if isinstance(data, dict) else {}
    tokens = values.pop("strongest", [])
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise AdapterError(f"{path}: quality has the wrong type; translate the adapter again.")
    for name, value in values.items():
        numbers = value.values() if name.endswith("_by_depth") and isinstance(value, dict) else [value]
        if not all(number is None or isinstance(number, int | float) for number in numbers):
            raise AdapterError(f"{path}: quality has the wrong type; translate the adapter again.")
    return Quality(**values, strongest=tuple(tokens))


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "mode": (str,),
    "source": (str,),
    "source_fingerprint": (str,),
    "target": (str,),
    "target_fingerprint": (str,),
    "adapter": (str,),
    "strength": (int, float),
    "segment": (int, type(None)),
    "heads": (str, type(None)),
    "heads_recipe": (dict,),
    "licence": (str, type(None)),
    "tokens": (int,),
    "seconds": (int, float),
    "config": (dict,),
}
