"""What a baseline is given, and the table of them by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cast.adapters import Lora
from cast.alignment import LayerMap
from cast.corpus import Passage
from cast.errors import CorpusError, HeadsError
from cast.heads import HeadSet
from cast.models import LanguageModel
from cast.recipes import TranslationConfig
from cast.runners import Runner
from cast.sites import SitePair, pair_sites

# They are measured beside the closed form among the modes, on the same text.
_CLOSED = TranslationConfig(mode="instant")


@dataclass(frozen=True)
class Given:
    """What a baseline may look at: what a translation of the same adapter may, and no more."""

    source: LanguageModel
    target: LanguageModel
    lora: Lora
    texts: Sequence[str] = ()
    """General text, the passages that `instant` draws from; empty for those that need none."""
    heads: HeadSet | None = None
    config: TranslationConfig = _CLOSED
    """Seed, rank and the lengths of texts and batches."""
    cache: Path | None = None
    """Folder of fitted site maps; None keeps none."""
    answers: Sequence[Passage] = ()
    """Example prompts, made more as `compiled` makes them, with what the adapted source wrote behind them."""

    def batches(self) -> list[Sequence[str]]:
        """The text in batches of the configured size.

        Raises:
            CorpusError: there is none.
        """
        if not self.texts:
            raise CorpusError("This baseline is fitted on general text; give some.")
        size = self.config.batch_size
        return [self.texts[start : start + size] for start in range(0, len(self.texts), size)]

    def answered(self) -> list[Passage]:
        """The answers that say anything.

        Raises:
            CorpusError: there is none.
        """
        said = [passage for passage in self.answers if passage.text[passage.answer :].strip()]
        if not said:
            raise CorpusError("This baseline is trained on answers to example prompts; give some.")
        return said

    def fitted_heads(self) -> HeadSet:
        """The heads of the pair.

        Raises:
            HeadsError: there are none.
        """
        if self.heads is None:
            raise HeadsError("This baseline goes through heads; fit them for this pair first.")
        return self.heads

    def site_pairs(self) -> tuple[SitePair, ...]:
        """Each adapted site with the target's sites of its role at the same relative depth."""
        return pair_sites(
            [kernel.site for kernel in self.lora.kernels],
            self.source.architecture,
            self.target.architecture,
            LayerMap.by_relative_depth(self.source.depth, self.target.depth),
        )


Make = Callable[[Given], Runner]


@dataclass(frozen=True)
class Baseline:
    """One way to use a source's adapter on a target, by name."""

    name: str
    reference: str
    make: Make
    needs_text: bool = False
    needs_heads: bool = False
    needs_prompts: bool = False
    config: TranslationConfig = _CLOSED


_KNOWN: dict[str, Baseline] = {}
BASELINES: Mapping[str, Baseline] = MappingProxyType(_KNOWN)
"""Every baseline by its name; filled when the package is imported."""


def baseline(
    name: str, reference: str, *, text: bool = False, heads: bool = False, prompts: bool = False
) -> Callable[[Make], Make]:
    """Enter a function as a baseline.

    Args:
        name: as `--methods` knows it.
        reference: the paper and its equation.
        text: whether it is fitted on general text.
        heads: whether it goes through the heads of the pair.
        prompts: whether it reads answered example prompts; it is then measured beside `compiled` with
            prompts, with as many steps as one of its rounds and the same text.
    """

    def enter(make: Make) -> Make:
        config = TranslationConfig() if prompts else _CLOSED
        _KNOWN[name] = Baseline(name, reference, make, text, heads, prompts, config)
        return make

    return enter
