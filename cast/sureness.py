"""How sure an adapter is of what comes next, where the base would not say it."""

import math
from collections.abc import Sequence

import torch

from cast.adapters import Lora
from cast.language_model import by_length
from cast.models import LanguageModel
from cast.progress import OnProgress, Progress, ignore
from cast.runners import PlainRunner
from cast.scoring import next_log_probs

_BATCH = 32
# Nats by which the adapter must have made a token more likely for it to be its own.
_OWN = 1.0


@torch.no_grad()
def sureness(
    source: LanguageModel, lora: Lora, texts: Sequence[str], *, on_progress: OnProgress = ignore
) -> list[float]:
    """Log-probability of the adapted source's surest next token behind each text, ends left out.

    Where the base would say that token nearly as surely, it is no sign of the adapter: minus infinity.

    Args:
        source: the adapter's model.
        lora: the adapter.
        texts: any.
        on_progress: gets the stage `forms`.
    """
    ends, found = sorted(source.eos_ids), [0.0] * len(texts)
    for done, some in by_length(texts, _BATCH):
        on_progress(Progress("forms", done, len(texts)))
        heard = [texts[index] for index in some]
        after, before = (next_log_probs(PlainRunner(source, side), heard) for side in (lora, None))
        after[:, ends] = torch.finfo(after.dtype).min
        surest, token = after.max(-1)
        own = surest - before.gather(-1, token[:, None])[:, 0] > _OWN
        for index, value in zip(some, surest.where(own, -math.inf).tolist(), strict=True):
            found[index] = value
    return found
