"""Everything the page does, without the page: shared models, text, maps, and background jobs.

Models are loaded on demand, are read-only to visitors and shared between them (see `app.streams`). A job that
trains takes models of its own, so it never stops a stream.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.backend import Backend
from app.expecting import Expectations, Expected
from app.facts import (
    AdapterFacts,
    FitRequest,
    HeadsFacts,
    ModelFacts,
    Opened,
    Option,
    Room,
    SamplingChoice,
    TranslateRequest,
)
from app.jobs import Job, Jobs
from app.maps import Maps
from app.own_heads import OwnHeads
from app.paces import Paces
from app.picture import relative_layer_map
from app.shelf import HeadsShelf
from app.showcase import Showcase
from app.stock import Stock, needed
from app.streams import Loaded, held, interleaved
from app.views import Pane
from app.workspace import Attached, Beside, Pair, Selection
from cast.errors import AdapterError, CastError, RequestError
from cast.progress import OnProgress

logger = logging.getLogger(__name__)

_MAX_PROMPT = 4000
# The panes whose adapter leaves marks, and the bare model that each is compared with.
_MARKED_BESIDE = {
    "source_adapter": "source",
    "target_adapter": "target",
    "second": "target",
    "retrained": "target",
}


@dataclass(frozen=True)
class PairFacts:
    """What the page shows of a choice before anything heavy is loaded."""

    source: ModelFacts
    target: ModelFacts
    adapter: AdapterFacts | None


@dataclass(frozen=True)
class TranslateResult:
    """What a *Translate* job leaves behind."""

    selection: Selection
    carried: object
    folder: Path
    archive: Path
    prediction: tuple[str, ...]
    """How much of it is likely to carry over, in sentences."""


@dataclass(frozen=True)
class GenerateRequest:
    """One press of *Generate*; `made` names what this visitor has made and opened."""

    selection: Selection
    strength: float
    prompt: str
    sampling: SamplingChoice
    made: Attached = field(default_factory=Attached)
    beside: Beside = field(default_factory=Beside)

    @property
    def second(self) -> "GenerateRequest | None":
        """The same with the change carried in the second way; None where there is none."""
        mode = self.beside.second_mode
        if not mode:
            return None
        chosen = self.selection
        way = Selection.of(chosen.source, chosen.target, chosen.adapter, mode, chosen.segment)
        return replace(self, selection=way, strength=self.beside.second_strength)

    def panes(self, state: str = "idle") -> dict[str, Pane]:
        """The panes that stand side by side, without a text."""
        chosen, beside, second = self.selection, self.beside, self.second
        names = {
            "source": chosen.source,
            "source_adapter": _at(chosen.adapter, beside.source_strength),
            "target": chosen.target,
            "target_adapter": _at(chosen.way, self.strength),
        }
        if second:
            names["second"] = _at(second.selection.way, second.strength)
        if beside.retrained:
            names["retrained"] = _at(beside.retrained, beside.retrained_strength)
        return {key: Pane(key, name, state=state) for key, name in names.items()}


class Engine:
    """The page's only way to models; one for all visitors, made in `app.ui.build`."""

    def __init__(
        self,
        backend: Backend,
        jobs: Jobs,
        folder: Path,
        showcase: Showcase | None,
        max_models: int = 4,
        kept: Path | None = None,
    ) -> None:
        self._backend = backend
        self._jobs = jobs
        self._folder = folder
        self._stock = Stock(backend, max_models)
        self.maps = Maps(backend, self._stock, folder, self._find_heads, self._translation)
        self._expectations = Expectations(backend, Paces(kept))
        self.own = OwnHeads(backend, jobs, self._stock, self._expectations, HeadsShelf(kept))
        self.showcase = showcase
        if showcase:
            self._stock.learn(showcase)

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

    def hints(self, adapter: str) -> tuple[str, ...]:
        """A few prompts of a shipped adapter's task, without answers, none of them among `prompts`."""
        return tuple(self._backend.hints(adapter))

    def retrained(self, selection: Selection) -> str:
        """The adapter that ships for the target and the task of a shipped adapter; empty where none does."""
        if not self.is_shipped(selection.adapter):
            return ""
        task = selection.adapter.rsplit("/", 1)[-1]
        names = [own.name for own in self.adapters(selection.target) if own.name != selection.adapter]
        return next((name for name in names if name.rsplit("/", 1)[-1] == task), "")

    def facts(self, selection: Selection) -> PairFacts:
        """Describe the chosen models and adapter from their configurations; no weights are read."""
        selection.pair.check()
        source, target = (self._stock.model_facts(name) for name in (selection.source, selection.target))
        if not selection.adapter:
            return PairFacts(source, target, None)
        return PairFacts(source, target, self._stock.adapter_facts(selection.adapter, selection.source))

    def room(self, facts: PairFacts) -> Room:
        """The memory that a pair would be loaded into."""
        return self._backend.room(facts.source, facts.target)

    def expected(self, request: FitRequest | TranslateRequest) -> Expected:
        """How long *Train heads* or *Translate* may take on this device; no weights are read."""
        facts = self.facts(request.selection)
        return self._expectations.of(request, facts.source, facts.target)

    def opened(self, selection: Selection) -> Opened | None:
        """The translated folder that stands in the adapter's place; None where an adapter of the source does.

        A translated LoRA of the source itself is an adapter like any other: it may be carried on.

        Raises:
            AdapterError: the folder's recipe cannot be used.
        """
        found = self._backend.opened(selection.adapter)
        if found is None or found.is_adapter_of(selection.source):
            return None
        made_of = self._backend.opened(found.selection.adapter)
        if made_of and not made_of.is_adapter_of(found.selection.source):
            raise AdapterError(
                f"{found.folder} names {found.selection.adapter} as its adapter, which is none of "
                f"{found.selection.source}; translate the adapter again."
            )
        return found

    def still_open(self, folder: str, selection: Selection) -> Opened | None:
        """The folder that a visitor opened last, while the choice of models and adapter is its own."""
        try:
            found = self._backend.opened(folder)
        except CastError:
            return None
        whole = found and replace(found.selection, mode=selection.mode, segment=selection.segment)
        return found if whole == selection else None

    def knows(self, selection: Selection) -> bool:
        """Whether `facts` answers at once, with nothing to import or to read."""
        return self._stock.knows(selection)

    def layer_map(self, facts: PairFacts) -> tuple[int, ...]:
        """The source depth of each target depth: the recorded heads' own, else by equal relative depth."""
        example = self.showcase
        if example and example.heads and example.pair == Pair(facts.source.name, facts.target.name):
            return example.heads.layer_map
        return relative_layer_map(facts.source.depth, facts.target.depth)

    def is_at_hand(self, name: str) -> bool:
        """Whether a model is loaded, or ships with the program and loads in a moment."""
        return self._stock.has(name) or any(name == shipped.name for shipped in self.models())

    def heads_facts(self, pair: Pair, heads_job: str = "") -> HeadsFacts | None:
        """Which heads the pair would use now, and how good they are; None where there are none."""
        if self.showcase and pair == self.showcase.pair and not self.own.of(pair, heads_job):
            return self.showcase.heads
        heads = self._find_heads(*self._stock.pair(pair), heads_job)
        return None if heads is None else self._backend.heads_facts(heads)

    def heads_folder(self, pair: Pair, heads_job: str = "") -> Path | None:
        """Where the heads lie that the pair would use now; None where there are none. Loads both models."""
        if entry := self.own.entry_of(pair, heads_job):
            return self.own.folder(entry)
        heads = self._find_heads(*self._stock.pair(pair), heads_job)
        return None if heads is None else self._backend.heads_folder(heads)

    def warm(self) -> None:
        """Import and compile what is heavy, and load the example's models: the first press need not wait."""
        try:
            self._backend.warm()
            if self.showcase:
                self._find_heads(*self._stock.pair(self.showcase.pair), "")
        except CastError as error:
            logger.warning("warming up: %s", error)
        self._backend.warm_maps()

    # Text

    def generate(self, request: GenerateRequest) -> Generator[tuple[Pane, ...]]:
        """Stream the panes together, one token each in turn; the last value has every pane finished."""
        _check(request)
        prompt, shown = request.prompt, request.panes("running")
        yield tuple(shown.values())
        source, target = self._stock.pair(request.selection.pair)
        runners: dict[str, object] = {}
        streams: dict[str, Iterator[str]] = {}
        for key, make in self._makers(request, source, target).items():
            try:
                runners[key] = make()
                streams[key] = self._backend.stream(runners[key], prompt, request.sampling)
            except CastError as error:
                shown[key] = replace(shown[key], state="note", text=str(error))
        locks = held(source, target)
        yield from interleaved(shown, streams, locks)
        for key, base in _MARKED_BESIDE.items():
            if key in shown and shown[key].state == "done":
                with locks():
                    shown[key] = self._marked(shown[key], runners[key], runners[base], prompt)
        yield tuple(shown.values())

    def _makers(
        self, request: GenerateRequest, source: Loaded, target: Loaded
    ) -> dict[str, Callable[[], object]]:
        """What runs in each pane, made when it is called.

        Raises:
            AdapterError: the adapter of the source cannot be read; any other trouble is its pane's own.
        """
        lora = self._stock.adapter(request.selection.adapter, source)
        plain, beside, second = self._backend.plain_runner, request.beside, request.second
        makers: dict[str, Callable[[], object]] = {
            "source": lambda: plain(source.model, None),
            "source_adapter": lambda: plain(source.model, lora, beside.source_strength),
            "target": lambda: plain(target.model, None),
            "target_adapter": lambda: self._carried(request, source, target, lora),
        }
        if second:
            makers["second"] = lambda: self._carried(second, source, target, lora)
        if beside.retrained:
            makers["retrained"] = lambda: plain(
                target.model, self._stock.adapter(beside.retrained, target), beside.retrained_strength
            )
        return makers

    def _marked(self, pane: Pane, adapted: object, base: object, prompt: str) -> Pane:
        """The answer with what the adapter changed in it; as it was where that cannot be told."""
        try:
            return replace(pane, marks=tuple(self._backend.marks(adapted, base, prompt, pane.text)))
        except CastError as error:
            logger.warning("marking %s: %s", pane.key, error)
            return pane

    def _carried(self, request: GenerateRequest, source: Loaded, target: Loaded, lora: object) -> object:
        selection = request.selection
        carried = self._translation(selection, request.made, source, target)
        if carried is not None:
            return self._backend.carried_runner(carried, source.model, target.model, request.strength)
        if selection.mode != "hosted":
            raise RequestError(
                f"The mode {selection.mode} needs a translation first: press Translate, then Generate."
            )
        heads = None
        if not selection.by_words:
            heads = needed(self._find_heads(source, target, request.made.heads_job))
        return self._backend.hosted_runner(
            source.model, target.model, lora, heads, selection.segment, request.strength
        )

    def _translation(
        self, selection: Selection, made: Attached, source: Loaded, target: Loaded
    ) -> object | None:
        """What was opened last, the last job made, or is shipped: the first that is of this choice."""
        opened = self._backend.opened(made.folder)
        if opened and opened.selection == selection:
            return self._stock.reopened(opened, source, target)
        result = self._translated(selection, made)
        return result.carried if result else self._stock.shipped(selection, target)

    def translated_folder(self, selection: Selection, made: Attached) -> Path | None:
        """Where the translation of a choice is written; None where none is, as for what runs at once."""
        opened = self._backend.opened(made.folder)
        if opened and opened.selection == selection:
            return Path(opened.folder)
        result = self._translated(selection, made)
        return result.folder if result else self._backend.shipped_folder(selection)

    def _translated(self, selection: Selection, made: Attached) -> TranslateResult | None:
        """What this visitor's last two translations made, if one is of that choice."""
        for job in map(self._jobs.get, (made.translate_job, made.earlier_job)):
            if job and isinstance(job.result, TranslateResult) and job.result.selection == selection:
                return job.result
        return None

    # Background jobs

    def start_translate(self, request: TranslateRequest, heads_job: str = "") -> str:
        """Translate in the background; the job's result is a `TranslateResult`."""
        selection = request.selection
        selection.check()
        own = self.own.of(selection.pair, heads_job)
        out = self._folder / "translated" / uuid.uuid4().hex

        def work(on_progress: OnProgress) -> TranslateResult:
            out.parent.mkdir(parents=True, exist_ok=True)
            carried = self._expectations.timed(
                request,
                lambda: self._stock.facts_of(selection.pair),
                lambda told: self._backend.translate(request, own, out, told),
                on_progress,
            )
            archive = shutil.make_archive(str(out), "zip", out)
            prediction = self._backend.prediction(carried, prompted=bool(request.prompts))
            return TranslateResult(selection, carried, out, Path(archive), prediction)

        title = f"Translate {selection.adapter} to {selection.target} ({selection.way})."
        return self._jobs.start("translate", title, work)

    def job(self, job_id: str) -> Job | None:
        """A job by its id; None where the server knows no such job."""
        return self._jobs.get(job_id) if job_id else None

    def cancel(self, job_id: str) -> bool:
        """Ask a job to stop."""
        return self._jobs.cancel(job_id)

    # Heads

    def _find_heads(self, source: Loaded, target: Loaded, heads_job: str) -> object | None:
        own = self.own.of(Pair(source.name, target.name), heads_job)
        return self._stock.heads(source, target) if own is None else own


def _at(name: str, strength: float) -> str:
    """What runs in a pane, with its strength where that is not the usual one."""
    return name if strength == 1 else f"{name}, strength {strength:g}"


def _check(request: GenerateRequest) -> None:
    """Refuse what cannot be generated.

    Raises:
        RequestError: the prompt is empty or too long, or there is no adapter.
    """
    if not request.prompt.strip():
        raise RequestError("Write a prompt first, or pick one of the examples.")
    if len(request.prompt) > _MAX_PROMPT:
        raise RequestError(
            f"The prompt has {len(request.prompt):,} characters; at most {_MAX_PROMPT:,} are read."
        )
    if not request.selection.adapter:
        raise RequestError("Choose an adapter of the source model first.")
