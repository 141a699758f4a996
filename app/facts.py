"""What the page shows and what it asks for, as plain values.

They can be shipped as JSON, shown before anything heavy is imported, and compared.
"""

from dataclasses import dataclass
from pathlib import Path

from app.workspace import PLAIN_MODES, Pair, Selection

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
    """What *Translate* asks for: a selection, the steps of a round of a compiled fit, and example prompts.

    More prompts are made of the given ones, unless `expand` is off. Steps that are None are those that suit
    the target.
    """

    selection: Selection
    steps: int | None = None
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
    says what that means; `warning`, what speaks against a fit on it.
    """

    rows: tuple[AnsweredPrompt, ...]
    reach: float
    excites: bool
    words: str
    warning: str = ""


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
