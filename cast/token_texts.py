"""The texts of a model's tokens, sorted, so that those which begin alike are found at once."""

from bisect import bisect_left, bisect_right

import torch
from torch import Tensor

from cast.models import LanguageModel

_LAST_CHARACTER = "\U0010ffff"


class TokenTexts:
    """The texts of a model's tokens in sorted order, so that those with a common beginning stand together.

    Args:
        lm: the model; its tokens that stand for no whole text are left out.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.by_token = lm.token_texts
        known = sorted((text, token) for token, text in enumerate(self.by_token) if text)
        self.texts = [text for text, _ in known]
        self.ids = torch.tensor([token for _, token in known], dtype=torch.long)
        self.longest = max(map(len, self.texts), default=0)

    def extending(self, text: str) -> Tensor:
        """Ids [k] of the tokens that begin with a non-empty text and go on after it."""
        first = bisect_right(self.texts, text)
        return self.ids[first : bisect_left(self.texts, text + _LAST_CHARACTER, lo=first)]

    def beginning(self, text: str) -> range:
        """Where the tokens stand in sorted order that begin with a text; all for an empty one."""
        first = bisect_left(self.texts, text)
        return range(first, bisect_left(self.texts, text + _LAST_CHARACTER, lo=first))

    def exactly(self, text: str) -> Tensor:
        """Ids [k] of the tokens that are this text."""
        return self.ids[bisect_left(self.texts, text) : bisect_right(self.texts, text)]
