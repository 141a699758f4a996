"""Shared models, and several streams of text that take turns on them.

A forward pass with an adapter hangs hooks on the model, so each step of each stream holds the locks of the
models it touches, and only for that step: visitors are kept apart, and their streams alternate.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

from app.views import Pane
from cast.errors import CastError

Locks = Callable[[], contextlib.AbstractContextManager[contextlib.ExitStack]]
# A browser draws no more often than this, and each frame is sent whole.
_FRAME_SECONDS = 0.06


@dataclass
class Loaded:
    """A model that visitors share, and the lock of its passes."""

    name: str
    model: object
    lock: threading.RLock = field(default_factory=threading.RLock)


def held(first: Loaded, second: Loaded) -> Locks:
    """A maker of contexts that hold both models, taken by name so that no two visitors can deadlock."""

    def hold() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for loaded in sorted((first, second), key=lambda item: item.name):
            stack.enter_context(loaded.lock)
        return stack

    return hold


def interleaved(
    shown: dict[str, Pane], streams: dict[str, Iterator[str]], locks: Locks
) -> Iterator[tuple[Pane, ...]]:
    """Let the streams take turns, one piece each, until all have ended; closing this closes them.

    Args:
        shown: every pane by key; those with a stream are running.
        streams: text by pane key.
        locks: held during each piece.

    Yields:
        All panes as they stand, some times a second; the last value has none running.
    """
    last = 0.0
    try:
        while streams:
            for key in list(streams):
                with locks():
                    shown[key] = _advanced(shown[key], streams[key])
                if shown[key].state != "running":
                    del streams[key]
            if time.monotonic() - last >= _FRAME_SECONDS and streams:
                last = time.monotonic()
                yield tuple(shown.values())
        yield tuple(shown.values())
    finally:
        for stream in streams.values():
            if isinstance(stream, Generator):
                stream.close()


def _advanced(pane: Pane, stream: Iterator[str]) -> Pane:
    """The pane after one more piece of its stream."""
    try:
        return replace(pane, text=pane.text + next(stream))
    except StopIteration:
        return replace(pane, state="done")
    except CastError as error:
        return replace(pane, state="note", text=str(error))
