"""Proxy tuning: both models run, and the source's change of the logits is added to the target's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cast.baselines.registry import Given, baseline
from cast.runners import Runner
from cast.vocabulary import VocabularyMap
from cast.wording import WordedRunner


@baseline("proxy-tuning", "arXiv 2401.08565, eq. 1, through a vocabulary map by the texts of tokens")
def proxy_tuning(given: Given) -> Runner:
    """The target's logits plus the change of the source's: softmax(s_T + s_S+ - s_S)."""
    source, target = given.source, given.target
    return WordedRunner(source, given.lora, target, vocabulary=_Factors(source, target))


class _Factors(VocabularyMap):
    """Multiplies the target's distribution by the source's factor q / p where both have read one text."""

    def take_over(
        self,
        own: Tensor,
        before: Tensor,
        after: Tensor,
        pending: Sequence[str],
        pooling: Tensor,
        *,
        alone: bool = False,
    ) -> Tensor:
        """See `VocabularyMap.take_over`; nothing is pooled, and inside a source token nothing is changed."""
        own, before, after = (logits.float().cpu().log_softmax(-1) for logits in (own, before, after))
        whole = torch.tensor([not text for text in pending])
        factor = self.bridge().factor(before[whole], after[whole], own.shape[-1])
        result = own.clone()
        result[whole] = (own[whole] + factor).log_softmax(-1)
        return result
