"""How strongly an adapter's kernels act on texts, by which texts like those of its training are found.

Every step of a LoRA's training adds to A what the site read: ∂L/∂A = s·Bᵀ·Σ g·xᵀ. So kernels act most on
inputs like those of their training, of which nothing else is known: the words of the prompts that an adapter
was taught on stand out among all words of a vocabulary (docs/experiments.md).

The *log energy* of a token is log(‖ΔW·x‖² / (‖ΔW‖²·‖x‖²)) in the mean over the adapted sites, x being what
the site reads and ‖ΔW‖ the Frobenius norm: how much of the input lies where the kernel reads, whatever the
size of either.

Keys and values are what later tokens attend to, so their kernels learn of every token of a prompt; the others
learn most of the tokens behind which an answer is said. By those a cue stands out from the lines before it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cast.activations import residuals
from cast.adapters import Kernel, Lora
from cast.corpus import Passage
from cast.language_model import by_length
from cast.models import LanguageModel, TokenBatch
from cast.progress import OnProgress, Progress, ignore

_BATCH = 64
_ATTENDED_TO = frozenset({"k", "v"})


def speaking(lora: Lora) -> Lora:
    """The adapter without its kernels of keys and values, or as it is where no others change anything.

    One kernel of queries, keys and values together stays.
    """
    kernels = tuple(
        kernel for kernel in lora.kernels if kernel.site.role not in _ATTENDED_TO and kernel.b.any()
    )
    return replace(lora, kernels=kernels) if kernels else lora


@dataclass(frozen=True)
class KernelReading:
    """What the kernels of an adapter make of one batch, which the base alone has read."""

    energy: Tensor
    """‖ΔW·x‖² / ‖ΔW‖² [B, n, kernels], float32; 0 of a kernel that changes nothing."""
    length: Tensor
    """‖x‖² [B, n, kernels]."""
    last: Tensor
    """Last residuals [B, n, d]."""


@torch.no_grad()
def read_by_kernels(lm: LanguageModel, lora: Lora, tokens: TokenBatch) -> KernelReading:
    """Read a batch without the adapter; of what its sites read no more is kept than two numbers a token."""
    shape = (*tokens.input_ids.shape, len(lora.kernels))
    energy, length = (torch.zeros(shape, device=tokens.input_ids.device) for _ in range(2))
    with ExitStack() as stack:
        for place, kernel in enumerate(lora.kernels):
            hook = partial(_measure, kernel, energy[..., place], length[..., place])
            stack.callback(lm.architecture.module(kernel.site).register_forward_hook(hook).remove)
        last = residuals(lm, tokens, [lm.depth])[lm.depth]
    return KernelReading(energy, length, last)


def log_energy_at_ends(
    lm: LanguageModel, lora: Lora, texts: Sequence[str], *, on_progress: OnProgress = ignore
) -> list[float]:
    """Log energy of each text's last token, where the text is gone on with; finite.

    Args:
        lm: the adapter's model.
        lora: the adapter.
        texts: any texts.
        on_progress: gets the stage `forms`, in texts.
    """

    def at_end(energies: Tensor, tokens: TokenBatch, _: Sequence[int]) -> Tensor:
        return energies.gather(1, tokens.attention_mask.sum(1, keepdim=True) - 1)[:, 0]

    return _reduced(lm, lora, texts, at_end, on_progress)


def mean_log_energy(
    lm: LanguageModel, lora: Lora, texts: Sequence[str], *, on_progress: OnProgress = ignore
) -> list[float]:
    """As `log_energy_at_ends`, the mean over each text's tokens; the BOS tells nothing and is left out."""

    def mean(energies: Tensor, tokens: TokenBatch, _: Sequence[int]) -> Tensor:
        return _mean(energies[:, 1:], tokens.attention_mask[:, 1:].bool())

    return _reduced(lm, lora, texts, mean, on_progress)


def answering_log_energy(
    lm: LanguageModel, lora: Lora, answers: Sequence[Passage], *, on_progress: OnProgress = ignore
) -> list[float]:
    """As `log_energy_at_ends`, the mean over the tokens behind which each answer is said, but the BOS.

    Minus infinity where nothing is said.
    """
    starts = torch.tensor([answer.answer or 0 for answer in answers])

    def mean(energies: Tensor, tokens: TokenBatch, some: Sequence[int]) -> Tensor:
        # Whether the next token is of the answer, of each token but the BOS and the last.
        said = (tokens.ends[:, 2:] > starts[list(some), None]).to(energies.device)
        return _mean(energies[:, 1:-1], said).masked_fill(~said.any(1), -math.inf)

    return _reduced(lm, lora, [answer.text for answer in answers], mean, on_progress)


def _mean(energies: Tensor, counted: Tensor) -> Tensor:
    """Mean [B] over the counted of n tokens, from [B, n] each; 0 of none."""
    return energies.where(counted, 0).sum(1) / counted.sum(1).clamp_min(1)


def _reduced(
    lm: LanguageModel,
    lora: Lora,
    texts: Sequence[str],
    reduce: Callable[[Tensor, TokenBatch, Sequence[int]], Tensor],
    on_progress: OnProgress,
) -> list[float]:
    """One number of each text: log energies [B, n] of a batch, beside its texts, reduced to [B]."""
    found = [0.0] * len(texts)
    for done, some in by_length(texts, _BATCH):
        on_progress(Progress("forms", done, len(texts)))
        tokens = lm.encode([texts[index] for index in some])
        reading = read_by_kernels(lm, lora, tokens)
        tiny = torch.finfo(reading.energy.dtype).tiny
        shares = reading.energy / reading.length.clamp_min(tiny)
        # States that overflow say nothing either way.
        logs = shares.nan_to_num(0.0, posinf=0.0).clamp(tiny, 1.0).log().mean(-1)
        for index, value in zip(some, reduce(logs, tokens, some).tolist(), strict=True):
            found[index] = value
    return found


def _measure(
    kernel: Kernel, energy: Tensor, length: Tensor, module: nn.Module, args: tuple[Any, ...], output: Tensor
) -> None:
    """Write what one kernel makes of its site's input to `energy` and `length`, each [B, n]."""
    # Some families flatten rows and positions on the way into a linear layer.
    x = args[0].detach().float().reshape(*energy.shape, -1)
    # Of a size that no product of them overflows, whatever a stranger's adapter holds.
    a, b = (_unit(side.to(x)) for side in (kernel.a, kernel.b))
    gram, read = b.T @ b, x @ a.T
    # ‖ΔW‖² = tr(BᵀB·AAᵀ); ‖ΔW·x‖² = rᵀ·BᵀB·r with r = A·x, without the width of what comes out.
    size = (gram * (a @ a.T)).sum()
    if size > 0:
        energy.copy_((read @ gram * read).sum(-1).clamp_min(0) / size)
    length.copy_(x.square().sum(-1))


def _unit(matrix: Tensor) -> Tensor:
    largest = matrix.abs().max()
    return matrix / largest if largest > 0 else matrix
