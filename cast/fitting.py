"""The whole way from two models and general text to heads: moments, ridge, gradient steps, held-out quality.

Activations are never all in memory: moments are summed up batch by batch, and gradient steps are taken on one
chunk of pairs after another. Only the texts themselves are kept.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cast.activations import PairedBatch, paired_batches
from cast.alignment import LayerMap, below
from cast.corpus import general_text, take_tokens
from cast.errors import RequestError
from cast.fitters import GradientSchedule, MLPFitter, RidgeFitter, kl_rows, next_token_kl, widened
from cast.heads import AffineHead, DepthQuality, HeadPair, HeadQuality, HeadRecipe, HeadSet, ModelTag
from cast.layer_measures import CKA, NEIGHBOURS, R_SQUARED
from cast.layerwise import compare_layers
from cast.measures import cosine, debiased_cka, knn_overlap, measured, r_squared
from cast.models import LanguageModel, load
from cast.progress import OnProgress, Progress, ignore
from cast.unfinished import Unfinished

Heads = dict[tuple[int, str], AffineHead]
# The neighbour and kernel measures compare all rows with all; a thousand rows tell enough.
_MEASURED_ROWS = 1000
# With a giant vocabulary a position's logits take as much work as the rest of the model.
_KL_ROWS = 512
# Layers are compared on so many tokens.
_COMPARED_ROWS = 1000
_LIKENESS = {"cka": CKA, "r2": R_SQUARED, "knn": NEIGHBOURS}
# 1.1e-2 at width 160: half and twice as much were worse (docs/experiments.md).
_RATE_TIMES_WIDTH = 1.75


@dataclass(frozen=True)
class FitConfig:
    """How heads are fitted.

    Attributes:
        kind: `mlp` (an affine part and a GELU residual) or `affine`.
        tokens: aligned pairs to fit on; fewer where the text ends.
        held_out_tokens: aligned pairs kept from the fit; half of them decide (ridge, best step), half are
            reported.
        layers: which source depth belongs to a target depth: by `depth` (the same share of either stack), or
            the monotone map of most alike layers, by held-out `r2`, `cka` or shared neighbours (`knn`).
        encode_reads: target depths that an encode head reads, its own the last of them. A target has moved on
            from what the source still holds, such as which token it reads; what was there before tells it.
        depths: target depths to fit; None for all. Hosting the whole source stack needs 0 and the last only.
        mlp_width: hidden units of an MLP head.
        deepest_width: hidden units of the deepest decode head, through which the whole-stack mode writes.
        passes: how often the texts are run through the models for gradient steps.
        repeats: how often each chunk of pairs is used for steps before it is dropped.
        learning_rate: peak of the gradient steps; None sets it by the models' width, since a
            step of Adam moves an output by so much for each input.
        kl_weight: of the target's own metric (KL, nats) for the deepest decode head; 0 leaves it out.
        batch_size: texts run through the models at once.
        step_rows: pairs in a gradient step.
        chunk_rows: pairs held in memory at once for gradient steps.
        max_length: tokens at which a text is cut.
        seed: of the split, the order and the initialisation.
        corpus: what the text is, for the record.
        save_seconds: interval of checkpoints.
    """

    kind: Literal["affine", "mlp"] = "mlp"
    tokens: int = 60_000
    held_out_tokens: int = 4_000
    layers: Literal["depth", "r2", "cka", "knn"] = "depth"
    encode_reads: int = 1
    depths: tuple[int, ...] | None = None
    mlp_width: int = 112
    deepest_width: int = 320
    passes: int = 1
    repeats: int = 6
    learning_rate: float | None = None
    kl_weight: float = 1.0
    batch_size: int = 32
    step_rows: int = 256
    chunk_rows: int = 8_192
    max_length: int = 256
    seed: int = 0
    corpus: str = "pocket"
    save_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted."""
        if self.kind not in ("affine", "mlp"):
            raise RequestError(f"Heads are 'affine' or 'mlp', not {self.kind!r}.")
        if self.layers not in ("depth", *_LIKENESS):
            raise RequestError(f"Layers are mapped by depth, r2, cka or knn, not by {self.layers!r}.")
        sizes = (
            "tokens",
            "held_out_tokens",
            "mlp_width",
            "deepest_width",
            "passes",
            "repeats",
            "encode_reads",
        )
        for name in (*sizes, "batch_size", "step_rows", "chunk_rows", "max_length", "learning_rate"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise RequestError(f"{name} must be above 0, but is {value}.")


@dataclass(frozen=True)
class _Job:
    """What all stages of one fit share."""

    source: LanguageModel
    target: LanguageModel
    layer_map: LayerMap
    config: FitConfig
    on_progress: OnProgress

    @property
    def depths(self) -> tuple[int, ...]:
        every = range(self.target.depth + 1)
        return tuple(every if self.config.depths is None else sorted(set(self.config.depths)))

    def reading(self, depths: Iterable[int]) -> list[int]:
        """The target depths that are read to fit heads at the given ones."""
        return sorted({place for depth in depths for place in below(depth, self.config.encode_reads)})

    @property
    def deepest(self) -> tuple[int, str]:
        return self.target.depth, "decode"

    def batches(self, texts: Sequence[str], depths: Sequence[int]) -> Iterator[PairedBatch]:
        return paired_batches(
            self.source, self.target, texts, self.layer_map,
            batch_size=self.config.batch_size, depths=self.reading(depths), max_length=self.config.max_length,
        )  # fmt: skip

    def logits(self, hidden: Tensor) -> Tensor:
        return self.target.architecture.logits(hidden.to(self.target.device, self.target.dtype))


def fit_heads(
    source: LanguageModel,
    target: LanguageModel,
    texts: Iterable[str],
    config: FitConfig | None = None,
    *,
    checkpoint: Path | None = None,
    on_progress: OnProgress = ignore,
) -> HeadSet:
    """Fit the heads of an ordered pair of models on general text.

    Args:
        source: the model whose adapters are to be carried.
        target: the model that is to receive them.
        texts: general text; only as much as is needed is read.
        config: how; see `FitConfig`.
        checkpoint: folder for an unfinished fit. One of the same fit is gone on with, and removed at the end.
        on_progress: gets the stages `text`, `layers` (where layers are compared), `activations`, `heads` and
            `quality`.

    Returns:
        The heads with their quality on text that was not fitted on.

    Raises:
        CorpusError: the text is too short to determine the heads.
        HeadsError: the checkpoint belongs to another fit, or is damaged.
        RequestError: a wanted depth is outside the target.
    """
    config = config or FitConfig()
    by_depth = LayerMap.by_relative_depth(source.depth, target.depth)
    job = _Job(source, target, by_depth, config, on_progress)
    if not job.depths or not set(job.depths) <= set(range(target.depth + 1)):
        raise RequestError(f"{target.name} has the depths 0 to {target.depth}; choose among those.")
    on_progress(Progress("text", 0, 1))
    fitted, held = _split(job, texts)
    if config.layers != "depth":
        job = replace(job, layer_map=_most_alike(job, fitted))
    unfinished = Unfinished(checkpoint, _key(job, fitted), config.save_seconds)
    choice, report = _held_out(job, held)
    heads, count = _affine(job, fitted, choice, unfinished)
    heads |= _refined(job, heads, count, fitted, choice, unfinished)
    pairs = {depth: HeadPair(heads[depth, "encode"], heads[depth, "decode"]) for depth in job.depths}
    quality = tuple(_quality(job, depth, pairs[depth], report) for depth in job.depths)
    unfinished.remove()
    return HeadSet(
        source=ModelTag.of(source),
        target=ModelTag.of(target),
        layer_map=job.layer_map,
        pairs=tuple(pairs.get(depth) for depth in range(target.depth + 1)),
        quality=quality,
        recipe=HeadRecipe(
            kind=config.kind,
            corpus=config.corpus,
            tokens=count,
            held_out_tokens=len(report),
            seed=config.seed,
            dtype=str(target.dtype).removeprefix("torch."),
            layers=config.layers,
        ),
    )


def fit_pocket_heads(
    source: str, target: str, *, checkpoint: Path | None = None, on_progress: OnProgress = ignore
) -> HeadSet:
    """Fit the heads that the pocket zoo ships for an ordered pair, such as `llama` and `mistral`."""
    models = load(f"pocket:{source}"), load(f"pocket:{target}")
    return fit_heads(*models, texts=general_text("pocket"), checkpoint=checkpoint, on_progress=on_progress)


def _split(job: _Job, texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Texts to fit on, and texts held out: in an order by hash, so that no text can be on both sides."""
    config = job.config
    needed = 2 * max(job.source.width, job.target.width) + config.held_out_tokens
    taken = take_tokens(
        texts,
        job.source,
        config.tokens + config.held_out_tokens,
        partner=job.target,
        at_least=needed,
        max_length=config.max_length,
    )
    ordered = sorted(dict.fromkeys(taken), key=lambda text: _digest(config.seed, text))
    held = take_tokens(
        ordered, job.source, config.held_out_tokens, partner=job.target, max_length=config.max_length
    )
    return ordered[len(held) :], held


def _most_alike(job: _Job, texts: Sequence[str]) -> LayerMap:
    """The monotone map of most alike layers, compared on text to fit on: what is held out stays unread."""
    grids = compare_layers(
        job.source, job.target, texts,
        points=_COMPARED_ROWS, seed=job.config.seed, on_progress=job.on_progress,
    ).grids  # fmt: skip
    return LayerMap.by_likeness(grids[_LIKENESS[job.config.layers]].values.tolist())


def _held_out(job: _Job, texts: Sequence[str]) -> tuple[PairedBatch, PairedBatch]:
    """The pairs that decide and the pairs that are reported, from different texts, each in random order."""
    middle = max(1, len(texts) // 2)
    generator = torch.Generator().manual_seed(job.config.seed)
    halves = []
    for half in (texts[:middle], texts[middle:] or texts[:middle]):
        batch = PairedBatch.joined(list(job.batches(half, job.depths)))
        halves.append(batch.take(torch.randperm(len(batch), generator=generator)))
    return halves[0], halves[1]


def _affine(
    job: _Job, texts: Sequence[str], choice: PairedBatch, unfinished: Unfinished
) -> tuple[Heads, int]:
    """Affine heads from one pass of both models over the texts, and the number of pairs in it."""
    if state := unfinished.stage("steps"):
        return _restored(job, state), int(state["count"])
    ridge, done = RidgeFitter(job.depths, job.source.width, job.target.width, job.config.encode_reads), 0
    if state := unfinished.stage("moments"):
        ridge.load_state(state)
        done = int(state["texts"])
    texts, size = sorted(texts, key=len), job.config.batch_size  # Like lengths together need little padding.
    for start in range(done, len(texts), size):
        for batch in job.batches(texts[start : start + size], job.depths):
            ridge.update(batch)
        done = min(start + size, len(texts))
        unfinished.offer("moments", ridge.state() | {"texts": torch.tensor(done)})
        job.on_progress(Progress("activations", done, len(texts), {"tokens": float(ridge.count)}))
    pairs = ridge.result(choice)
    return {
        (depth, way): head for depth in pairs for way, head in pairs[depth]._asdict().items()
    }, ridge.count


def _kept(heads: Heads, count: int) -> dict[str, Tensor]:
    """The affine heads as a checkpoint of the gradient steps keeps them."""
    kept = {"count": torch.tensor(count)}
    for (depth, way), head in heads.items():
        kept |= {f"affine.{depth}.{way}.{name}": value.clone() for name, value in head.state_dict().items()}
    return kept


def _restored(job: _Job, state: Mapping[str, Tensor]) -> Heads:
    source, target = job.source.width, job.target.width
    heads: Heads = {}
    for depth in job.depths:
        heads[depth, "encode"] = AffineHead(target * len(job.reading([depth])), source)
        heads[depth, "decode"] = AffineHead(source, target)
    for (depth, way), head in heads.items():
        head.requires_grad_(False)
        head.load_state_dict({name: state[f"affine.{depth}.{way}.{name}"] for name in head.state_dict()})
    return heads


def _refined(
    job: _Job, heads: Heads, count: int, texts: Sequence[str], choice: PairedBatch, unfinished: Unfinished
) -> Heads:
    """Gradient steps: on all heads of an `mlp` fit, on the deepest decode head alone of an `affine` one."""
    config, kept = job.config, _kept(heads, count)
    trained = _to_train(job, heads)
    if not trained:
        return {}
    schedule = GradientSchedule(
        rows=count * config.passes * config.repeats,
        learning_rate=config.learning_rate or _RATE_TIMES_WIDTH / max(job.source.width, job.target.width),
        kl_weight=config.kl_weight,
        kl_rows=kl_rows(job.target.vocabulary),
    )
    by_depth = {
        depth: r_squared(heads[depth, "decode"](choice.source[depth]), choice.target[depth])
        for depth in job.depths
    }
    # Beside the target, whose logits are part of the loss.
    beside = {key: head.to(job.target.device) for key, head in trained.items()}
    fitter = MLPFitter(beside, schedule, deepest=job.deepest, logits=job.logits, reads=config.encode_reads)
    first = 0
    if state := unfinished.stage("steps"):
        fitter.load_state(state)
        first = int(state["chunk"])
    metrics = fitter.validate(choice)

    def report() -> None:
        depths = by_depth | fitter.by_depth
        job.on_progress(Progress("heads", fitter.seen, schedule.rows, dict(metrics), depths))

    depths = sorted({depth for depth, _ in trained})
    for index, chunk in _chunks(job, texts, depths, first):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        for _ in range(config.repeats):
            for rows in torch.randperm(len(chunk), generator=generator).split(config.step_rows):
                metrics |= {"loss": fitter.update(chunk.take(rows))}
                report()
        metrics |= fitter.validate(choice)
        unfinished.offer("steps", kept | fitter.state() | {"chunk": torch.tensor(index + 1)})
        report()
    return fitter.result()


def _to_train(job: _Job, heads: Heads) -> Heads:
    config = job.config
    if config.kind == "affine":
        return {job.deepest: heads[job.deepest]} if job.deepest in heads and config.kl_weight else {}
    generator = torch.Generator().manual_seed(config.seed)
    return {
        key: widened(head, config.deepest_width if key == job.deepest else config.mlp_width, generator)
        for key, head in heads.items()
    }


def _chunks(
    job: _Job, texts: Sequence[str], depths: Sequence[int], first: int
) -> Iterator[tuple[int, PairedBatch]]:
    """Chunks of about `chunk_rows` pairs from whole texts, numbered through all passes, from `first` on.

    Each is the same whatever was skipped before it, so that a resumed fit equals an unbroken one.
    """
    config = job.config
    size = max(1, round(config.chunk_rows * len(texts) / config.tokens))
    starts = range(0, len(texts), size)
    for index in range(first, config.passes * len(starts)):
        turn = torch.Generator().manual_seed(config.seed + index // len(starts))
        order = torch.randperm(len(texts), generator=turn).tolist()
        start = starts[index % len(starts)]
        chunk = sorted((texts[place] for place in order[start : start + size]), key=len)
        batches = list(job.batches(chunk, depths))
        if batches:
            yield index, PairedBatch.joined(batches)


def _quality(job: _Job, depth: int, pair: HeadPair, report: PairedBatch) -> DepthQuality:
    source, target = report.source[depth], report.target[depth]
    encode = _one_quality(job, pair.encode, report.below(depth, job.config.encode_reads), source)
    decode = _one_quality(job, pair.decode, source, target)
    if depth == job.target.depth:
        decode = replace(decode, kl=_held_out_kl(job, pair.decode, source[:_KL_ROWS], target[:_KL_ROWS]))
    job.on_progress(Progress("quality", depth + 1, job.target.depth + 1))
    return DepthQuality(depth, job.layer_map[depth], encode, decode)


@torch.no_grad()
def _held_out_kl(job: _Job, decode: AffineHead, source: Tensor, target: Tensor) -> float:
    at_once = kl_rows(job.target.vocabulary)
    total = sum(
        len(x) * float(next_token_kl(job.logits, y, decode(x)))
        for x, y in zip(source.split(at_once), target.split(at_once), strict=True)
    )
    return total / len(source)


@torch.no_grad()
def _one_quality(job: _Job, head: AffineHead, x: Tensor, y: Tensor) -> HeadQuality:
    seed, predicted = job.config.seed, head(x)
    few, few_true = predicted[:_MEASURED_ROWS], y[:_MEASURED_ROWS]
    return HeadQuality(
        r_squared=measured(r_squared, predicted, y, seed=seed),
        cosine=measured(cosine, predicted, y, seed=seed),
        knn_overlap=measured(knn_overlap, few, few_true, seed=seed),
        cka=measured(debiased_cka, few, few_true, seed=seed),
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _key(job: _Job, texts: Sequence[str]) -> str:
    """What a checkpoint must agree in to be gone on with."""
    settings = sorted(asdict(job.config).items())
    models = (job.source.fingerprint, job.target.fingerprint, job.target.dtype)
    return _digest(settings, *models, job.layer_map.table, *texts)
