"""Searching the Hub while something is typed: what is worth asking, and what was found lately."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from app.backend import Backend
from app.cache import Cache
from app.facts import Option

if TYPE_CHECKING:
    from cast.hub import AdapterHit, ModelHit

_FEWEST_LETTERS = 2
_MOST_LETTERS = 100
_FRESH_SECONDS = 600
_MOST_TARGETS = 4


class HubSearch:
    """The page's way to the Hub's lists; one for all visitors, so that a list is asked for once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._found: Cache[tuple[Option, ...]] = Cache(64)

    def models(self, words: str) -> tuple[Option, ...]:
        """Models for text whose name contains the words, most downloaded first.

        Raises:
            HubError: the Hub cannot be reached or refuses.
        """
        return self._fresh("", words, lambda: self._backend.search_models(words))

    def adapters(self, source: str, words: str) -> tuple[Option, ...]:
        """Adapters of a Hub model whose name contains the words (all where there are none).

        Raises:
            HubError: the Hub cannot be reached or refuses.
        """
        return self._fresh(source, words, lambda: self._backend.search_adapters(source, words))

    def _fresh(self, source: str, words: str, ask: Callable[[], Sequence[Option]]) -> tuple[Option, ...]:
        turn = int(time.time() / _FRESH_SECONDS)
        return self._found.get((source, words.lower(), turn), lambda: tuple(ask()))


def words_to_search(typed: str) -> str:
    """What of a typed text the Hub can be asked for; empty where it means something on this machine."""
    words = typed.strip()
    local = words.startswith((".", "/", "~", "pocket:")) or "\\" in words or words.endswith(".gguf")
    return "" if local or not _FEWEST_LETTERS <= len(words) <= _MOST_LETTERS else words


def may_have_adapters(source: str) -> bool:
    """Whether a source model is one that the Hub may list adapters of: `owner/name`."""
    return bool(words_to_search(source)) and source.count("/") == 1


def hit_label(hit: "AdapterHit | ModelHit") -> str:
    """What was found, in one line: name, rank and sites of an adapter, downloads, licence."""
    parts = [hit.repo_id]
    if rank := getattr(hit, "rank", 0):
        parts.append(f"rank {rank}")
    if targets := [target.removesuffix("_proj") for target in getattr(hit, "targets", ())]:
        more = f" and {len(targets) - _MOST_TARGETS} more" if len(targets) > _MOST_TARGETS else ""
        parts.append(", ".join(targets[:_MOST_TARGETS]) + more)
    return " · ".join([*parts, f"{hit.downloads:,} downloads", hit.licence or "no licence stated"])
