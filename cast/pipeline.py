"""The whole way, in one readable function each: fit heads, translate an adapter, open it again.

The command line, the page and the benchmarks call these; each step is a module of its own below.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cast import adapters, corpus, hub, models, translate
from cast.adapter_config import CONFIG as ADAPTER_CONFIG
from cast.adapters import Lora
from cast.checkpoints import looks_like_path
from cast.errors import AdapterError, HeadsError
from cast.fitting import FitConfig, fit_heads
from cast.heads import HeadSet
from cast.models import LanguageModel
from cast.pocket import registry
from cast.progress import OnProgress, ignore
from cast.recipes import RECIPE_FILE, Recipe, TranslationConfig, read_recipe
from cast.runners import PlainRunner, Runner
from cast.storage import cache_folder, check_output_folder
from cast.translate import TranslatedAdapter

POCKET_CORPUS = "pocket"
HUB_CORPUS = "Salesforce/wikitext"
"""General text for models that are not of the pocket zoo, where the user names none."""


@dataclass(frozen=True)
class FoundHeads:
    """Heads that are there already, and the folder that they came from."""

    heads: HeadSet
    folder: Path


def default_corpus(source: LanguageModel, target: LanguageModel) -> str:
    """The story world for a pair of pocket models, else a dataset of plain English prose on the Hub."""
    pocket = registry.is_pocket(source.name) and registry.is_pocket(target.name)
    return POCKET_CORPUS if pocket else HUB_CORPUS


def fit(
    source: LanguageModel,
    target: LanguageModel,
    out: Path,
    *,
    text: str | None = None,
    config: FitConfig | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore,
) -> HeadSet:
    """Train the heads of a pair of models on general text and save them.

    Args:
        source: the model whose adapters shall be carried.
        target: the model that shall receive them.
        out: folder for the heads; missing or empty.
        text: corpus, as `corpus.general_text` takes it; see `default_corpus`.
        config: how to fit.
        resume: go on from the checkpoint that an interrupted fit left beside `out`.
        on_progress: see `fit_heads`.

    Raises:
        OutputError: `out` is not empty or cannot be written.
        CorpusError: the text is missing or too short.
    """
    check_output_folder(out)
    text = text or default_corpus(source, target)
    config = replace(config or FitConfig(), corpus=text)
    checkpoint = out.with_name(f".{out.name}.unfinished")
    if checkpoint.exists() and not resume:
        raise HeadsError(
            f"An unfinished fit lies in {checkpoint}; go on with --resume, or delete it to start anew."
        )
    heads = _fitted(source, target, config, checkpoint, on_progress)
    heads.save(out)
    return heads


def find_heads(source: LanguageModel, target: LanguageModel, folder: Path | None = None) -> FoundHeads | None:
    """Heads of this pair: those in `folder`, else the shipped ones, else cached ones, else None.

    Raises:
        HeadsError: `folder` was named and holds no heads of this pair; see `open_heads`, it may be a Hub id.
        HubError: it is one, and cannot be fetched.
    """
    if folder is not None:
        return _opened(folder, source, target)
    for place in (_shipped_heads(source, target), _cached_heads(source, target)):
        if place is None or not place.is_dir():
            continue
        try:
            return _opened(place, source, target)
        except HeadsError:
            # Left by other weights or another version; fitted anew.
            continue
    return None


def heads_for(
    source: LanguageModel,
    target: LanguageModel,
    folder: Path | None = None,
    *,
    text: str | None = None,
    on_progress: OnProgress = ignore,
) -> FoundHeads:
    """Find heads of this pair, or fit them once and keep them in the cache."""
    if found := find_heads(source, target, folder):
        return found
    place = _cached_heads(source, target)
    checkpoint = place.with_name(f".{place.name}.unfinished")
    config = FitConfig(corpus=text or default_corpus(source, target))
    heads = _fitted(source, target, config, checkpoint, on_progress)
    heads.save(place, replace=True)
    return FoundHeads(heads, place)


def open_heads(name: str) -> HeadSet:
    """The heads in a folder on this machine, else in a repository on the Hub.

    Raises:
        HeadsError: there is no such folder, or what it holds cannot be used.
        HubError: the Hub has none of that name, or cannot be reached.
    """
    try:
        folder = Path(name).expanduser()
        is_here = folder.exists()
    except (OSError, RuntimeError):
        # A home that is nobody's, or no path at all.
        is_here = False
    if is_here:
        return HeadSet.load(folder)
    if looks_like_path(name):
        raise HeadsError(f"There is no folder {name}; check the path, or name a Hub id.")
    fetched = hub.download(name, kind="heads")
    try:
        return HeadSet.load(fetched)
    except HeadsError as error:
        # Where a server keeps what it fetches says nothing to who named a repository.
        raise HeadsError(str(error).replace(str(fetched), name)) from error


def translate_adapter(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    config: TranslationConfig | None = None,
    *,
    heads: FoundHeads | None = None,
    text: str | None = None,
    prompts: Sequence[str] = (),
    on_progress: OnProgress = ignore,
) -> TranslatedAdapter:
    """Carry an adapter of the source to the target; heads are found, or fitted first if it takes some.

    Args:
        source: the model that the adapter was trained on.
        target: the model that shall have the skill.
        lora: the source adapter.
        config: mode and its settings; the default is `compiled`.
        heads: heads of this pair.
        text: corpus of general text; see `default_corpus`.
        prompts: unlabelled prompts to mix in.
        on_progress: gets the stages of the fit and of the translation.
    """
    config = config or TranslationConfig()
    if not config.takes_heads:
        return translate.translate(source, target, lora, None, (), config)
    found = heads or find_heads(source, target)
    if found is None and config.needs_heads:
        found = heads_for(source, target, text=text, on_progress=on_progress)
    return translate.translate(
        source,
        target,
        lora,
        found.heads if found else None,
        fitting_text(source, target, config, text, prompts=bool(prompts)),
        config,
        prompts=prompts,
        cache=cache_folder() / "sites",
        heads_name=heads_name(found) if found else None,
        on_progress=on_progress,
    )


def fitting_text(
    source: LanguageModel,
    target: LanguageModel,
    config: TranslationConfig,
    text: str | None = None,
    *,
    prompts: bool,
) -> list[str]:
    """The passages of general text that a translation reads: of another stretch than heads are fitted on.

    Args:
        source: the source model.
        target: the target model.
        config: how many they are, and the seed.
        text: corpus; see `default_corpus`.
        prompts: whether example prompts are given.
    """
    passages = corpus.general_text(text or default_corpus(source, target), seed=config.seed + 1)
    suited = config.suited(small=target.is_small, prompts=prompts)
    return list(islice(passages, translate.texts_needed(suited)))


def heads_name(found: FoundHeads) -> str | None:
    """How a recipe names these heads: the folder that a user gave; None for shipped and cached ones."""
    own = {registry.assets_folder() / "heads", cache_folder() / "heads"}
    return None if found.folder.parent in own else str(found.folder)


def open_adapter(
    name: str | Path,
    lm: LanguageModel,
    *,
    strength: float = 1.0,
    token: str | None = None,
    on_progress: OnProgress = ignore,
) -> Runner:
    """A model with an adapter acting on it: a folder, a Hub id, a pocket name or a translated folder.

    A folder of mode `hosted` or `kernel` holds a recipe only: its source and adapter are loaded as well.

    Raises:
        AdapterError: it cannot be read, or was made for another model.
    """
    folder = Path(name)
    if (folder / RECIPE_FILE).is_file() and not (folder / ADAPTER_CONFIG).is_file():
        return open_recipe(folder, lm, strength=strength, token=token, on_progress=on_progress)
    return PlainRunner(lm, adapters.read(name, lm, token=token), strength)


def open_recipe(
    folder: Path,
    target: LanguageModel,
    *,
    strength: float = 1.0,
    token: str | None = None,
    on_progress: OnProgress = ignore,
) -> Runner:
    """Run a `hosted` or `kernel` folder again; its source is loaded, and heads are fitted where none are.

    Raises:
        AdapterError: the recipe was made for another target, or its source model has changed since.
    """
    recipe = read_recipe(folder)
    _check_target(recipe, folder, target)
    source = models.load(recipe.source, dtype=target.dtype, device=target.device, token=token)
    made = reopened(folder, source, target, token=token, on_progress=on_progress)
    return made.runner(source, target, strength)


def reopened(
    folder: Path,
    source: LanguageModel,
    target: LanguageModel,
    *,
    heads: FoundHeads | None = None,
    token: str | None = None,
    on_progress: OnProgress = ignore,
) -> TranslatedAdapter:
    """What a translated folder of any mode holds, made again where it holds a recipe only.

    Args:
        folder: what `cast translate` or the page wrote.
        source: the model that its recipe names as source; only `hosted` and `kernel` use it.
        target: the model that its recipe names as target.
        heads: heads of this pair; found, or fitted first, where a recipe needs them.
        token: Hub token for the source adapter.
        on_progress: gets the stages of the fit and of the translation.

    Raises:
        AdapterError: the folder cannot be read, was made for another target, or its source has changed.
    """
    recipe = read_recipe(folder)
    _check_target(recipe, folder, target)
    if (folder / ADAPTER_CONFIG).is_file():
        return TranslatedAdapter(recipe, adapters.read(folder, target, token=token))
    if recipe.source_fingerprint != source.fingerprint:
        raise AdapterError(
            f"{recipe.source} has changed since {folder} was made from it; translate the adapter again."
        )
    lora = adapters.read(recipe.adapter, source, token=token)
    config, found = recipe.to_config(), heads
    if config.needs_heads:
        found = found or heads_for(source, target, heads_named(recipe), on_progress=on_progress)
    return translate_adapter(
        source, target, lora, config, heads=found, text=found.heads.recipe.corpus if found else None,
        on_progress=on_progress,
    )  # fmt: skip


def heads_named(recipe: Recipe) -> Path | None:
    """The folder of a user's own heads that a recipe names; None for the pair's shipped or cached ones."""
    return Path(recipe.heads) if recipe.heads else None


def _check_target(recipe: Recipe, folder: Path, target: LanguageModel) -> None:
    if recipe.target_fingerprint != target.fingerprint:
        raise AdapterError(
            f"{folder} was translated for {recipe.target}, which is not this model; "
            f"translate it for {target.name}."
        )


def _fitted(
    source: LanguageModel,
    target: LanguageModel,
    config: FitConfig,
    checkpoint: Path,
    on_progress: OnProgress,
) -> HeadSet:
    """Heads fitted on the text that `config.corpus` names."""
    passages = corpus.general_text(config.corpus, seed=config.seed)
    return fit_heads(source, target, passages, config, checkpoint=checkpoint, on_progress=on_progress)


def _opened(folder: Path, source: LanguageModel, target: LanguageModel) -> FoundHeads:
    """Heads of that name, once they are known to be this pair's."""
    heads = open_heads(str(folder))
    heads.check(source, target)
    return FoundHeads(heads, folder)


def _shipped_heads(source: LanguageModel, target: LanguageModel) -> Path | None:
    if not (registry.is_pocket(source.name) and registry.is_pocket(target.name)):
        return None
    names = (lm.name.removeprefix(registry.PREFIX) for lm in (source, target))
    return registry.heads_folder(*names)


def _cached_heads(source: LanguageModel, target: LanguageModel) -> Path:
    return cache_folder() / "heads" / f"{source.fingerprint[:16]}-to-{target.fingerprint[:16]}"
