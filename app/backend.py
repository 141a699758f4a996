"""What the page needs from `cast`, as one interface: the real library and a test's stand-in both fit it.

The facts are plain values: they can be shipped as JSON, shown before anything heavy is imported, and
compared.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.runs import EvaluateRequest, TaskFacts, Told
from app.workspace import PLAIN_MODES, Pair, Selection
from cast.progress import OnProgress
from cast.recipes import TranslationConfig

Turns = Callable[[], AbstractContextManager[object]]

EFFORTS = {"quick": 40_000, "good": 120_000, "best": 400_000}
"""Tokens on which heads are trained, by how good they shall be."""
NO_HEADS = "There are no heads for this pair yet: train them in the Heads tab."


@dataclass(frozen=True)
class Option:
    """One entry of a picker: the name that is used, and the words that are shown."""

    name: str
    label: str


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before its weights are read; None and 0 stand for *unknown*."""

    name: str
    family: str
    width: int
    depth: int
    vocabulary: int
    parameters: int
    tokenizer: str
    heads: int = 0
    download_bytes: int = 0
    licence: str = ""


@dataclass(frozen=True)
class Room:
    """Where a pair is loaded: the device, the bytes of each model's weights there, and what is free."""

    device: str
    source_bytes: int
    target_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class SiteFacts:
    """The adapted linear sites of one block: their roles, and the size of the adapter's change there.

    `effect` is the Frobenius norm of s·B·A over the block's sites, as a share of the largest block's; 1.0
    where the weights have not been read yet.
    """

    block: int
    roles: tuple[str, ...]
    effect: float = 1.0


@dataclass(frozen=True)
class AdapterFacts:
    """What is known of an adapter from its configuration."""

    name: str
    rank: int
    targets: tuple[str, ...]
    licence: str
    sites: tuple[SiteFacts, ...]
    base_model: str = ""


@dataclass(frozen=True)
class DepthFacts:
    """Held-out quality of the heads at one target depth, each measure with its control on shuffled pairs."""

    depth: int
    source_depth: int
    r_squared: float
    cosine: float
    knn_overlap: float
    cka: float
    r_squared_control: float
    cosine_control: float
    knn_overlap_control: float
    cka_control: float


@dataclass(frozen=True)
class HeadsFacts:
    """Which heads are loaded for a pair, and how good they are on text that they were not fitted on."""

    kind: str
    corpus: str
    tokens: int
    layer_map: tuple[int, ...]
    depths: tuple[DepthFacts, ...]


@dataclass(frozen=True)
class FitOptions:
    """The settings of a fit that one rarely touches; see `cast.fitting.FitConfig`, whose defaults these are.

    No depth stands for all of them, and a learning rate of 0 for the one that suits the models' width.
    """

    kl_weight: float = 1.0
    depths: tuple[int, ...] = ()
    batch_size: int = 32
    learning_rate: float = 0.0
    passes: int = 1
    repeats: int = 6
    mlp_width: int = 112
    seed: int = 0


@dataclass(frozen=True)
class LoadRequest:
    """What *Load heads* asks for: a folder or a Hub id that holds heads of the pair."""

    pair: Pair
    name: str


@dataclass(frozen=True)
class FitRequest:
    """What *Train heads* asks for; an empty corpus is the pair's default text."""

    pair: Pair
    corpus: str = ""
    tokens: int = EFFORTS["good"]
    kind: str = "mlp"
    options: FitOptions = FitOptions()

    @property
    def selection(self) -> Selection:
        """The pair as a choice without an adapter."""
        return Selection(self.pair.source, self.pair.target, "")


@dataclass(frozen=True)
class TranslateRequest:
    """What *Translate* asks for: a selection, the steps of a compiled fit, and example prompts.

    More prompts are made of the given ones, unless `expand` is off.
    """

    selection: Selection
    steps: int = TranslationConfig.steps
    prompts: tuple[str, ...] = ()
    expand: bool = True


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt that a fit reads, and what the source with its adapter writes behind it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Expansion:
    """What a compiled fit reads beside general text, and how much of the adapter all of it excites.

    `reach` is the adapter's mean effect on the text over that on the tokens where it is largest, and `words`
    says what that means.
    """

    rows: tuple[AnsweredPrompt, ...]
    reach: float
    excites: bool
    words: str


@dataclass(frozen=True)
class Opened:
    """A translated folder as its recipe tells it.

    Attributes:
        folder: where it is.
        selection: what was translated, and how.
        strength: of the whole change; 1.0 for a plain LoRA, whose weights hold their strength already.
        written: time of the recipe in nanoseconds, so that a folder that was made anew is read anew.
    """

    folder: str
    selection: Selection
    strength: float
    written: int

    @property
    def is_plain(self) -> bool:
        """Whether the folder is a PEFT adapter of the target as well."""
        return self.selection.mode in PLAIN_MODES

    def is_adapter_of(self, model: str) -> bool:
        """Whether a model of that name can wear the folder as any other adapter."""
        return self.is_plain and _same(self.selection.target, model)


@dataclass(frozen=True)
class SamplingChoice:
    """How text is drawn; every pane uses the same."""

    max_tokens: int
    temperature: float
    seed: int
    one_line: bool = True


@dataclass(frozen=True)
class TokenMark:
    """One token of an answer: what the adapter changed about it, and what else was likely in its place.

    `change` is the difference of its log-probability in nats, with the adapter less without; `hint` says
    the likeliest tokens with and without.
    """

    text: str
    change: float
    hint: str


@dataclass(frozen=True)
class Measure:
    """A held-out measure beside its control on shuffled pairs."""

    name: str
    value: float
    control: float


@dataclass(frozen=True)
class MapPoint:
    """One aligned token in a map: where each model's state of it lies, with and without the adapter.

    Places are of 2 or 3 numbers. `source_shift` and `target_shift` say how far adapter and translation move
    the states, in deviations of a dimension; None where nothing acts there.
    """

    source: tuple[float, ...]
    target: tuple[float, ...]
    token: str
    context: str
    after: str = ""
    adapted: tuple[float, ...] | None = None
    translated: tuple[float, ...] | None = None
    source_shift: float | None = None
    target_shift: float | None = None
    kind: str = "word"
    text: int = 0
    sentence: int = 0
    position: int = 0


@dataclass(frozen=True)
class JointMap:
    """N aligned tokens at one pair of depths: on one joint map, or each model on a map of its `own`.

    `by_heads` tells whether the source is carried by the pair's heads, or by a linear map that was fitted for
    this picture; `note` is a sentence on the adapter that is shown.
    """

    method: str
    depth: int
    source_depth: int
    points: tuple[MapPoint, ...]
    measures: tuple[Measure, ...]
    trustworthiness: float | None = None
    spaces: str = "joint"
    by_heads: bool = True
    note: str = ""


Drawn = tuple[JointMap, ...]
"""What a map shows: one pair of depths, or the same tokens at every target depth in turn."""


@dataclass(frozen=True)
class MapRequest:
    """What *Draw the map* asks for.

    Attributes:
        selection: the pair; its adapter is shown where `adapter` says so.
        depth: target depth.
        source_depth: None for the one that belongs to the target depth.
        points: tokens.
        view: `joint`, `own` (two maps), or `along` (every target depth in turn).
        dimensions: 2 or 3.
        method: `umap` (PCA comes first), or `pca` alone.
        adapter: whether to show where the adapter moves the tokens.
    """

    selection: Selection
    depth: int
    source_depth: int | None = None
    points: int = 300
    view: str = "joint"
    dimensions: int = 2
    method: str = "umap"
    adapter: bool = True


@dataclass(frozen=True)
class GridFacts:
    """One measure of every source depth (rows) against every target depth, and its shuffled control."""

    name: str
    values: tuple[tuple[float, ...], ...]
    controls: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LayerFacts:
    """All layers against all layers, measured on so many tokens."""

    grids: tuple[GridFacts, ...]
    tokens: int


def _same(name: str, other: str) -> bool:
    """Whether two names mean one model: paths may be written in several ways."""
    try:
        return name == other or Path(name).expanduser().samefile(Path(other).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False


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
