"""What the page needs from `cast`, as one interface, so that tests and the real library are interchangeable here.

The facts are plain values: they can be shipped as JSON, shown before anything heavy is imported, and compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.workspace import Pair, Selection
from cast.progress import OnProgress


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


@dataclass(frozen=True)
class SiteFacts:
    """The adapted linear sites of one block: their roles, and the size of the adapter's change there.

    `effect` is the Frobenius norm of s·B·A over the block's sites, as a share of the largest block's; 1.0 where the
    weights have not been read yet.
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
    """Held-out quality of the heads at one target depth; the controls are the same measures on shuffled pairs."""

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

    origin: str
    kind: str
    corpus: str
    tokens: int
    layer_map: tuple[int, ...]
    depths: tuple[DepthFacts, ...]


@dataclass(frozen=True)
class FitRequest:
    """What *Train heads* asks for."""

    pair: Pair
    corpus: str
    tokens: int
    kind: str


@dataclass(frozen=True)
class TranslateRequest:
    """What *Translate* asks for: a selection, the effort of a compiled fit, and five or so example prompts."""

    selection: Selection
    steps: int
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplingChoice:
    """How text is drawn; every pane uses the same."""

    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Measure:
    """A held-out measure beside its control on shuffled pairs."""

    name: str
    value: float
    control: float


@dataclass(frozen=True)
class MapPoint:
    """One aligned token in a joint map: its source state through the heads, and the target's own state."""

    source: tuple[float, float]
    target: tuple[float, float]
    token: str
    context: str


@dataclass(frozen=True)
class JointMap:
    """A joint projection of N aligned tokens at one target depth."""

    method: str
    depth: int
    source_depth: int
    points: tuple[MapPoint, ...]
    measures: tuple[Measure, ...]
    trustworthiness: float | None = None


class Backend(Protocol):
    """The library as the page sees it.

    `Model`, `Carried` and `Runner` objects are opaque here; the engine only keeps them and hands them back.
    Every method may raise a `CastError` whose message is shown as it is.
    """

    def models(self) -> Sequence[Option]: ...
    def adapters(self, source: str) -> Sequence[Option]: ...
    def prompts(self, adapter: str) -> Sequence[str]: ...
    def search(self, source: str) -> Sequence[Option]: ...
    def describe(self, name: str) -> ModelFacts: ...
    def inspect(self, adapter: str, source: str) -> AdapterFacts: ...
    def warm(self) -> None: ...

    def load(self, name: str, on_progress: OnProgress) -> object: ...
    def read_adapter(self, adapter: str, model: object) -> object: ...
    def find_heads(self, source: object, target: object) -> object | None: ...
    def heads_facts(self, heads: object) -> HeadsFacts: ...
    def shipped_translation(self, selection: Selection) -> Path | None: ...

    def plain_runner(self, model: object, lora: object | None, strength: float) -> object: ...
    def hosted_runner(
        self, source: object, target: object, lora: object, heads: object, strength: float
    ) -> object: ...
    def translated_runner(self, folder: Path, source: object, target: object, strength: float) -> object: ...
    def stream(self, runner: object, prompt: str, sampling: SamplingChoice) -> Iterator[str]: ...

    def fit(self, request: FitRequest, folder: Path, on_progress: OnProgress) -> object: ...
    def translate(
        self, request: TranslateRequest, heads: object | None, folder: Path, on_progress: OnProgress
    ) -> None: ...
    def states(self, source: object, target: object, heads: object, depth: int, points: int) -> object: ...
    def project(self, states: object, method: str) -> JointMap: ...
