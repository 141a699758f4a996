"""Fits site maps for an adapter's sites on general text, from moments that are streamed batch by batch.

The encode side P is a ridge regression of the source site's input on the target site's input at aligned
pairs, or the rotation nearest to it (orthogonal Procrustes), which keeps the length of what a ridge shrinks.
The decode side Q is the same of site outputs, or the *adjoint*:
with u ~ N(0, I) for each pair and each mapped depth downstream, the gradient of Σ⟨u, h^T_l⟩ at the target
site's output is what that output is worth to the residual stream, and the gradient of Σ⟨u, D_l h^S_{m(l)}⟩ at
the source site's output, with the same u, is what the kernel's change is worth once carried over. Regressing
the second on the first gives Qᵀ: the decoded change is worth to the target what the change was worth to the
source.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cast.activations import Moments, PairedBatch
from cast.adapters import Lora
from cast.errors import CorpusError
from cast.fitters import GradientSchedule, MLPFitter, procrustes, ridge_head, widened
from cast.headmaps import AffineHead, MLPHead
from cast.heads import HeadSet
from cast.models import LanguageModel
from cast.progress import OnProgress, Progress, ignore
from cast.recipes import TranslationConfig
from cast.site_values import PairedSites, SiteReader
from cast.sites import SiteMap, SiteMaps, SitePair, pair_sites
from cast.storage import write_atomically

_BATCH = 16
_HIDDEN = 128


class SiteMapFitter:
    """Accumulates moments over batches of sites; `result` solves for the maps.

    Memory depends on the widths of the sites, never on the number of batches.

    Args:
        pairs: the site pairs, in the order of the batches.
        config: its `encode_fit`, `decode_fit` and `mode` count: a kernel's encode side may have an intercept.
    """

    def __init__(self, pairs: Sequence[SitePair], config: TranslationConfig) -> None:
        self._pairs, self._config = tuple(pairs), config
        self._encode: dict[int, Moments] = {}
        self._decode: list[Moments] = []
        self._same_input: tuple[int, ...] = ()
        self.count = 0
        """Aligned pairs so far."""

    def update(self, batch: PairedSites) -> None:
        """Add one batch."""
        if not self._decode:
            self._same_input = batch.same_input
            self._encode = {index: _moments(*batch.encode[index]) for index in sorted(set(batch.same_input))}
            self._decode = [_moments(*rows) for rows in batch.decode]
        for index, moments in self._encode.items():
            moments.update(*batch.encode[index])
        for moments, rows in zip(self._decode, batch.decode, strict=True):
            moments.update(*rows)
        self.count += len(batch)

    def result(self, validation: PairedSites, on_progress: OnProgress = ignore) -> SiteMaps:
        """Solve for all maps, in float64, with the ridge that does best on pairs that were not added.

        It takes a while where sites are many and wide; before each map `on_progress` hears that all pairs are
        read, and may stop it.

        Raises:
            CorpusError: fewer aligned pairs than the widest site input has dimensions.
        """
        needed = max(pair.target.in_features for pair in self._pairs)
        if self.count < needed or not len(validation):
            raise CorpusError(
                f"The text gives {self.count} aligned tokens, and the site maps of this pair need {needed} "
                "at least; give more text."
            )
        encode, maps = {}, []
        for index, moments in self._encode.items():
            on_progress(Progress("sites", self.count, self.count))
            encode[index] = self._encode_head(moments, *validation.encode[index])
        for index, pair in enumerate(self._pairs):
            on_progress(Progress("sites", self.count, self.count))
            maps.append(
                SiteMap(pair, encode[self._same_input[index]], self._decode_matrix(index, validation))
            )
        return SiteMaps(tuple(maps))

    def _encode_head(self, moments: Moments, x: Tensor, y: Tensor) -> AffineHead:
        """P: without intercept, but in mode `kernel`."""
        if self._config.encode_fit == "rotation":
            return AffineHead.of(procrustes(_about_zero(moments).xy.T))
        return ridge_head(moments if self._config.mode == "kernel" else _about_zero(moments), x, y)

    def _decode_matrix(self, index: int, validation: PairedSites) -> Tensor:
        """Q [out_t, out_s] from the moments of outputs or of gradients."""
        moments, fit = self._decode[index], self._config.decode_fit
        if fit == "rotation":
            return procrustes(_about_zero(moments).xy).T.float().contiguous()
        matrix = ridge_head(moments, *validation.decode[index]).linear_map()
        return matrix.T.contiguous() if fit == "adjoint" else matrix


def _about_zero(moments: Moments) -> Moments:
    """Moments about zero instead of the mean, for maps without intercept."""
    raw = copy.copy(moments)
    raw.xx = moments.xx + moments.count * torch.outer(moments.mean_x, moments.mean_x)
    raw.xy = moments.xy + moments.count * torch.outer(moments.mean_x, moments.mean_y)
    raw.yy = moments.yy + moments.count * torch.outer(moments.mean_y, moments.mean_y)
    raw.mean_x, raw.mean_y = torch.zeros_like(moments.mean_x), torch.zeros_like(moments.mean_y)
    return raw


def _moments(x: Tensor, y: Tensor) -> Moments:
    return Moments(x.shape[-1], y.shape[-1])


def fit_site_maps(
    source: LanguageModel,
    target: LanguageModel,
    lora: Lora,
    heads: HeadSet,
    texts: Sequence[str],
    config: TranslationConfig,
    *,
    cache: Path | None = None,
    on_progress: OnProgress = ignore,
) -> SiteMaps:
    """Site maps for the adapted sites of `lora`, from the cache where the same ones were fitted before.

    Args:
        source: the source model.
        target: the target model.
        lora: the source adapter; only which sites it adapts matters.
        heads: heads of this pair.
        texts: general text; the first batch is held out to choose the ridge.
        config: `site_tokens`, `decode_fit`, `encode_fit`, `seed`, `mode`.
        cache: folder of fitted maps; None keeps none.
        on_progress: gets stage `sites`, in aligned pairs.

    Raises:
        CorpusError: the text is too short for the widest site.
        AdapterError: a hosting block of the target has no linear site.
    """
    adapted = [kernel.site for kernel in lora.kernels]
    pairs = pair_sites(adapted, source.architecture, target.architecture, heads.layer_map)
    path = (
        None if cache is None else cache / f"{_key(source, target, heads, pairs, texts, config)}.safetensors"
    )
    if path is not None and (kept := _load(path, pairs)) is not None:
        return kept
    reader = SiteReader(
        source, target, pairs, heads,
        decode=config.decode_fit, seed=config.seed, max_length=config.max_length,
    )  # fmt: skip
    validation = reader.read(texts[:_BATCH])
    fitter = SiteMapFitter(pairs, config)
    for batch in _batches(reader, texts, config, on_progress):
        fitter.update(batch)
    maps = fitter.result(validation, on_progress)
    if config.mode == "kernel" and config.encode_fit == "mlp":
        maps = _with_mlp(maps, _batches(reader, texts, config, on_progress), validation, fitter.count, config)
    if path is not None:
        write_atomically(path, save(_tensors(maps)))
    return maps


def _batches(
    reader: SiteReader, texts: Sequence[str], config: TranslationConfig, on_progress: OnProgress
) -> Iterator[PairedSites]:
    """Read texts after the held-out batch until there are enough aligned pairs."""
    count = 0
    for start in range(_BATCH, len(texts), _BATCH):
        batch = reader.read(texts[start : start + _BATCH])
        if not len(batch):
            continue
        yield batch
        count += len(batch)
        on_progress(Progress("sites", min(count, config.site_tokens), config.site_tokens))
        if count >= config.site_tokens:
            return


def _with_mlp(
    maps: SiteMaps,
    batches: Iterator[PairedSites],
    validation: PairedSites,
    rows: int,
    config: TranslationConfig,
) -> SiteMaps:
    """The maps with an MLP residual on their encode side, fitted by gradient steps over one more pass."""
    random = torch.Generator().manual_seed(config.seed)
    heads: dict[tuple[int, str], AffineHead] = {
        (index, "encode"): widened(site_map.encode, _HIDDEN, random)
        for index, site_map in enumerate(maps.maps)
    }
    fitter = MLPFitter(heads, GradientSchedule(rows), deepest=(-1, "decode"), logits=torch.nn.Identity())
    held_out = _as_heads_batch(validation)
    fitter.validate(held_out)
    for batch in batches:
        fitter.update(_as_heads_batch(batch))
    fitter.validate(held_out)
    fitted = fitter.result()
    return SiteMaps(
        tuple(
            SiteMap(site_map.pair, fitted[index, "encode"], site_map.decode)
            for index, site_map in enumerate(maps.maps)
        )
    )


def _as_heads_batch(batch: PairedSites) -> PairedBatch:
    """Site inputs in the form in which residual streams are fitted, a site pair for each depth."""
    return PairedBatch(
        source={index: source.float() for index, (_, source) in enumerate(batch.encode)},
        target={index: target.float() for index, (target, _) in enumerate(batch.encode)},
        pairs=batch.pairs,
    )


def _key(
    source: LanguageModel,
    target: LanguageModel,
    heads: HeadSet,
    pairs: Sequence[SitePair],
    texts: Sequence[str],
    config: TranslationConfig,
) -> str:
    """A name for exactly these maps: models, heads, sites, text and the settings that count."""
    digest = hashlib.sha256()
    settings = [
        source.fingerprint, target.fingerprint, list(heads.layer_map.table), vars(heads.recipe),
        [[pair.source.name, pair.target.name, pair.weight] for pair in pairs],
        config.mode == "kernel", config.encode_fit, config.decode_fit, config.site_tokens, config.seed,
        config.max_length, str(source.dtype), str(target.dtype),
    ]  # fmt: skip
    digest.update(json.dumps(settings, sort_keys=True).encode())
    if config.decode_fit == "adjoint":
        for depth in heads.depths:
            digest.update(heads.at(depth).decode.weight.detach().cpu().numpy().tobytes())
    for text in texts[: config.site_tokens // 16]:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def _tensors(maps: SiteMaps) -> dict[str, Tensor]:
    """Every tensor by name, as the cache keeps them."""
    found = {}
    for index, site_map in enumerate(maps.maps):
        found[f"{index}.decode"] = site_map.decode
        found |= {f"{index}.encode.{name}": value for name, value in site_map.encode.state_dict().items()}
    # Sites that read the same input share one encode side, which safetensors will not store twice.
    return {name: value.contiguous().clone() for name, value in found.items()}


def _load(path: Path, pairs: Sequence[SitePair]) -> SiteMaps | None:
    """Kept maps; None where there are none or the file is damaged, so that they are fitted again."""
    try:
        tensors = load_file(path)
        maps = []
        for index, pair in enumerate(pairs):
            sizes = pair.target.in_features, pair.source.in_features
            inner = tensors.get(f"{index}.encode.inner_weight")
            head = AffineHead(*sizes) if inner is None else MLPHead(*sizes, len(inner))
            start = f"{index}.encode."
            head.load_state_dict(
                {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            )
            decode = tensors[f"{index}.decode"]
            if decode.shape != (pair.target.out_features, pair.source.out_features):
                return None
            maps.append(SiteMap(pair, head.requires_grad_(False), decode))
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None
    return SiteMaps(tuple(maps))
