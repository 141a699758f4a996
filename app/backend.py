"""What the page needs from `cast`, as one interface: the real library and a test's stand-in both fit it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from app.facts import (
    AdapterFacts,
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
    TokenMark,
    TranslateRequest,
)
from app.runs import EvaluateRequest, TaskFacts, Told
from app.workspace import Selection
from cast.progress import OnProgress

Turns = Callable[[], AbstractContextManager[object]]


class Backend(Protocol):
    """The library as the page sees it.

    Models, adapters, heads, translations and runners are opaque here: the engine keeps them and hands them
    back. Every method may raise a `CastError` whose message is shown as it is.
    """

    def models(self) -> Sequence[Option]:
        """The models that are shipped."""
        ...

    def adapters(self, source: str) -> Sequence[Option]:
        """The shipped adapters of a model."""
        ...

    def prompts(self, adapter: str) -> Sequence[str]:
        """Prompts on which a shipped adapter shows its effect."""
        ...

    def hints(self, adapter: str) -> Sequence[str]:
        """A few prompts of a shipped adapter's task, without answers, none of them among `prompts`."""
        ...

    def search_models(self, words: str) -> Sequence[Option]:
        """Models on the Hub whose name contains these words."""
        ...

    def search_adapters(self, source: str, words: str) -> Sequence[Option]:
        """Adapters of a model on the Hub whose name contains these words."""
        ...

    def describe(self, name: str) -> ModelFacts:
        """Facts of a model; no weights are read."""
        ...

    def room(self, source: ModelFacts, target: ModelFacts) -> Room:
        """The memory that a pair would be loaded into; imports what is heavy."""
        ...

    def fit_seconds(self, request: FitRequest, source: ModelFacts, target: ModelFacts) -> float:
        """How long *Train heads* may take on this device, by the models' sizes; imports what is heavy."""
        ...

    def translate_seconds(self, request: TranslateRequest, source: ModelFacts, target: ModelFacts) -> float:
        """How long *Translate* may take where the pair has heads; 0 where the mode runs at once."""
        ...

    def inspect(self, adapter: str, source: str) -> AdapterFacts:
        """Facts of an adapter of a source model."""
        ...

    def opened(self, name: str) -> Opened | None:
        """The translated folder of that name; None where it is none. Imports nothing heavy."""
        ...

    def warm(self) -> None:
        """Import what the first press of a button needs."""
        ...

    def warm_maps(self) -> None:
        """Make the first map as quick as the next."""
        ...

    def load(self, name: str) -> object:
        """Load a model."""
        ...

    def read_adapter(self, adapter: str, model: object) -> object:
        """Read an adapter of a loaded model."""
        ...

    def find_heads(self, source: object, target: object) -> object | None:
        """Heads of a pair, or None where there are none yet."""
        ...

    def heads_facts(self, heads: object) -> HeadsFacts:
        """How good heads are."""
        ...

    def shipped_translation(self, selection: Selection, target: object) -> object | None:
        """A translation that is shipped, or None."""
        ...

    def reopened(self, opened: Opened, source: object, target: object) -> object:
        """What an opened folder holds, at strength 1, as `carried_runner` takes it."""
        ...

    def plain_runner(self, model: object, lora: object | None, strength: float = 1.0) -> object:
        """A model, by itself or with an adapter of its own."""
        ...

    def hosted_runner(
        self,
        source: object,
        target: object,
        lora: object,
        heads: object | None,
        segment: int | None,
        strength: float,
    ) -> object:
        """The target with a source adapter at once; see `Selection.segment`. Heads only with segments."""
        ...

    def carried_runner(self, carried: object, source: object, target: object, strength: float) -> object:
        """The target with a translation."""
        ...

    def stream(self, runner: object, prompt: str, sampling: SamplingChoice) -> Iterator[str]:
        """The continuation of a prompt, piece by piece; nothing acts on the models between two pieces."""
        ...

    def marks(self, adapted: object, base: object, prompt: str, answer: str) -> Sequence[TokenMark]:
        """What an adapter changed in an answer, token by token; both runners are of one model."""
        ...

    def fit(self, request: FitRequest, folder: Path, on_progress: OnProgress) -> object:
        """Train heads on models of its own, keep them in `folder`, and return them.

        What an earlier call has left unfinished for `folder` is gone on with.
        """
        ...

    def load_heads(self, request: LoadRequest, folder: Path, on_progress: OnProgress) -> object:
        """Fetch heads, check them against models of its own, copy them to `folder`, and return them."""
        ...

    def read_heads(self, folder: Path) -> object:
        """Heads that `fit` or `load_heads` has kept."""
        ...

    def heads_folder(self, heads: object) -> Path:
        """Where heads lie."""
        ...

    def translate(
        self, request: TranslateRequest, heads: object | None, folder: Path, on_progress: OnProgress
    ) -> object:
        """Translate on models of its own, write `folder`, and return what `carried_runner` takes."""
        ...

    def prediction(self, translated: object, *, prompted: bool) -> tuple[str, ...]:
        """How much of what `translate` returned is likely to carry over, and what would help, in sentences.

        `prompted` tells whether example prompts were given.
        """
        ...

    def expand(self, request: TranslateRequest, heads: object | None, on_progress: OnProgress) -> Expansion:
        """What the fit of a translation would read, on models of its own; nothing is fitted."""
        ...

    def tasks(self) -> Sequence[Option]:
        """The tasks that ship."""
        ...

    def task(self, name: str, limit: int) -> TaskFacts:
        """What a shipped task or a task file holds, its first `limit` examples checked."""
        ...

    def compare(
        self, request: EvaluateRequest, heads: object | None, on_progress: OnProgress
    ) -> Iterator[Told]:
        """Measure methods on models of its own: first the ends of the scale, then each as it ends."""
        ...

    def shipped_folder(self, selection: Selection) -> Path | None:
        """The folder of a translation that ships; None where there is none. Imports nothing heavy."""
        ...

    def publish(self, folder: Path, repo: str, token: str, private: bool) -> str:
        """Publish a folder on the Hub with a visitor's token, and return its address."""
        ...

    def maps(
        self,
        source: object,
        target: object,
        heads: object | None,
        lora: object | None,
        translated: object | None,
        request: MapRequest,
        turns: Turns,
        on_progress: OnProgress,
    ) -> Iterator[Drawn]:
        """Draw what is asked, PCA first; `translated` is a runner, `turns` is held while a model runs."""
        ...

    def layers(
        self, source: object, target: object, heads: object | None, turns: Turns, on_progress: OnProgress
    ) -> LayerFacts:
        """Compare all layers of two models on the heads' text; `turns` is held while a model runs."""
        ...
