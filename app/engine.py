"""Everything the page does, without the page: shared models, text, maps, and background jobs.

Models are loaded on demand, are read-only to visitors and shared between them (see `app.streams`). A job that
trains takes models of its own, so it never stops a stream.
"""

import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from app.backend import (
    AdapterFacts,
    Backend,
    FitRequest,
    HeadsFacts,
    JointMap,
    ModelFacts,
    Option,
    SamplingChoice,
    TranslateRequest,
)
from app.cache import Cache
from app.jobs import Job, Jobs, JobState
from app.picture import relative_layer_map
from app.showcase import Showcase
from app.streams import Loaded, held, interleaved
from app.views import PANES, Pane
from app.workspace import Pair, Selection
from cast.errors import CastError, HeadsError, RequestError
from cast.progress import OnProgress, Progress

logger = logging.getLogger(__name__)

_MAX_PROMPT = 4000


@dataclass(frozen=True)
class PairFacts:
    """What the page shows of a choice before anything heavy is loaded."""

    source: ModelFacts
    target: ModelFacts
    adapter: AdapterFacts | None


@dataclass(frozen=True)
class HeadsResult:
    """What a *Train heads* job leaves behind."""

    pair: Pair
    heads: object


@dataclass(frozen=True)
class TranslateResult:
    """What a *Translate* job leaves behind."""

    selection: Selection
    carried: object
    archive: Path


@dataclass(frozen=True)
class GenerateRequest:
    """One press of *Generate*: job ids name what this visitor has made, and may be empty."""

    selection: Selection
    strength: float
    prompt: str
    sampling: SamplingChoice
    translate_job: str = ""
    heads_job: str = ""


class Engine:
    """The page's only way to models; one for all visitors, made in `app.ui.build`."""

    def __init__(
        self, backend: Backend, jobs: Jobs, folder: Path, showcase: Showcase | None, max_models: int = 4
    ) -> None:
        self._backend = backend
        self._jobs = jobs
        self._folder = folder
        self._models: Cache[Loaded] = Cache(max_models)
        self._adapters: Cache[object] = Cache(32)
        self._heads: Cache[object | None] = Cache(8)
        self._shipped: Cache[object | None] = Cache(32)
        self._model_facts: Cache[ModelFacts] = Cache(256)
        self._adapter_facts: Cache[AdapterFacts] = Cache(256)
        self.showcase = showcase
        if showcase:
            self._model_facts.put(showcase.source.name, showcase.source)
            self._model_facts.put(showcase.target.name, showcase.target)
            self._adapter_facts.put((showcase.adapter.name, showcase.source.name), showcase.adapter)

    # What can be chosen

    def models(self) -> tuple[Option, ...]:
        """The models that are offered at once; any Hub id or folder may be typed as well."""
        return tuple(self._backend.models())

    def adapters(self, source: str) -> tuple[Option, ...]:
        """The shipped adapters of a source model."""
        return tuple(self._backend.adapters(source))

    def is_shipped(self, adapter: str) -> bool:
        """Whether an adapter is one of those offered for some model."""
        return any(adapter == mine.name for model in self.models() for mine in self.adapters(model.name))

    def prompts(self, adapter: str) -> tuple[str, ...]:
        """Prompts on which a shipped adapter shows its effect."""
        return tuple(self._backend.prompts(adapter))

    def search(self, source: str) -> tuple[Option, ...]:
        """Adapters of a Hub model, most downloaded first."""
        return tuple(self._backend.search(source))

    def facts(self, selection: Selection) -> PairFacts:
        """Describe the chosen models and adapter from their configurations; no weights are read."""
        if not selection.source or not selection.target:
            raise RequestError("Choose a source model and a target model first.")
        source, target = self._describe(selection.source), self._describe(selection.target)
        if not selection.adapter:
            return PairFacts(source, target, None)
        adapter = self._adapter_facts.get(
            (selection.adapter, selection.source),
            lambda: self._backend.inspect(selection.adapter, selection.source),
        )
        return PairFacts(source, target, adapter)

    def knows(self, selection: Selection) -> bool:
        """Whether `facts` answers at once, with nothing to import or to read."""
        names = (selection.source, selection.target)
        adapter = (selection.adapter, selection.source)
        return all(self._model_facts.peek(name) for name in names) and (
            not selection.adapter or self._adapter_facts.peek(adapter) is not None
        )

    def layer_map(self, facts: PairFacts) -> tuple[int, ...]:
        """The source depth of each target depth: the recorded heads' own, else by equal relative depth."""
        example = self.showcase
        if example and example.heads and example.pair == Pair(facts.source.name, facts.target.name):
            return example.heads.layer_map
        return relative_layer_map(facts.source.depth, facts.target.depth)

    def is_at_hand(self, name: str) -> bool:
        """Whether a model is loaded, or ships with the program and loads in a moment."""
        return self._models.peek(name) is not None or any(name == shipped.name for shipped in self.models())

    def heads_facts(self, pair: Pair, heads_job: str = "") -> HeadsFacts | None:
        """Which heads the pair would use now, and how good they are; None where there are none."""
        if self.showcase and pair == self.showcase.pair and not self._own_heads(pair, heads_job):
            return self.showcase.heads
        heads = self._find_heads(pair, self._load(pair.source), self._load(pair.target), heads_job)
        return None if heads is None else self._backend.heads_facts(heads)

    def warm(self) -> None:
        """Import the heavy libraries and load the example's models, so that the first press need not wait."""
        try:
            self._backend.warm()
            if self.showcase:
                source, target = self._load(self.showcase.pair.source), self._load(self.showcase.pair.target)
                self._find_heads(self.showcase.pair, source, target, "")
        except CastError as error:
            logger.warning("warming up: %s", error)

    # Text

    def generate(self, request: GenerateRequest) -> Iterator[tuple[Pane, ...]]:
        """Stream the four panes together, one token each in turn; the last value has every pane finished."""
        selection, prompt = request.selection, request.prompt
        if not prompt.strip():
            raise RequestError("Write a prompt first, or pick one of the examples.")
        if len(prompt) > _MAX_PROMPT:
            raise RequestError(
                f"The prompt has {len(prompt):,} characters; at most {_MAX_PROMPT:,} are read."
            )
        if not selection.adapter:
            raise RequestError("Choose an adapter of the source model first.")
        names = (selection.source, selection.adapter, selection.target, selection.mode)
        shown = {key: Pane(key, name, state="running") for key, name in zip(PANES, names, strict=True)}
        yield tuple(shown.values())
        source, target = self._load(selection.source), self._load(selection.target)
        lora = self._lora(selection.adapter, source)
        makers: dict[str, Callable[[], object]] = {
            "source": lambda: self._backend.plain_runner(source.model, None),
            "source_adapter": lambda: self._backend.plain_runner(source.model, lora),
            "target": lambda: self._backend.plain_runner(target.model, None),
            "target_adapter": lambda: self._carried(request, source, target, lora),
        }
        streams: dict[str, Iterator[str]] = {}
        for key, make in makers.items():
            try:
                streams[key] = self._backend.stream(make(), prompt, request.sampling)
            except CastError as error:
                shown[key] = replace(shown[key], state="note", text=str(error))
        yield from interleaved(shown, streams, held(source, target))

    def _carried(self, request: GenerateRequest, source: Loaded, target: Loaded, lora: object) -> object:
        selection = request.selection
        if selection.mode == "hosted":
            heads = self._find_heads(selection.pair, source, target, request.heads_job)
            if heads is None:
                raise HeadsError("There are no heads for this pair yet: train them in the Heads tab.")
            return self._backend.hosted_runner(source.model, target.model, lora, heads, request.strength)
        carried = self._translation(request, target)
        if carried is None:
            raise RequestError(
                f"The mode {selection.mode} needs a translation first: press Translate, then Generate."
            )
        return self._backend.carried_runner(carried, source.model, target.model, request.strength)

    def _translation(self, request: GenerateRequest, target: Loaded) -> object | None:
        job = self._jobs.get(request.translate_job)
        if job and isinstance(job.result, TranslateResult) and job.result.selection == request.selection:
            return job.result.carried
        return self._shipped.get(
            request.selection, lambda: self._backend.shipped_translation(request.selection, target.model)
        )

    # Background jobs

    def start_translate(self, request: TranslateRequest, heads_job: str = "") -> str:
        """Translate in the background; the job's result is a `TranslateResult`."""
        selection = request.selection
        if not (selection.source and selection.target and selection.adapter):
            raise RequestError("Choose a source model, a target model and an adapter first.")
        own = self._own_heads(selection.pair, heads_job)
        out = self._folder / "translated" / uuid.uuid4().hex

        def work(on_progress: OnProgress) -> TranslateResult:
            out.parent.mkdir(parents=True, exist_ok=True)
            carried = self._backend.translate(request, own, out, on_progress)
            archive = shutil.make_archive(str(out), "zip", out)
            return TranslateResult(selection, carried, Path(archive))

        title = f"Translate {selection.adapter} to {selection.target} ({selection.mode})."
        return self._jobs.start("translate", title, work)

    def start_fit(self, request: FitRequest) -> str:
        """Train heads in the background; the job's result is a `HeadsResult`."""
        pair = request.pair
        if not (pair.source and pair.target):
            raise RequestError("Choose a source model and a target model first.")
        out = self._folder / "heads" / uuid.uuid4().hex

        def work(on_progress: OnProgress) -> HeadsResult:
            out.parent.mkdir(parents=True, exist_ok=True)
            return HeadsResult(pair, self._backend.fit(request, out, on_progress))

        return self._jobs.start("heads", f"Train heads from {pair.source} to {pair.target}.", work)

    def job(self, job_id: str) -> Job | None:
        """A job by its id; None where the server knows no such job."""
        return self._jobs.get(job_id) if job_id else None

    def cancel(self, job_id: str) -> bool:
        """Ask a job to stop."""
        return self._jobs.cancel(job_id)

    # Maps

    def joint_maps(self, pair: Pair, depth: int, points: int, heads_job: str = "") -> Iterator[JointMap]:
        """Source states through the heads and target states of the same tokens: PCA at once, then UMAP."""
        source, target = self._load(pair.source), self._load(pair.target)
        heads = self._find_heads(pair, source, target, heads_job)
        if heads is None:
            raise HeadsError("There are no heads for this pair yet: train them in the Heads tab.")
        for method in ("pca", "umap"):
            with held(source, target)() as locks:
                # Laying out the map takes longer than reading the models, and needs them no more.
                def let_go(progress: Progress, locks: contextlib.ExitStack = locks) -> None:
                    if progress.stage == "map":
                        locks.close()

                yield self._backend.joint_map(
                    source.model, target.model, heads, depth, points, method, let_go
                )

    # Shared things

    def _describe(self, name: str) -> ModelFacts:
        return self._model_facts.get(name, lambda: self._backend.describe(name))

    def _load(self, name: str) -> Loaded:
        if not name:
            raise RequestError("Choose a source model and a target model first.")
        return self._models.get(name, lambda: Loaded(name, self._backend.load(name)))

    def _lora(self, adapter: str, source: Loaded) -> object:
        key = (adapter, source.name)
        return self._adapters.get(key, lambda: self._backend.read_adapter(adapter, source.model))

    def _own_heads(self, pair: Pair, heads_job: str) -> object | None:
        job = self._jobs.get(heads_job)
        if (
            job
            and job.state is JobState.DONE
            and isinstance(job.result, HeadsResult)
            and job.result.pair == pair
        ):
            return job.result.heads
        return None

    def _find_heads(self, pair: Pair, source: Loaded, target: Loaded, heads_job: str) -> object | None:
        own = self._own_heads(pair, heads_job)
        if own is not None:
            return own
        found = self._heads.get(pair, lambda: self._backend.find_heads(source.model, target.model))
        if found is None:
            # A translation may fit and keep them later.
            self._heads.drop(pair)
        return found
