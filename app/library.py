"""The page's backend on the real library.

torch, transformers and the rest are imported inside the methods: the page answers before any of them is
loaded.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from app.backend import Turns
from app.expanding import expanded, more_prompts, translation_config
from app.facts import (
    NO_HEADS,
    AdapterFacts,
    DepthFacts,
    Drawn,
    Expansion,
    FitRequest,
    HeadsFacts,
    LayerFacts,
    LoadRequest,
    MapRequest,
    ModelFacts,
    Opened,
    Option,
    Room,
    SamplingChoice,
    SiteFacts,
    TokenMark,
    TranslateRequest,
)
from app.runs import EvaluateRequest, TaskFacts, Told
from app.searching import hit_label
from app.workspace import PLAIN_MODES, Selection
from cast.progress import OnProgress, Progress

if TYPE_CHECKING:
    from cast.adapters import Lora
    from cast.estimates import Shape
    from cast.fitting import FitConfig
    from cast.marking import Alternatives
    from cast.models import LanguageModel
    from cast.pipeline import FoundHeads
    from cast.pocket.tasks import Task
    from cast.runners import Runner
    from cast.translate import TranslatedAdapter

_EXAMPLES = 6
_HINTS = 5
_SAVE_SECONDS = 10.0


class CastBackend:
    """See `app.backend.Backend`."""

    def __init__(self) -> None:
        self._importing = threading.Lock()
        self._imported = False

    # What can be chosen

    def models(self) -> Sequence[Option]:
        """The pocket models that are shipped."""
        from cast.pocket import registry

        return [Option(f"pocket:{name}", f"pocket:{name}") for name in registry.models()]

    def adapters(self, source: str) -> Sequence[Option]:
        """The shipped adapters of a pocket model; none for any other model."""
        from cast.pocket import registry
        from cast.pocket.tasks import TASKS

        if source.removeprefix(registry.PREFIX) not in registry.models() or not registry.is_pocket(source):
            return []
        shipped = registry.adapters(source.removeprefix(registry.PREFIX))
        return [Option(a.name, f"{a.task}: {TASKS[a.task].description}") for a in shipped]

    def prompts(self, adapter: str) -> Sequence[str]:
        """Test prompts of the tasks of shipped adapters; none for any other."""
        return [example.prompt for task in _tasks(adapter) for example in task.test(_EXAMPLES)]

    def hints(self, adapter: str) -> Sequence[str]:
        """Training prompts of the tasks of shipped adapters; none for any other."""
        return [example.prompt for task in _tasks(adapter) for example in task.train(_HINTS)]

    def search_models(self, words: str) -> Sequence[Option]:
        """Models for text on the Hub."""
        from cast import hub

        return [Option(hit.repo_id, hit_label(hit)) for hit in hub.search_models(words)]

    def search_adapters(self, source: str, words: str) -> Sequence[Option]:
        """Adapters of a Hub model that their own configuration confirms."""
        from cast import hub

        return [Option(hit.repo_id, hit_label(hit)) for hit in hub.search_adapters(source, words)]

    def describe(self, name: str) -> ModelFacts:
        """Facts of a model from its configuration and tokenizer."""
        self.warm()
        from cast.checkpoints import is_remote
        from cast.hub import is_cached
        from cast.models import describe

        found = describe(name)
        remote = found.weight_bytes if is_remote(name) and not is_cached(name) else 0
        return ModelFacts(
            name, found.family, found.width, found.depth, found.vocabulary, found.parameters, found.tokenizer,
            found.heads, remote, found.licence or "",
        )  # fmt: skip

    def room(self, source: ModelFacts, target: ModelFacts) -> Room:
        """The device and the number types that `cast.models.load` picks."""
        self.warm()
        from cast.devices import available_memory, pick_device
        from cast.models import default_dtype

        device = pick_device()
        first, second = (
            m.parameters * default_dtype(device, m.parameters).itemsize for m in (source, target)
        )
        return Room(str(device), first, second, available_memory(device))

    def fit_seconds(self, request: FitRequest, source: ModelFacts, target: ModelFacts) -> float:
        """By `cast.estimates`."""
        self.warm()
        from cast.estimates import fit_seconds

        return fit_seconds(_shape(source), _shape(target), _fit_config(request))

    def translate_seconds(self, request: TranslateRequest, source: ModelFacts, target: ModelFacts) -> float:
        """By `cast.estimates`."""
        self.warm()
        from cast.estimates import translate_seconds

        return translate_seconds(
            _shape(source),
            _shape(target),
            translation_config(request),
            prompts=len(request.prompts),
            expand=request.expand,
        )

    def inspect(self, adapter: str, source: str) -> AdapterFacts:
        """Facts of an adapter, or of several at once, with the size of its change in each block."""
        self.warm()
        from cast.adapter_blocks import changes_by_block
        from cast.adapter_files import inspect, names_in, open_folder
        from cast.checkpoints import is_remote

        names = names_in(adapter)
        found = [inspect(name) for name in names]
        modules = tuple(sorted({module for summary in found for module in summary.modules}))
        if is_remote(adapter) and found[0].layers == self.describe(source).depth:
            # Every block is adapted: nothing has to be fetched to know where.
            sites = tuple(SiteFacts(block, modules) for block in range(1, found[0].layers + 1))
        else:
            changes = changes_by_block([open_folder(name) for name in names])
            sites = tuple(SiteFacts(change.block, change.modules, change.share) for change in changes)
        licences = ", ".join(dict.fromkeys(summary.licence for summary in found if summary.licence))
        rank = sum(max(summary.ranks) for summary in found)
        return AdapterFacts(adapter, rank, modules, licences, sites, found[0].base_model)

    def opened(self, name: str) -> Opened | None:
        """The recipe of a translated folder."""
        from cast.recipes import RECIPE_FILE, read_recipe

        try:
            folder = Path(name).expanduser()
            written = (folder / RECIPE_FILE).stat().st_mtime_ns if name else None
        except (OSError, RuntimeError, ValueError):
            # No such folder, a home that is nobody's, or no path at all.
            return None
        if written is None:
            return None
        recipe = read_recipe(folder)
        selection = Selection.of(recipe.source, recipe.target, recipe.adapter, recipe.mode, recipe.segment)
        plain = recipe.mode in PLAIN_MODES
        return Opened(str(folder), selection, 1.0 if plain else recipe.strength, written)

    def warm(self) -> None:
        """Import what the buttons need, in one thread: transformers breaks when two import it at once."""
        with self._importing:
            if self._imported:
                return
            import cast.generation
            import cast.layerwise
            import cast.manifold
            import cast.pipeline  # noqa: F401

            self._imported = True

    def warm_maps(self) -> None:
        """Compile what UMAP runs: it would be the longest wait of a first map."""
        from cast.progress import ignore
        from cast.umap_layout import prepare

        prepare(ignore)

    # Models and what acts on them

    def load(self, name: str) -> object:
        """A model by any of the names that `cast.models.load` takes."""
        self.warm()
        from cast.models import load

        return load(name)

    def read_adapter(self, adapter: str, model: object) -> object:
        """An adapter, checked against its model."""
        from cast.adapters import read

        return read(adapter, cast("LanguageModel", model))

    def find_heads(self, source: object, target: object) -> object | None:
        """Shipped or cached heads of a pair."""
        from cast.pipeline import find_heads

        return find_heads(cast("LanguageModel", source), cast("LanguageModel", target))

    def heads_facts(self, heads: object) -> HeadsFacts:
        """What `heads.json` says of the heads' quality; the decode side, through which changes arrive."""
        found = cast("FoundHeads", heads).heads
        depths = tuple(
            DepthFacts(
                depth=q.depth,
                source_depth=q.source_depth,
                r_squared=q.decode.r_squared.value,
                cosine=q.decode.cosine.value,
                knn_overlap=q.decode.knn_overlap.value,
                cka=q.decode.cka.value,
                r_squared_control=q.decode.r_squared.control,
                cosine_control=q.decode.cosine.control,
                knn_overlap_control=q.decode.knn_overlap.control,
                cka_control=q.decode.cka.control,
            )
            for q in found.quality
        )
        recipe = found.recipe
        return HeadsFacts(recipe.kind, recipe.corpus, recipe.tokens, tuple(found.layer_map.table), depths)

    def shipped_folder(self, selection: Selection) -> Path | None:
        """The compiled translation that is shipped for a showcase adapter, if any."""
        from cast.pocket import registry

        names = (selection.source, selection.target, selection.adapter)
        if selection.mode != "compiled" or not all(registry.is_pocket(name) for name in names):
            return None
        source, to = (name.removeprefix(registry.PREFIX) for name in names[:2])
        # Several at once, or one of another model, are not what is shipped.
        skill = selection.adapter.removeprefix(f"{selection.source}/")
        folder = registry.compiled_folder(source, skill, to)
        return folder if "/" not in skill and (folder / "cast.json").is_file() else None

    def shipped_translation(self, selection: Selection, target: object) -> object | None:
        """What `shipped_folder` holds."""
        from cast.adapters import read
        from cast.translate import TranslatedAdapter, load_translated

        folder = self.shipped_folder(selection)
        if folder is None:
            return None
        return TranslatedAdapter(load_translated(folder), read(str(folder), cast("LanguageModel", target)))

    def reopened(self, opened: Opened, source: object, target: object) -> object:
        """What an opened folder holds; heads are found, never fitted: that is a job of its own."""
        from cast.errors import HeadsError
        from cast.pipeline import find_heads, heads_named, reopened
        from cast.recipes import read_recipe

        folder = Path(opened.folder)
        models = cast("LanguageModel", source), cast("LanguageModel", target)
        if opened.is_plain:
            return reopened(folder, *models)
        heads = find_heads(*models, heads_named(read_recipe(folder)))
        if heads is None:
            raise HeadsError(NO_HEADS)
        made = reopened(folder, *models, heads=heads)
        return replace(made, recipe=replace(made.recipe, strength=1.0))

    def plain_runner(self, model: object, lora: object | None, strength: float = 1.0) -> object:
        """A model by itself or with a LoRA of its own."""
        from cast.runners import PlainRunner

        return PlainRunner(cast("LanguageModel", model), cast("Lora | None", lora), strength)

    def hosted_runner(
        self,
        source: object,
        target: object,
        lora: object,
        heads: object | None,
        segment: int | None,
        strength: float,
    ) -> object:
        """The target with the whole source beside it, or with the source's own blocks inside it."""
        from cast.hosting import HostedRunner
        from cast.wording import WordedRunner

        models = cast("LanguageModel", source), cast("Lora", lora), cast("LanguageModel", target)
        if segment is None:
            return WordedRunner(*models, strength)
        return HostedRunner(*models, cast("FoundHeads", heads).heads, segment, strength)

    def carried_runner(self, carried: object, source: object, target: object, strength: float) -> object:
        """The target with a translated adapter."""
        translated = cast("TranslatedAdapter", carried)
        return translated.runner(cast("LanguageModel", source), cast("LanguageModel", target), strength)

    def stream(self, runner: object, prompt: str, sampling: SamplingChoice) -> Iterator[str]:
        """The continuation of a prompt, piece by piece."""
        from cast.generation import Sampling, generate

        settings = Sampling(
            max_new_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            stop="\n" if sampling.one_line else None,
        )
        return generate(cast("Runner", runner), prompt, settings)

    def marks(self, adapted: object, base: object, prompt: str, answer: str) -> Sequence[TokenMark]:
        """What an adapter changed in an answer, by teacher forcing."""
        from cast.marking import token_changes

        return [
            TokenMark(
                told.text, told.change,
                f"With the adapter: {_likely(told.likely_with)}\n"
                f"Without: {_likely(told.likely_without)}",
            )
            for told in token_changes(cast("Runner", adapted), cast("Runner", base), prompt, answer)
        ]  # fmt: skip

    # Long work

    def fit(self, request: FitRequest, folder: Path, on_progress: OnProgress) -> object:
        """Train heads on models of its own."""
        self.warm()
        from cast.interrupting import interruptible
        from cast.models import load
        from cast.pipeline import FoundHeads, fit

        source, target = (
            load(name, on_progress=on_progress) for name in (request.pair.source, request.pair.target)
        )
        with interruptible((source, target), on_progress) as told:
            heads = fit(
                source, target, folder, text=request.corpus or None, config=_fit_config(request),
                resume=True, on_progress=told,
            )  # fmt: skip
        return FoundHeads(heads, folder)

    def load_heads(self, request: LoadRequest, folder: Path, on_progress: OnProgress) -> object:
        """Heads in a folder or on the Hub, copied: what is on the disk of others may change."""
        self.warm()
        from cast.models import load
        from cast.pipeline import FoundHeads, open_heads

        on_progress(Progress("load", 0, 1))
        found = open_heads(request.name)
        found.check(
            *(load(name, on_progress=on_progress) for name in (request.pair.source, request.pair.target))
        )
        found.save(folder)
        return FoundHeads(found, folder)

    def read_heads(self, folder: Path) -> object:
        """Heads in a folder of the page's own."""
        self.warm()
        from cast.heads import HeadSet
        from cast.pipeline import FoundHeads

        return FoundHeads(HeadSet.load(folder), folder)

    def heads_folder(self, heads: object) -> Path:
        """The folder that they were found in."""
        return cast("FoundHeads", heads).folder

    def translate(
        self, request: TranslateRequest, heads: object | None, folder: Path, on_progress: OnProgress
    ) -> object:
        """Translate on models of its own, with the visitor's heads or those of the pair."""
        self.warm()
        from cast.adapters import read
        from cast.interrupting import interruptible
        from cast.models import load
        from cast.pipeline import translate_adapter

        chosen = request.selection
        source, target = (load(name, on_progress=on_progress) for name in (chosen.source, chosen.target))
        config = translation_config(request)
        found = cast("FoundHeads | None", heads or self.find_heads(source, target))
        with interruptible((source, target), on_progress) as told:
            carried = translate_adapter(
                source, target, read(chosen.adapter, source), config,
                heads=found, text=found.heads.recipe.corpus if found else None, prompts=request.prompts,
                on_progress=told,
            )  # fmt: skip
        carried.save(folder, target)
        return carried

    def prediction(self, translated: object, *, prompted: bool) -> tuple[str, ...]:
        """By `cast.prediction`."""
        from cast.prediction import expected_in_words

        recipe = cast("TranslatedAdapter", translated).recipe
        return tuple(expected_in_words(recipe, more_prompts(given=prompted)))

    def expand(self, request: TranslateRequest, heads: object | None, on_progress: OnProgress) -> Expansion:
        """What the fit of a translation would read."""
        self.warm()
        return expanded(request, cast("FoundHeads | None", heads), on_progress)

    def tasks(self) -> Sequence[Option]:
        """The pocket zoo's tasks."""
        from cast.pocket.registry import PREFIX
        from cast.pocket.tasks import TASKS

        return [Option(f"{PREFIX}{task.name}", f"{task.name}: {task.description}") for task in TASKS.values()]

    def task(self, name: str, limit: int) -> TaskFacts:
        """A pocket task, or a JSONL file."""
        self.warm()
        from cast.evaluate import read_task

        found = read_task(name, limit=limit)
        return TaskFacts(found.name, len(found.examples), found.metric)

    def compare(
        self, request: EvaluateRequest, heads: object | None, on_progress: OnProgress
    ) -> Iterator[Told]:
        """What `cast compare` does, told one method at a time."""
        self.warm()
        from app.measuring import measured

        return measured(request, cast("FoundHeads | None", heads), on_progress)

    def publish(self, folder: Path, repo: str, token: str, private: bool) -> str:
        """Publish a folder with the visitor's token."""
        from cast.hub import push

        return push(folder, repo, token, private=private)

    def maps(
        self, source: object, target: object, heads: object | None, lora: object | None,
        translated: object | None, request: MapRequest, turns: Turns, on_progress: OnProgress,
    ) -> Iterator[Drawn]:  # fmt: skip
        """What `cast manifold` draws."""
        from app.mapping import drawn_maps

        found = cast("FoundHeads", heads).heads if heads is not None else None
        return drawn_maps(
            cast("LanguageModel", source), cast("LanguageModel", target), found, cast("Lora | None", lora),
            cast("Runner | None", translated), request, turns, on_progress,
        )  # fmt: skip

    def layers(
        self, source: object, target: object, heads: object | None, turns: Turns, on_progress: OnProgress
    ) -> LayerFacts:
        """What `cast layers` measures."""
        from app.mapping import measured_layers

        found = cast("FoundHeads", heads).heads if heads is not None else None
        models = cast("LanguageModel", source), cast("LanguageModel", target)
        return measured_layers(*models, found, turns, on_progress)


def _likely(tokens: "Alternatives") -> str:
    """The likeliest first, and whatever else has half a percent."""
    named = [told for place, told in enumerate(tokens) if not place or told[1] >= 0.005]
    return ", ".join(f"{token.strip() or repr(token)} {100 * share:.0f} %" for token, share in named)


def _shape(facts: ModelFacts) -> "Shape":
    from cast.estimates import Shape

    return Shape(facts.width, facts.depth, facts.vocabulary, facts.parameters)


def _fit_config(request: FitRequest) -> "FitConfig":
    from cast.fitting import FitConfig

    chosen = request.options
    given = {**asdict(chosen), "depths": chosen.depths or None, "learning_rate": chosen.learning_rate or None}
    kind: Literal["affine", "mlp"] = "affine" if request.kind == "affine" else "mlp"
    return FitConfig(kind=kind, tokens=request.tokens, save_seconds=_SAVE_SECONDS, **given)


def _tasks(adapter: str) -> "list[Task]":
    """The tasks of a shipped adapter, or of several at once."""
    from cast.adapter_files import names_in
    from cast.pocket import registry
    from cast.pocket.tasks import TASKS

    shipped = [name.rsplit("/", 1)[-1] for name in names_in(adapter) if registry.is_pocket(name)]
    return [TASKS[skill] for skill in shipped if skill in TASKS]
