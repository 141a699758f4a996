"""Orthogonal transports: rotations between the two models' sites, found by Procrustes on general text.

Rows X [N, d_s] and Y [N, d_t] give the map `cast.fitters.procrustes`; they are not centred, as in the
authors' code.
Both papers read one image or text by both models; here tokenizers differ, so the rows are the aligned pairs.
Widths may differ (T is then rectangular); where depths do, sites of one role at the same relative depth are
paired, and a rectangular T pairs fused and separate projections too.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cast.activations import residuals
from cast.adapters import Lora
from cast.alignment import NO_PAIRS, align
from cast.architecture import Site
from cast.baselines.registry import Given, baseline
from cast.errors import CorpusError
from cast.fitters import procrustes
from cast.headmaps import AffineHead
from cast.models import LanguageModel, TokenBatch
from cast.recipes import TranslationConfig
from cast.runners import PlainRunner, Runner
from cast.site_values import gradient_at, watched
from cast.sites import SiteMap, SiteMaps, SitePair
from cast.storage import write_atomically


@baseline(
    "theseus", "arXiv 2602.12952: ΔW_t = T_outᵀ ΔW_s T_in, Procrustes on site inputs and outputs", text=True
)
def theseus(given: Given) -> Runner:
    """Rotate the kernel into the target: T_in between the sites' inputs, T_out between their outputs.

    The paper's eq. 10 writes the transposes the other way round, which multiplies only where widths agree;
    this is the form of its appendix and of the authors' code.
    """
    return PlainRunner(given.target, _rotated(given, "Theseus", by_gradient=False))


@baseline(
    "bico", "arXiv 2605.28444: ΔW_t = R_outᵀ ΔW_s R_in, R_out by the gradients at the outputs", text=True
)
def bico(given: Given) -> Runner:
    """The same with the output side aligned by ∂loss/∂output, which with inputs is what forms a task vector.

    The paper takes the loss of its calibration set's task; there are no labels here, so it is that of the
    next token.
    """
    return PlainRunner(given.target, _rotated(given, "BiCo", by_gradient=True))


def _rotated(given: Given, name: str, *, by_gradient: bool) -> Lora:
    """The adapter rotated into the target, its rank kept."""
    pairs = given.site_pairs()
    crossed = _crossed(given, pairs, by_gradient)
    maps = tuple(
        SiteMap(pair, AffineHead.of(procrustes(inputs)), procrustes(outputs).T.float())
        for pair, (inputs, outputs) in zip(pairs, crossed, strict=True)
    )
    return Lora(name, given.target.name, SiteMaps(maps).instant(given.lora))


def _crossed(given: Given, pairs: Sequence[SitePair], by_gradient: bool) -> list[tuple[Tensor, Tensor]]:
    """XᵀY of inputs and of what outputs are aligned by, for each site pair: from the cache, or from the text.

    They depend on the sites and not on the kernels, so the adapters of a model share them.
    """
    path = given.cache and given.cache / f"{_key(given, pairs, by_gradient)}.safetensors"
    if path is not None and path.is_file():
        with suppress(OSError, SafetensorError, KeyError):
            kept = load_file(path)
            return [(kept[f"{index}.in"], kept[f"{index}.out"]) for index in range(len(pairs))]
    sums = [
        (
            torch.zeros(pair.source.in_features, pair.target.in_features, dtype=torch.float64),
            torch.zeros(pair.source.out_features, pair.target.out_features, dtype=torch.float64),
        )
        for pair in pairs
    ]
    for texts in given.batches():
        # One model after the other: source and target may be the same one.
        at_source = _read(given.source, {pair.source for pair in pairs}, texts, given.config, by_gradient)
        at_target = _read(given.target, {pair.target for pair in pairs}, texts, given.config, by_gradient)
        aligned = align(at_source.tokens, at_target.tokens)
        for pair, totals in zip(pairs, sums, strict=True):
            for side, total in enumerate(totals):
                x = at_source.sides[side][pair.source.name][aligned.row, aligned.source_position]
                y = at_target.sides[side][pair.target.name][aligned.row, aligned.target_position]
                # In float32 within a batch, which is several times faster and loses nothing that counts.
                total += (x.float().T @ y.float()).cpu().double()
    if not all(inputs.any() for inputs, _ in sums):
        raise CorpusError(NO_PAIRS)
    if path is not None:
        named = (
            (f"{index}.{way}", total)
            for index, both in enumerate(sums)
            for way, total in zip(("in", "out"), both, strict=True)
        )
        write_atomically(path, save(dict(named)))
    return sums


def _key(given: Given, pairs: Sequence[SitePair], by_gradient: bool) -> str:
    """A name for exactly these moments: models, sites, text and the settings that count."""
    digest = hashlib.sha256()
    settings = [
        "rotations", given.source.fingerprint, given.target.fingerprint, by_gradient, given.config.max_length,
        [[pair.source.name, pair.target.name] for pair in pairs],
        str(given.source.dtype), str(given.target.dtype),
    ]  # fmt: skip
    digest.update(json.dumps(settings).encode())
    for text in given.texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _Read:
    """One batch at the sites of a model: `sides` holds inputs and what outputs are aligned by, [B, n, *]."""

    tokens: TokenBatch
    sides: tuple[dict[str, Tensor], dict[str, Tensor]]


def _read(
    lm: LanguageModel, sites: set[Site], texts: Sequence[str], config: TranslationConfig, by_gradient: bool
) -> _Read:
    tokens = lm.encode(texts, max_length=config.max_length)
    with torch.set_grad_enabled(by_gradient), watched(lm, sites, tokens, by_gradient) as values:
        last = residuals(lm, tokens, [lm.depth])[lm.depth]
        if not by_gradient:
            return _Read(tokens, (values.inputs, values.outputs))
        real = tokens.attention_mask[:, 1:].bool()
        logits = lm.architecture.logits(last[:, :-1][real]).float()
        loss = torch.nn.functional.cross_entropy(logits, tokens.input_ids[:, 1:][real], reduction="sum")
        return _Read(tokens, (values.inputs, gradient_at(loss, values.probes)))
