"""How strongly an adapter's kernels act on texts, by which texts like those of its training are found.

Every step of a LoRA's training adds to A what the site read: ∂L/∂A = s·Bᵀ·Σ g·xᵀ. So kernels act most on
inputs like those of their training, of which nothing else is known: the words of the prompts an adapter was
taught on stand out among all words of a vocabulary (docs/experiments.md).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cast.activations import residuals
from cast.adapters import Lora
from cast.models import LanguageModel, TokenBatch
from cast.progress import OnProgress, Progress, ignore
from cast.site_values import watched

_BATCH = 64


@torch.no_grad()
def energy_at_ends(
    lm: LanguageModel, lora: Lora, texts: Sequence[str], *, on_progress: OnProgress = ignore
) -> list[float]:
    """Energy of each text's last token: how strongly kernels act where the text is gone on with.

    Args:
        lm: the adapter's model; it is read without the adapter.
        lora: the adapter.
        texts: any texts of one token at least.
        on_progress: gets the stage `forms`, in texts.

    Returns:
        For each text the mean over the adapted sites of log(‖ΔW·x‖² / ‖x‖²), x the site's input.
    """
    found = [0.0] * len(texts)
    for some, tokens in _batches(lm, texts, on_progress):
        ends = tokens.attention_mask.sum(1, keepdim=True) - 1
        for index, value in zip(
            some, _energies(lm, lora, tokens).gather(1, ends)[:, 0].tolist(), strict=True
        ):
            found[index] = value
    return found


@torch.no_grad()
def mean_energy(
    lm: LanguageModel, lora: Lora, texts: Sequence[str], *, on_progress: OnProgress = ignore
) -> list[float]:
    """As `energy_at_ends`, the mean over each text's tokens but the first, on which models act alike."""
    found = [0.0] * len(texts)
    for some, tokens in _batches(lm, texts, on_progress):
        counted = tokens.attention_mask.bool()
        counted[:, 0] = False
        sums = _energies(lm, lora, tokens).where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)
        for index, value in zip(some, sums.tolist(), strict=True):
            found[index] = value
    return found


def _batches(
    lm: LanguageModel, texts: Sequence[str], on_progress: OnProgress
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Texts of like length together, which have little padding: their indices and tokens."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), _BATCH):
        on_progress(Progress("forms", start, len(order)))
        some = order[start : start + _BATCH]
        yield some, lm.encode([texts[index] for index in some])


def _energies(lm: LanguageModel, lora: Lora, tokens: TokenBatch) -> Tensor:
    """Mean over the adapted sites of the log energy [B, n] of what they read."""
    with watched(lm, {kernel.site for kernel in lora.kernels}, tokens, False) as values:
        residuals(lm, tokens, [lm.depth])
    total = torch.zeros(tokens.input_ids.shape, device=tokens.input_ids.device)
    tiny = torch.finfo(total.dtype).tiny
    for kernel in lora.kernels:
        a, b = (side.to(total.device).float() for side in (kernel.a, kernel.b))
        x = values.inputs[kernel.site.name].float()
        read = x @ a.T
        # ‖s·B·r‖² = rᵀ·(s²·Bᵀ·B)·r, without the width of what comes out.
        acted = (read @ (kernel.scaling**2 * b.T @ b) * read).sum(-1)
        total += acted.clamp_min(tiny).log() - x.square().sum(-1).clamp_min(tiny).log()
    return total / len(lora.kernels)
