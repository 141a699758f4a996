"""Text that an adapter makes of general text by itself: no prompt, no label, no word of its task.

General text hardly shows a skill, since the text goes on as if there were no adapter. So each passage is cut
where the adapter would have it go on most differently, and the source with its adapter goes on from there.
Much of that is noise of an adapter far from what it was made for. What is kept is what the adapter finished,
what the base would not have said, and of that what it was surest of: a skill that general text calls for at
all, such as a way to answer questions, is then most of what is left (docs/experiments.md).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cast.activations import residuals
from cast.adapters import Lora, applied
from cast.corpus import Passage
from cast.exciting import ANSWER_TOKENS, answered
from cast.models import LanguageModel, TokenBatch
from cast.progress import OnProgress, Progress, ignore

_BATCH = 32
# An answer with fewer tokens has ended by itself; read again, it may have a few less than were written.
_FINISHED = ANSWER_TOKENS - 4
# Nats by which the adapter must have made an answer more likely, and the share of answers that are kept.
_CHANGED, _SUREST = 2.0, 0.6


@torch.no_grad()
def moments(
    source: LanguageModel,
    lora: Lora,
    texts: Sequence[str],
    count: int,
    *,
    max_length: int = 256,
    on_progress: OnProgress = ignore,
) -> list[Passage]:
    """General text up to where the adapter acts most, with what the adapted source says there.

    Args:
        source: the adapter's model.
        lora: the adapter.
        texts: general text.
        count: texts that are gone on with, those in which the adapter acts most; fewer passages come out.
        max_length: tokens at which a text is cut.
        on_progress: gets the stages `moments`, in texts, and `generate`.

    Returns:
        Passages with answers, the surest first; none where the adapter finishes nothing.
    """
    places = sorted(_places(source, lora, texts, max_length, on_progress), reverse=True)
    beginnings = list(dict.fromkeys(beginning for _, beginning in places[:count]))
    said = answered(source, lora, beginnings, on_progress=on_progress)
    sure = [(sureness, passage) for passage, sureness in _judged(source, lora, said) if sureness is not None]
    sure.sort(key=lambda pair: pair[0], reverse=True)
    return [passage for _, passage in sure[: round(_SUREST * len(sure))]]


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
        plain, adapted = _last(source, tokens), _last(source, tokens, lora)
        effects = plain.new_zeros(real.shape, dtype=torch.float32)
        effects[real] = _going_on(source, plain[real], adapted[real])
        for row, (effect, place) in enumerate(zip(*effects.max(1), strict=True)):
            if effect > 0:
                yield float(effect), tokens.texts[row][: int(tokens.ends[row, place])]


def _last(source: LanguageModel, tokens: TokenBatch, lora: Lora | None = None) -> Tensor:
    """Last residuals [B, n, d]."""
    if lora is None:
        return residuals(source, tokens, [source.depth])[source.depth]
    with applied(source, lora):
        return residuals(source, tokens, [source.depth])[source.depth]


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


def _judged(
    source: LanguageModel, lora: Lora, said: Sequence[Passage]
) -> Iterator[tuple[Passage, float | None]]:
    """How sure the adapted source is of each answer, in nats a token; None of what is not worth keeping."""
    for start in range(0, len(said), _BATCH):
        some = said[start : start + _BATCH]
        tokens = source.encode([passage.text for passage in some])
        starts = torch.tensor([passage.answer for passage in some])
        rows, positions = (tokens.ends[:, 1:] > starts[:, None]).nonzero(as_tuple=True)
        after, before = (
            _spoken(source, _last(source, tokens, side), tokens, rows, positions) for side in (lora, None)
        )
        for row, passage in enumerate(some):
            own = rows == row
            finished = 0 < int(own.sum()) < _FINISHED
            kept = finished and float((after - before)[own].sum()) > _CHANGED
            yield passage, float(after[own].mean()) if kept else None


def _spoken(
    source: LanguageModel, last: Tensor, tokens: TokenBatch, rows: Tensor, positions: Tensor
) -> Tensor:
    """Log-probabilities [N] of the tokens behind the given positions."""
    found = []
    for some, places in source.portions(rows, positions):
        logits = source.architecture.logits(last[some, places]).float().log_softmax(-1)
        following = tokens.input_ids[some, places + 1].to(logits.device)
        found.append(logits.gather(-1, following[:, None])[:, 0])
    return torch.cat(found).cpu() if found else torch.zeros(0)
