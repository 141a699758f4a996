"""Heads: maps between the residual streams of two models, and the folder that keeps them.

At target depth l the *encode* head maps h^T_l, and maybe the target's states before it, to h^S_{m(l)}; the
*decode* head maps h^S_{m(l)} to h^T_l.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cast.alignment import LayerMap, below
from cast.errors import HeadsError
from cast.headmaps import AffineHead, HeadPair, MLPHead
from cast.measures import Measured
from cast.storage import written_folder
from cast.tensorfiles import read_header

if TYPE_CHECKING:
    from cast.models import LanguageModel

__all__ = [
    "AffineHead",
    "DepthQuality",
    "HeadPair",
    "HeadQuality",
    "HeadRecipe",
    "HeadSet",
    "MLPHead",
    "ModelTag",
]

FORMAT = "cast-heads"
VERSION = 1
LARGEST_DIMENSION = 65_536
LARGEST_JSON = 4_000_000


@dataclass(frozen=True)
class ModelTag:
    """What a head remembers of a model.

    Attributes:
        name: as it was loaded, a Hub id, `pocket:llama` or the name of a folder.
        revision: commit of the Hub repository, empty for local models.
        fingerprint: hash of config, tokenizer and weights.
        width: of the residual stream.
        depth: number of blocks.
    """

    name: str
    revision: str
    fingerprint: str
    width: int
    depth: int

    @classmethod
    def of(cls, lm: "LanguageModel") -> "ModelTag":
        """The tag of a loaded model."""
        return cls(lm.name, lm.revision or "", lm.fingerprint, lm.width, lm.depth)


@dataclass(frozen=True)
class HeadQuality:
    """How well one head does on held-out text, each measure beside its control with shuffled pairs.

    Attributes:
        r_squared, cosine, knn_overlap, cka: see `cast.measures`.
        kl: nats between the target's next-token distribution from its own last residual and from the decoded
            one; only of the deepest decode head.
    """

    r_squared: Measured
    cosine: Measured
    knn_overlap: Measured
    cka: Measured
    kl: float | None = None


@dataclass(frozen=True)
class DepthQuality:
    """Held-out quality of both heads at one target depth."""

    depth: int
    source_depth: int
    encode: HeadQuality
    decode: HeadQuality


@dataclass(frozen=True)
class HeadRecipe:
    """How the heads were fitted.

    Attributes:
        kind: `affine` or `mlp`.
        corpus: what the text was.
        tokens: aligned pairs that were fitted on.
        held_out_tokens: aligned pairs that the quality was measured on.
        seed: of initialisation and order.
        dtype: the models' dtype while their activations were taken.
        layers: how the layer map was chosen; see `cast.fitting.FitConfig`.
    """

    kind: str
    corpus: str
    tokens: int
    held_out_tokens: int
    seed: int
    dtype: str
    layers: str = "depth"


@dataclass(frozen=True)
class HeadSet:
    """All heads of one ordered pair of models.

    Attributes:
        source: tag of the source model.
        target: tag of the target model.
        layer_map: m.
        pairs: index = target depth 0 … L_t; None at a depth that was not fitted.
        quality: of the fitted depths, in order.
        recipe: how they were fitted.
    """

    source: ModelTag
    target: ModelTag
    layer_map: LayerMap
    pairs: tuple[HeadPair | None, ...]
    quality: tuple[DepthQuality, ...]
    recipe: HeadRecipe

    @property
    def depths(self) -> tuple[int, ...]:
        """The target depths that have heads."""
        return tuple(depth for depth, pair in enumerate(self.pairs) if pair is not None)

    def at(self, depth: int) -> HeadPair:
        """The heads at a target depth.

        Raises:
            HeadsError: they were not fitted there.
        """
        pair = self.pairs[depth]
        if pair is None:
            fitted = ", ".join(map(str, self.depths))
            raise HeadsError(
                f"These heads were fitted at depths {fitted} only; fit them at depth {depth} as well."
            )
        return pair

    def read_by_encode(self, depth: int) -> range:
        """The target depths whose states, one behind the other, the encode head at a depth reads."""
        return below(depth, self.at(depth).encode.in_features // self.target.width)

    def to(self, device: torch.device | str) -> "HeadSet":
        """Move the heads' weights; returns the same set."""
        for _, _, head in self._heads():
            head.to(device)
        return self

    def check(self, source_lm: "LanguageModel", target_lm: "LanguageModel") -> None:
        """Make sure that the heads were made for exactly these two models.

        Raises:
            HeadsError: they are for another pair, the pair in the other direction, or another revision.
        """
        wanted, given = (self.source, self.target), (ModelTag.of(source_lm), ModelTag.of(target_lm))
        if all(mine.fingerprint == yours.fingerprint for mine, yours in zip(wanted, given, strict=True)):
            return
        pair, asked = (f"{source.name} → {target.name}" for source, target in (wanted, given))
        if all(
            mine.fingerprint == yours.fingerprint for mine, yours in zip(wanted, given[::-1], strict=True)
        ):
            raise HeadsError(f"These heads run {pair}, the other way; use or fit heads for {asked}.")
        if pair == asked:
            changed = next(m for m, y in zip(wanted, given, strict=True) if m.fingerprint != y.fingerprint)
            was = f" (revision {changed.revision})" if changed.revision else ""
            raise HeadsError(
                f"These heads were made for other weights of {changed.name}{was}; "
                "load that revision, or fit the heads again."
            )
        raise HeadsError(
            f"These heads were made for {pair}, not for {asked}; use or fit heads for this pair."
        )

    def save(self, folder: Path | str, *, replace: bool = False) -> None:
        """Write `heads.json`, `heads.safetensors` and a card; the folder is there whole or not at all.

        Raises:
            OutputError: the folder is not empty (unless `replace`) or cannot be written.
        """
        document = {
            "format": FORMAT,
            "version": VERSION,
            "source": asdict(self.source),
            "target": asdict(self.target),
            "layer_map": list(self.layer_map.table),
            "heads": {f"{depth}.{way}": _shape_of(head) for depth, way, head in self._heads()},
            "quality": [asdict(entry) for entry in self.quality],
            "recipe": asdict(self.recipe),
        }
        tensors = {
            f"{depth}.{way}.{name}": _stored(name, tensor)
            for depth, way, head in self._heads()
            for name, tensor in head.state_dict().items()
        }
        with written_folder(Path(folder), replace=replace) as draft:
            (draft / "heads.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            save_file(tensors, draft / "heads.safetensors", metadata={"format": "pt"})
            (draft / "README.md").write_text(card(self), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> "HeadSet":
        """Read heads; the shapes that the JSON promises are checked before any weight is read.

        Raises:
            HeadsError: a file is missing, damaged, of another format version, or the two files disagree.
        """
        folder = Path(folder)
        document = _read_document(folder / "heads.json")
        try:
            source, target = (ModelTag(**document[side]) for side in ("source", "target"))
            layer_map = LayerMap(tuple(int(depth) for depth in document["layer_map"]))
            heads = {name: _empty_head(shape) for name, shape in document["heads"].items()}
            quality = tuple(_quality(entry) for entry in document["quality"])
            recipe = HeadRecipe(**document["recipe"])
            pairs = _paired(heads, source, target, layer_map)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HeadsError(
                f"{folder / 'heads.json'} is damaged ({error}); fit or download it again."
            ) from error
        _fill(heads, folder / "heads.safetensors")
        return cls(source, target, layer_map, pairs, quality, recipe)

    def _heads(self) -> Iterator[tuple[int, str, AffineHead]]:
        for depth in self.depths:
            for way, head in self.at(depth)._asdict().items():
                yield depth, way, head


def _shape_of(head: AffineHead) -> dict[str, int]:
    return {"in": head.in_features, "out": head.out_features, "width": getattr(head, "width", 0)}


def _empty_head(shape: Mapping[str, int]) -> AffineHead:
    sizes = shape["in"], shape["out"], shape["width"]
    if not all(type(size) is int and 0 <= size <= LARGEST_DIMENSION for size in sizes) or 0 in sizes[:2]:
        raise ValueError(f"a head cannot have the sizes {sizes}")
    with torch.device("meta"):  # Takes no memory until the file has been seen to hold these very shapes.
        head = MLPHead(*sizes) if sizes[2] else AffineHead(*sizes[:2])
    return head.requires_grad_(False)


def _paired(
    heads: Mapping[str, AffineHead], source: ModelTag, target: ModelTag, layer_map: LayerMap
) -> tuple[HeadPair | None, ...]:
    if (layer_map.source_depth, layer_map.target_depth) != (source.depth, target.depth):
        raise ValueError("the layer map does not fit the models' depths")
    pairs: list[HeadPair | None] = [None] * (target.depth + 1)
    for depth in sorted({int(name.partition(".")[0]) for name in heads}):
        pair = HeadPair(heads[f"{depth}.encode"], heads[f"{depth}.decode"])
        widths = [(head.in_features, head.out_features) for head in pair]
        # An encode head may read the depths before its own as well.
        reads = widths[0][0] // target.width
        if not 1 <= reads <= depth + 1 or widths != [
            (reads * target.width, source.width),
            (source.width, target.width),
        ]:
            raise ValueError(f"the heads at depth {depth} do not fit the models' widths")
        pairs[depth] = pair
    if not heads or len(heads) != 2 * sum(pair is not None for pair in pairs):
        raise ValueError("heads are missing or named wrongly")
    return tuple(pairs)


def _quality(entry: Mapping[str, Any]) -> DepthQuality:
    def one(head: Mapping[str, Any]) -> HeadQuality:
        measures = {name: Measured(**head[name]) for name in ("r_squared", "cosine", "knn_overlap", "cka")}
        return HeadQuality(**measures, kl=head["kl"])

    return DepthQuality(entry["depth"], entry["source_depth"], one(entry["encode"]), one(entry["decode"]))


def _stored(name: str, tensor: Tensor) -> Tensor:
    """Weights in 16 bits, unless one is too large for them; means and scales in 32."""
    tensor = tensor.detach().cpu().contiguous()
    halved = tensor.half()
    return halved if name.endswith(("weight", "bias")) and bool(halved.isfinite().all()) else tensor


def _read_document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise HeadsError(f"{path} is too large to be a description of heads.")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HeadsError(f"There are no heads in {path.parent}: heads.json cannot be read.") from error
    except ValueError as error:
        if isinstance(error, HeadsError):
            raise
        raise HeadsError(f"{path} is not JSON; fit the heads again, or download them again.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HeadsError(f"{path} does not describe heads of this program.")
    if document.get("version") != VERSION:
        raise HeadsError(
            f"{path} has format version {document.get('version')}, but this program reads {VERSION}."
        )
    return document


def _fill(heads: Mapping[str, AffineHead], path: Path) -> None:
    """Give the empty heads their weights, once names, shapes and types in the file's header were checked."""
    expected = {
        f"{name}.{part}": tuple(tensor.shape)
        for name, head in heads.items()
        for part, tensor in head.state_dict().items()
    }
    held = read_header(path, HeadsError)
    if set(held) != set(expected):
        raise HeadsError(f"{path} does not hold the tensors that heads.json names; fit the heads again.")
    for name, shape in expected.items():
        if held[name].shape != shape or held[name].dtype not in {"F16", "F32"}:
            raise HeadsError(f"{path} holds {name} in another shape or type than heads.json promises.")
    tensors = load_file(path)
    for name, head in heads.items():
        state = {part: tensors[f"{name}.{part}"].float() for part in head.state_dict()}
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise HeadsError(f"{path} holds values that are not numbers in {name}; fit the heads again.")
        head.load_state_dict(state, assign=True)
        head.requires_grad_(False)


def card(heads: HeadSet) -> str:
    """The model card of a heads folder, in Markdown."""
    rows = "\n".join(_card_row(entry) for entry in heads.quality)
    kl = next((entry.decode.kl for entry in reversed(heads.quality) if entry.decode.kl is not None), None)
    closing = (
        f"\nRead through the target's final norm and head, the deepest decode head is {kl:.4f} nats (KL)"
        " from the target's own next-token distribution.\n"
        if kl is not None
        else ""
    )
    return f"""---
library_name: cast
tags: [cast, activation-heads, lora]
---

# Heads {heads.source.name} → {heads.target.name}

Maps between the residual streams of two language models, by which CAST carries a LoRA of the first
to the second.

- source: {heads.source.name} (width {heads.source.width}, {heads.source.depth} blocks)
- target: {heads.target.name} (width {heads.target.width}, {heads.target.depth} blocks)
- kind: {heads.recipe.kind}; text: {heads.recipe.corpus}
- layers mapped by {heads.recipe.layers}: {", ".join(map(str, heads.layer_map.table))}
- fitted on {heads.recipe.tokens:,} aligned tokens, seed {heads.recipe.seed}

Measured on {heads.recipe.held_out_tokens:,} aligned tokens of text that was not fitted on. In brackets: the
same measure with shuffled pairs. Dimensions are standardised, so each counts alike.

| target depth | source depth | way | R² | cosine | 10-NN overlap | debiased CKA |
|---|---|---|---|---|---|---|
{rows}
{closing}"""


def _card_row(entry: DepthQuality) -> str:
    def one(way: str, quality: HeadQuality) -> str:
        measures = (quality.r_squared, quality.cosine, quality.knn_overlap, quality.cka)
        cells = " | ".join(f"{measure.value:.3f} ({measure.control:.3f})" for measure in measures)
        return f"| {entry.depth} | {entry.source_depth} | {way} | {cells} |"

    return one("encode", entry.encode) + "\n" + one("decode", entry.decode)
