"""The text of token ids that arrive one by one, in whole characters only."""

from collections.abc import Sequence

from cast.models import LanguageModel

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Transcript:
    """Decodes a growing row of ids, each new one in the light of a few before it.

    A tokenizer's decoder looks at neighbours (it drops the first space, joins bytes to characters), so one
    token cannot be decoded alone; two decodings that begin at the same earlier token differ by just the new
    text.

    Attributes:
        text: what the ids say so far, incomplete characters at the end left out.
        ends: for each id the character of `text` at which it ends; -1 where it ends inside a character or
            stands for no text (BOS, other special tokens).
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._ids: list[int] = []
        self._marks: list[tuple[int, int, int]] = []
        self.text = ""
        self.ends: list[int] = []

    def read(self, ids: Sequence[int]) -> None:
        """Take the full ids so far; they may differ from the last ones anywhere."""
        self._keep(common_prefix(self._ids, ids))
        for token in ids[len(self._ids) :]:
            self._append(token)

    def _keep(self, length: int) -> None:
        del self._ids[length:], self._marks[length:], self.ends[length:]
        self.text = self.text[: self._marks[-1][0] if self._marks else 0]

    def _append(self, token: int) -> None:
        self._ids.append(token)
        # All before `read` is in the text; decoding starts one piece earlier, at `anchor`.
        anchor, read = self._marks[-1][1:] if self._marks else (0, 0)
        before = self._lm.decode(self._ids[anchor:read])
        after = self._lm.decode(self._ids[anchor:])
        whole = len(after) > len(before) and not after.endswith(_INCOMPLETE)
        if whole:
            self.text += after[len(before) :]
            anchor, read = read, len(self._ids)
        self.ends.append(len(self.text) if whole else -1)
        self._marks.append((len(self.text), anchor, read))


def common_prefix(old: Sequence[int], new: Sequence[int]) -> int:
    """Number of first entries in which two sequences agree."""
    if list(new[: len(old)]) == list(old):  # The usual case, without a loop: the old ones and more.
        return len(old)
    differing = (index for index, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(old), len(new)))
