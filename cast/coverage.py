"""How far a text excites an adapter, measured at its source model before anything is fitted.

A kernel's change of a site's output is ΔW·x, ΔW = s·B·A. With the singular directions ΔW = Σ σ_k u_k v_kᵀ its
size is ‖ΔW·x‖² = Σ σ_k² (v_k·x)²: the energy of the site's input along the directions that the kernel reads,
each weighted by what the kernel makes of it (`cast.kernel_energy`). *Energy* is its mean over a text, as a
share of what it is on the adapter's own strongest tokens: those of the vocabulary, read behind beginnings of
the text, on which it is largest; a mean over the adapted sites. *Reach* is the same of what comes out in the
end, the divergence of the next-token distribution. Kernels act a little on every input: single words stand
out by their energy, but its mean over a text differs little between one that shows the skill and one that
does not; reach tells those apart (docs/experiments.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cast.activations import residuals
from cast.adapters import Lora, applied
from cast.errors import CorpusError
from cast.kernel_energy import read_by_kernels
from cast.models import LanguageModel, TokenBatch
from cast.recipes import TranslationConfig

_BATCH = 16
# Tokens of the vocabulary that are tried, behind so many beginnings of the text of so many tokens (with BOS).
_TRIED, _BEGINNINGS, _BEGINNING = 1000, 2, 7
# Of the tried tokens those that count as the strongest.
_STRONGEST = 0.02
_NAMED = 5
_MOST = 0.9


@dataclass(frozen=True)
class Coverage:
    """What a text shows of an adapter."""

    energy: float
    """Mean input energy of the kernels on the text over that on the adapter's strongest tokens."""
    reach: float
    """Mean effect on the text over that on the tokens where it is largest."""
    effect: float
    """KL(base ‖ adapted) of the source's next-token distribution, nats a position of the text."""
    carriers: float
    """Share of the positions that carry nine tenths of the effect."""
    strongest: tuple[str, ...]
    """Tokens on which the kernels act most, the strongest first."""


@torch.no_grad()
def measured_coverage(
    source: LanguageModel, lora: Lora, texts: Sequence[str], *, max_length: int = 256, seed: int = 0
) -> Coverage:
    """Read a text with the source, without and with the adapter.

    Args:
        source: the adapter's model.
        lora: the adapter.
        texts: a few dozen passages are enough.
        max_length: tokens at which a passage is cut.
        seed: of the tokens that are tried and the positions that are looked at where there are too many.

    Raises:
        CorpusError: the text holds no token.
    """
    random = torch.Generator().manual_seed(seed)
    energies, effects = [], []
    for start in range(0, len(texts), _BATCH):
        tokens = source.encode(texts[start : start + _BATCH], max_length=max_length)
        real = tokens.attention_mask.bool()
        real[:, 0] = False
        energy, plain, adapted = _read(source, lora, tokens)
        energies.append(energy[real])
        chosen = torch.randperm(int(real.sum()), generator=random)[: source.positions_at_once].to(real.device)
        effects.append(_effect(source, plain[real][chosen], adapted[real][chosen]))
    if not sum(map(len, energies)):
        raise CorpusError("The text holds no token that the source model could read; give longer text.")
    tried = _tried(source, random)
    energy_of, effect_of = _by_token(source, lora, texts, tried)
    energy, effect = torch.cat(energies), torch.cat(effects)
    count = max(1, round(_STRONGEST * len(tried)))
    most = energy_of.topk(count, dim=0).values.mean(0).clamp_min(torch.finfo(energy.dtype).tiny)
    order = (energy_of / most).mean(1).argsort(descending=True)[:_NAMED]
    peak = float(effect_of.topk(count).values.mean())
    return Coverage(
        energy=min(1.0, float((energy.mean(0) / most).mean())),
        reach=min(1.0, float(effect.mean()) / peak) if peak > 0 else 0.0,
        effect=float(effect.mean()),
        carriers=_carriers(effect),
        strongest=tuple(source.token_texts[int(tried[place])] for place in order),
    )


def covered(
    source: LanguageModel, lora: Lora, texts: Sequence[str], prompts: Sequence[str], config: TranslationConfig
) -> Coverage:
    """The coverage of a compiled fit's text: two batches of what its steps read.

    Args:
        source: the adapter's model.
        lora: the adapter.
        texts: general text.
        prompts: prompts with the adapter's answers, of which `config.prompt_share` of a batch is drawn.
        config: see there.
    """
    mixed_in = round(2 * config.batch_size * config.prompt_share) if prompts else 0
    sample = [*prompts[:mixed_in], *texts[: 2 * config.batch_size - min(mixed_in, len(prompts))]]
    return measured_coverage(source, lora, sample, max_length=config.max_length, seed=config.seed)


def _read(lm: LanguageModel, lora: Lora, tokens: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [B, n, sites], and the last residuals [B, n, d] without and with the adapter."""
    reading = read_by_kernels(lm, lora, tokens)
    with applied(lm, lora):
        adapted = residuals(lm, tokens, [lm.depth])[lm.depth]
    return reading.energy, reading.last, adapted


def _effect(lm: LanguageModel, plain: Tensor, adapted: Tensor) -> Tensor:
    """KL(base ‖ adapted) [N] of the next-token distributions behind last residuals [N, d]."""
    found = []
    for states in lm.portions(plain, adapted):
        before, after = (lm.architecture.logits(some).float().log_softmax(-1) for some in states)
        found.append((before.exp() * (before - after)).sum(-1))
    return torch.cat(found) if found else plain.new_zeros(0)


def _by_token(lm: LanguageModel, lora: Lora, texts: Sequence[str], tried: Tensor) -> tuple[Tensor, Tensor]:
    """Energies [T, sites] and effects [T] of the tried tokens, in the mean over the beginnings."""
    energies, effects = [], []
    for tokens in _behind_beginnings(lm, texts, tried):
        energy, plain, adapted = _read(lm, lora, tokens)
        energies.append(energy[:, -1])
        effects.append(_effect(lm, plain[:, -1], adapted[:, -1]))
    by_beginning = [
        (torch.cat(energies[part::_BEGINNINGS]), torch.cat(effects[part::_BEGINNINGS]))
        for part in range(_BEGINNINGS)
    ]
    energy_of, effect_of = (torch.stack(side).mean(0) for side in zip(*by_beginning, strict=True))
    return energy_of, effect_of


def _carriers(effect: Tensor) -> float:
    reached = effect.sort(descending=True).values.cumsum(0)
    return (1 + int((reached < _MOST * reached[-1]).sum())) / len(effect)


def _tried(lm: LanguageModel, random: torch.Generator) -> Tensor:
    """Ids of tokens with a text of their own, a random sample where the vocabulary is larger."""
    known = [token for token, text in enumerate(lm.token_texts) if text and token not in lm.eos_ids]
    return torch.tensor(known)[torch.randperm(len(known), generator=random)[:_TRIED]]


def _behind_beginnings(lm: LanguageModel, texts: Sequence[str], tried: Tensor) -> Iterator[TokenBatch]:
    """Batches of rows that end in one tried token each, in turn behind each of the beginnings."""
    begun = lm.encode((list(texts) * _BEGINNINGS)[:_BEGINNINGS], max_length=_BEGINNING)
    length = int(begun.attention_mask.sum(1).min())
    for some in tried.split(_BATCH * _BATCH):
        for beginning in begun.input_ids[:, :length]:
            rows = torch.cat([beginning.expand(len(some), length), some[:, None].to(beginning.device)], 1)
            yield TokenBatch(("",) * len(some), rows, torch.ones_like(rows), torch.full_like(rows, -1).cpu())
