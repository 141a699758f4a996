"""One adapter carried from its source model to a target, in each of the four modes.

`compiled` and `instant` end in a plain LoRA of the target; `hosted` and `kernel` end in a recipe that needs
the source adapter at generation time. Either way the result is a `TranslatedAdapter`.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from cast import adapters
from cast.adapters import Kernel, Lora
from cast.arriving import held_out_quality
from cast.carrying import Carrier
from cast.compiling import HELD_OUT_BATCHES, compile_lora, learning_rate, starting_kernels
from cast.corpus import Passage
from cast.coverage import covered
from cast.errors import AdapterError, CorpusError, HeadsError, RequestError
from cast.exciting import excited, mostly_drawn
from cast.gain import matched_gain
from cast.goals import Goal, StatesGoal, WordsGoal
from cast.heads import HeadSet
from cast.headwords import words_of
from cast.hosting import HostedRunner
from cast.kernel_mode import KernelRunner
from cast.models import LanguageModel
from cast.prediction import expected_in_words, predicted
from cast.progress import OnProgress, Progress, ignore
from cast.recipes import RECIPE_FILE, Quality, Recipe, TranslationConfig, read_recipe
from cast.runners import PlainRunner, Runner
from cast.site_fitting import fit_site_maps
from cast.sites import SiteMaps
from cast.storage import written_folder
from cast.unprompted import unprompted
from cast.word_teacher import WordTeacher
from cast.wording import WordedRunner

__all__ = ["Recipe", "TranslatedAdapter", "TranslationConfig", "load_translated", "translate"]

# Batches of text on which the strength is matched where none is given.
_STRENGTH_BATCHES = 4
# Of the rate that suits answers which are the same each time. A draw tells of much that might have been said
# as well, and a target that knows such text better than the source is soon harmed.
_DRAWN_RATE = 0.3


@dataclass(frozen=True)
class TranslatedAdapter:
    """An adapter of the source that acts on the target."""

    recipe: Recipe
    lora: Lora | None = None
    """The plain LoRA of the target (`compiled`, `instant`); None where the source's kernels run
    themselves."""
    source_lora: Lora | None = None
    heads: HeadSet | None = None
    """What `hosted` runs through, unless it goes by words."""
    maps: SiteMaps | None = None
    """What `kernel` runs through."""

    @property
    def mode(self) -> str:
        """How it was carried over."""
        return self.recipe.mode

    def runner(self, source: LanguageModel | None, target: LanguageModel, strength: float = 1.0) -> Runner:
        """The target with this adapter acting.

        Args:
            source: the source model; only `hosted` runs it, the other modes take None.
            target: the model that is read and that writes.
            strength: factor on the change as it was translated; 0 is exactly the base.

        Raises:
            RequestError: `hosted` was given no source model.
        """
        if self.lora is not None:
            return PlainRunner(target, self.lora, strength)
        strength *= self.recipe.strength
        if self.source_lora is not None and self.maps is not None:
            return KernelRunner(target, self.source_lora, self.maps, strength)
        if source is None or self.source_lora is None:
            raise RequestError(
                "Mode hosted runs the source model beside the target; load the source as well."
            )
        if self.heads is None:
            return WordedRunner(source, self.source_lora, target, strength)
        return HostedRunner(source, self.source_lora, target, self.heads, self.recipe.segment, strength)

    def save(self, folder: Path, target: LanguageModel) -> None:
        """Write a PEFT folder with recipe and card, or for `hosted` and `kernel` recipe and card alone.

        Args:
            folder: where it shall stand; missing or empty.
            target: the model that it acts on; a PEFT folder is read back and checked against it.

        Raises:
            AdapterError: the adapter changes nothing.
            OutputError: the folder is not empty or cannot be written.
        """
        if self.lora is not None:
            adapters.write(
                self.lora, folder, target, card=card(self.recipe), extra={RECIPE_FILE: self.recipe.to_json()}
            )
            return
        if self.recipe.strength == 0:
            raise AdapterError("At strength 0 the adapter changes nothing; choose another strength.")
        with written_folder(folder) as draft:
            (draft / RECIPE_FILE).write_text(self.recipe.to_json(), encoding="utf-8")
            (draft / "README.md").write_text(card(self.recipe), encoding="utf-8")


def card(recipe: Recipe) -> str:
    """The model card of a translated adapter, in Markdown with the Hub's metadata."""
    plain = recipe.mode in {"compiled", "instant"}
    metadata = [
        "library_name: " + ("peft" if plain else "cast"),
        f"base_model: {json.dumps(recipe.target)}",
        *(["base_model_relation: adapter"] if plain else []),
        f"tags: [lora, cast, translated-adapter, {recipe.mode}]",
        *([f"license: {json.dumps(recipe.licence)}"] if recipe.licence else []),
        f"source_model: {json.dumps(recipe.source)}",
        f"source_adapter: {json.dumps(recipe.adapter)}",
    ]
    use = (
        f"It is an ordinary PEFT LoRA of `{recipe.target}`."
        if plain
        else f"It holds no weights: `{RECIPE_FILE}` says how CAST runs the source adapter in the target."
    )
    return "\n".join(
        [
            "---", *metadata, "---", "",
            f"# {recipe.adapter} for {recipe.target}", "",
            f"A LoRA that was trained on `{recipe.source}`, carried to `{recipe.target}` by CAST in mode "
            f"`{recipe.mode}` at strength {recipe.strength:g}. {use}", "",
            *_quality_lines(recipe), "",
            *expected_in_words(recipe), "",
        ]
    )  # fmt: skip


def _quality_lines(recipe: Recipe) -> list[str]:
    """What was measured, as a list in Markdown."""
    quality = recipe.quality
    if quality.kl_carried_base is None or quality.kl_carried_adapted is None:
        return []
    # A fit to words reaches them by states of the target's own.
    carried = (
        [f"- unexplained share of the carried residual change: {quality.fvu:.3f} (1 is the bare target)"]
        if quality.fvu is not None and recipe.config.get("readout") == "states"
        else []
    )
    return [
        f"Fitted on {recipe.tokens:,} tokens of text without labels. On held-out text:",
        "",
        *carried,
        f"- size of the carried effect: {quality.kl_carried_base:.4f} nats a token; still missing: "
        f"{quality.kl_carried_adapted:.4f}",
    ]


def load_translated(folder: Path) -> Recipe:
    """The recipe of a translated adapter of any mode.

    A `compiled` or `instant` folder is a PEFT folder as well: `adapters.read` gives its LoRA. For `hosted`
    and `kernel` the recipe names what `translate` needs to make the adapter again: source, adapter, heads,
    and `recipe.to_config()`.

    Raises:
        AdapterError: it holds no recipe, or one that cannot be used.
    """
    return read_recipe(folder)


def translate(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    heads: HeadSet | None,
    texts: Iterable[str],
    config: TranslationConfig | None = None,
    *,
    prompts: Sequence[str] = (),
    cache: Path | None = None,
    heads_name: str | None = None,
    on_progress: OnProgress = ignore,
) -> TranslatedAdapter:
    """Carry an adapter of `source` to `target`.

    Args:
        source: the model that the adapter was trained on.
        target: the model that it shall act on; it may be the source itself.
        lora: the source adapter.
        heads: heads from this source to this target; None where `config` does without. If they are given,
            what a compiled LoRA does to the residual stream is measured against what they carry over.
        texts: general text; at most what `config` asks for is taken, so the stream may be endless.
        config: mode and its settings; the default is `compiled`.
        prompts: unlabelled prompts; `compiled` makes a few of them more, and mixes them, with the answers of
            the source and its adapter, into the text.
        cache: folder in which fitted site maps are kept; None keeps none.
        heads_name: folder or id of the heads, for the recipe.
        on_progress: gets stages `moments`, `forms`, `generate`, `coverage`, `sites` and `compile`.

    Raises:
        HeadsError: the heads are for another pair, or leave out a depth that is needed.
        CorpusError: there is too little text.
        AdapterError: the adapter changes nothing.
    """
    config = config or TranslationConfig()
    if not config.takes_heads:
        recipe = replace(_recipe(source, target, lora, config), quality=Quality(predicted=predicted(None)))
        return TranslatedAdapter(recipe, source_lora=lora)
    if heads is None and config.needs_heads:
        raise HeadsError("This way of translating goes through heads; fit them for this pair first.")
    if heads is not None:
        heads.check(source, target)
    started = time.monotonic()
    if config.mode == "compiled":
        config = config.suited(small=target.is_small, prompts=bool(prompts))
    taken = list(islice(texts, texts_needed(config)))
    work = _Work(source, target, lora, heads, taken, tuple(prompts), config, cache, on_progress)
    if config.strength is None and config.needs_heads:
        work = replace(work, config=replace(config, strength=work.matched_strength()))
    made = _MODES[config.mode](work)
    quality = made.recipe.quality
    recipe = replace(
        made.recipe,
        quality=replace(quality, predicted=predicted(quality)),
        heads=heads_name,
        heads_recipe={} if heads is None else asdict(heads.recipe),
        seconds=round(time.monotonic() - started, 2),
    )
    return replace(made, recipe=recipe)


def texts_needed(config: TranslationConfig) -> int:
    """Most texts that a translation reads; general text is a few dozen tokens long at least."""
    fitted = (
        (config.steps_a_round + HELD_OUT_BATCHES) * config.batch_size
        if config.mode == "compiled"
        else config.site_tokens // 16
    )
    return max(fitted, _STRENGTH_BATCHES * config.batch_size)


@dataclass(frozen=True)
class _Work:
    """One translation on its way."""

    source: LanguageModel
    target: LanguageModel
    lora: Lora
    heads: HeadSet | None
    texts: Sequence[str]
    prompts: Sequence[str]
    config: TranslationConfig
    cache: Path | None
    on_progress: OnProgress

    @property
    def strength(self) -> float:
        return _strength(self.config)

    @property
    def carrier(self) -> Carrier:
        assert self.heads is not None
        return Carrier(self.source, self.target, self.lora, self.heads, self.config.max_length)

    def matched_strength(self) -> float:
        """Where the source hosted as `config` says, else as a whole, moves the target as far as itself."""
        assert self.heads is not None
        segment = self.config.segment if self.config.mode == "hosted" else None
        hosted = partial(HostedRunner, self.source, self.lora, self.target, self.heads, segment)
        texts = self.texts[: _STRENGTH_BATCHES * self.config.batch_size]
        return matched_gain(self.source, self.lora, hosted, texts, self.config)

    def site_maps(self) -> SiteMaps:
        assert self.heads is not None
        return fit_site_maps(
            self.source, self.target, self.lora, self.heads, self.texts, self.config,
            cache=self.cache, on_progress=self.on_progress,
        )  # fmt: skip

    def recipe(self, *, tokens: int = 0, quality: Quality | None = None) -> Recipe:
        made = _recipe(self.source, self.target, self.lora, self.config)
        return replace(made, tokens=tokens, quality=quality or Quality())

    def measured(self, made: TranslatedAdapter) -> TranslatedAdapter:
        """The same with what held-out text says of it; the first batch is fitted on by no mode."""
        runner, held = made.runner(self.source, self.target), self.texts[: self.config.batch_size]
        quality = held_out_quality(self.source, self.lora, runner, held, self.config, strength=self.strength)
        return replace(made, recipe=replace(made.recipe, quality=quality))

    def plain(self, kernels: tuple[Kernel, ...], recipe: Recipe) -> TranslatedAdapter:
        name = f"{self.lora.name} carried to {self.target.name}"
        lora = Lora(name, self.target.name, kernels, licence=self.lora.licence)
        return TranslatedAdapter(recipe, lora)


def _strength(config: TranslationConfig) -> float:
    return 1.0 if config.strength is None else config.strength


def _recipe(source: LanguageModel, target: LanguageModel, lora: Lora, config: TranslationConfig) -> Recipe:
    """The record of a translation before anything is fitted or measured."""
    return Recipe(
        mode=config.mode,
        source=source.name,
        source_fingerprint=source.fingerprint,
        target=target.name,
        target_fingerprint=target.fingerprint,
        adapter=lora.name,
        strength=_strength(config),
        segment=config.segment,
        licence=lora.licence,
        config=asdict(config),
    )


def _compiled(work: _Work) -> TranslatedAdapter:
    answers = answered_prompts(
        work.source, work.target, work.lora, work.prompts, work.texts, work.config,
        on_progress=work.on_progress,
    )  # fmt: skip
    said = [answer.text for answer in answers]
    shown = covered(work.source, work.lora, work.texts, said, work.config)
    work.on_progress(Progress("coverage", 1, 1, {"energy": shown.energy, "reach": shown.reach}))
    start = starting_kernels(work.target, work.config.served_rank(work.lora.rank), work.config.seed)
    drawn = mostly_drawn(answers)
    config = replace(work.config, rounds=work.config.most_rounds(prompts=bool(work.prompts)))
    if drawn:
        config = replace(config, learning_rate=_DRAWN_RATE * learning_rate(work.target, config))
    fitted = compile_lora(
        work.target, partial(_goal, work, drawn), start, work.texts, config,
        answers=answers, on_progress=work.on_progress,
    )  # fmt: skip
    quality = replace(
        fitted.quality, coverage=shown.energy, reach=shown.reach, source_effect=shown.effect,
        carriers=shown.carriers, strongest=shown.strongest,
        said=fitted.quality.said if work.prompts else None,
        endless=drawn,
    )  # fmt: skip
    return work.plain(fitted.kernels, work.recipe(tokens=fitted.tokens, quality=quality))


def answered_prompts(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    prompts: Sequence[str],
    texts: Sequence[str],
    config: TranslationConfig,
    *,
    on_progress: OnProgress = ignore,
) -> list[Passage]:
    """What a compiled fit reads beside general text, with the adapter's answers.

    It is the prompts, made more; or, without prompts, what the adapter makes of general text, or writes, by
    itself.

    Args:
        source: the adapter's model.
        target: the model that the adapter shall go to; it may write prompts as well.
        lora: the adapter.
        prompts: a few, without answers.
        texts: general text, for whose words new prompts are about.
        config: how many there shall be, and the seed.
        on_progress: gets stage `generate`, and `moments`, `forms` and `judge` without prompts.
    """
    config = config.suited(small=target.is_small, prompts=bool(prompts))
    if not prompts:
        fitted = texts[HELD_OUT_BATCHES * config.batch_size :]
        return unprompted(source, target, lora, fitted, config, on_progress=on_progress)
    return excited(
        source, lora, prompts, config.prompts_for(len(prompts)),
        target=target, words=words_of(texts, source), seed=config.seed, on_progress=on_progress,
    )  # fmt: skip


def _goal(work: _Work, drawn: bool, held: Sequence[Sequence[Passage]]) -> Goal:
    """What a compiled translation is fitted to, as the recipe says."""
    config = work.config
    if config.readout == "states":
        return StatesGoal(work.carrier, held, config, work.strength)
    teacher = WordTeacher(work.source, work.target, work.lora, config, strength=work.strength, drawn=drawn)
    return WordsGoal(teacher, held, _watched(work, held))


def _watched(work: _Work, held: Sequence[Sequence[Passage]]) -> StatesGoal | None:
    """The states' goal, for the record of a fit by words; None where heads are missing or do not tell."""
    if work.heads is None:
        return None
    try:
        return StatesGoal(work.carrier, held, work.config, work.strength)
    except (AdapterError, CorpusError, HeadsError):
        # Heads of some depths, or an adapter whose words move and whose carried states do not.
        return None


def _instant(work: _Work) -> TranslatedAdapter:
    maps, recipe = work.site_maps(), work.recipe(tokens=work.config.site_tokens)
    carried = Lora(work.lora.name, work.target.name, maps.instant(work.lora))
    # Of the texts that no site map is fitted on.
    held = work.texts[: work.config.batch_size]
    gain = matched_gain(work.source, work.lora, partial(PlainRunner, work.target, carried), held, work.config)
    kernels = maps.instant(work.lora, gain * work.strength)
    return work.measured(work.plain(kernels, replace(recipe, gain=gain)))


def _hosted(work: _Work) -> TranslatedAdapter:
    return TranslatedAdapter(work.recipe(), source_lora=work.lora, heads=work.heads)


def _kernel(work: _Work) -> TranslatedAdapter:
    recipe = work.recipe(tokens=work.config.site_tokens)
    return work.measured(TranslatedAdapter(recipe, source_lora=work.lora, maps=work.site_maps()))


_MODES: dict[str, Callable[[_Work], TranslatedAdapter]] = {
    "compiled": _compiled,
    "instant": _instant,
    "hosted": _hosted,
    "kernel": _kernel,
}
