"""General text up to where an adapter would have it go on most differently: there its skill shows, if at all.

General text hardly shows a skill, since the text goes on as if there were no adapter. Where it does, such as
behind the questions that a text holds, the source with its adapter is asked; see `cast.unprompted`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cast.activations import residuals_by_length
from cast.adapters import Lora, applied
from cast.models import LanguageModel, TokenBatch
from cast.progress import OnProgress, Progress, ignore

_BATCH = 32


@torch.no_grad()
def moments(
    source: LanguageModel,
    lora: Lora,
    texts: Sequence[str],
    count: int,
    *,
    max_length: int = 256,
    on_progress: OnProgress = ignore,
) -> list[str]:
    """The beginnings of the texts in which the adapter acts most, up to the place where it does.

    Args:
        source: the adapter's model.
        lora: the adapter.
        texts: general text.
        count: how many there shall be, at most.
        max_length: tokens at which a text is cut.
        on_progress: gets the stage `moments`, in texts.
    """
    places = sorted(_places(source, lora, texts, max_length, on_progress), reverse=True)
    return list(dict.fromkeys(beginning for _, beginning in places[:count]))


def _places(
    source: LanguageModel, lora: Lora, texts: Sequence[str], max_length: int, on_progress: OnProgress
) -> Iterator[tuple[float, str]]:
    """Of each text the largest effect that the adapter has on how it goes on, and the text up to there."""
    for start in range(0, len(texts), _BATCH):
        on_progress(Progress("moments", start, len(texts)))
        tokens = source.encode(texts[start : start + _BATCH], max_length=max_length)
        real = tokens.attention_mask.bool()
        # Behind the first token alone there is nothing that an answer could be about.
        real[:, 0] = False
        if not real.any():
            continue
        plain, adapted = last(source, tokens), last(source, tokens, lora)
        effects = plain.new_zeros(real.shape, dtype=torch.float32)
        effects[real] = _going_on(source, plain[real], adapted[real])
        for row, (effect, place) in enumerate(zip(*effects.max(1), strict=True)):
            if effect > 0:
                yield float(effect), tokens.texts[row][: int(tokens.ends[row, place])]


def last(source: LanguageModel, tokens: TokenBatch, lora: Lora | None = None) -> Tensor:
    """Last residuals [B, n, d], of the base or with an adapter."""
    if lora is None:
        return residuals_by_length(source, tokens, [source.depth])[source.depth]
    with applied(source, lora):
        return residuals_by_length(source, tokens, [source.depth])[source.depth]


def _going_on(source: LanguageModel, plain: Tensor, adapted: Tensor) -> Tensor:
    """KL(adapted ‖ base) [N] of how a text goes on if it does, times how likely the adapted one goes on.

    Adapters that were trained on short answers end any text; there they have nothing to say.
    """
    ends, found = sorted(source.eos_ids), []
    for states in source.portions(plain, adapted):
        before, after = (source.architecture.logits(some).float() for some in states)
        going = 1 - after.softmax(-1)[:, ends].sum(-1)
        for side in (before, after):
            side[:, ends] = torch.finfo(side.dtype).min
        before, after = before.log_softmax(-1), after.log_softmax(-1)
        found.append(going * (after.exp() * (after - before)).sum(-1))
    return torch.cat(found)
