"""Maps and comparisons of layers in the background: none waits for a training, each can be cancelled."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from app.backend import Backend
from app.facts import Drawn, LayerFacts, MapRequest
from app.jobs import Job, Jobs, JobState
from app.stock import Stock
from app.streams import Loaded, held
from app.workspace import Attached, Pair, Selection
from cast.errors import CastError, RequestError
from cast.progress import OnProgress, ignore

T = TypeVar("T")
FindHeads = Callable[[Loaded, Loaded, str], object | None]
Translation = Callable[[Selection, Attached, Loaded, Loaded], object | None]

_WORKERS = 3
_POLL_SECONDS = 0.25
# Modes that change the target's states, in the order in which a translation is looked for.
_MODES_OF_STATES = ("compiled", "instant", "kernel")

WORDS_ONLY = (
    "Only the source's shift is shown: hosted by words moves the target's words and none of its states. "
    "Choose target blocks a segment, or translate in another mode, to see the target move."
)
UNTRANSLATED = (
    "Only the source's shift is shown: there is no translation in mode {mode} yet. Press Translate in the "
    "Generate tab, then draw again."
)


@dataclass(frozen=True)
class _Shown:
    """The adapter as a map shows it: the source's LoRA, the target's runner, and a sentence on them."""

    lora: object | None = None
    translated: object | None = None
    note: str = ""


def moving_states(selection: Selection) -> Iterator[Selection]:
    """The choice, else the same in another mode: of the first that is translated, a map shows what moves."""
    if not selection.by_words:
        yield selection
    for mode in _MODES_OF_STATES:
        if mode != selection.mode:
            yield replace(selection, mode=mode, segment=None)


class Maps:
    """The page's way to maps; one for all visitors, made by the engine."""

    def __init__(
        self,
        backend: Backend,
        stock: Stock,
        folder: Path,
        find_heads: FindHeads,
        translation: Translation,
    ) -> None:
        self._backend = backend
        self._folder = folder
        self._stock = stock
        self._find_heads = find_heads
        self._translation = translation
        # Threads of their own: a training may hold the others for hours.
        self._jobs = Jobs(workers=_WORKERS)

    def draw(self, request: MapRequest, made: Attached, before: str = "") -> Iterator[Drawn | Job]:
        """Draw in the background; what `before` names, this visitor's last drawing, stops.

        Yields:
            The job as it stands, first of all and a few times a second, and each map once it is drawn.
            Closing the iterator stops the job.

        Raises:
            RequestError: with the sentence of what went wrong.
        """
        self.cancel(before)
        found: SimpleQueue[Drawn] = SimpleQueue()

        def work(on_progress: OnProgress) -> None:
            for drawn in self.drawn(request, made, on_progress):
                found.put(drawn)

        yield from self._followed("map", "Draw the map.", work, found)

    def layers(self, pair: Pair, made: Attached, before: str = "") -> Iterator[LayerFacts | Job]:
        """Compare all layers of a pair in the background; otherwise as `draw`."""
        self.cancel(before)
        found: SimpleQueue[LayerFacts] = SimpleQueue()

        def work(on_progress: OnProgress) -> None:
            found.put(self.compared(pair, made, on_progress))

        yield from self._followed("layers", "Compare all layers.", work, found)

    def drawn(
        self, request: MapRequest, made: Attached | None = None, on_progress: OnProgress = ignore
    ) -> Iterator[Drawn]:
        """Draw now: by PCA, and then by UMAP where it is asked for."""
        made = made or Attached()
        source, target = self._stock.pair(request.selection.pair)
        heads = self._find_heads(source, target, made.heads_job)
        shown = self._shown(request, made, source, target, heads)
        for drawn in self._backend.maps(
            source.model, target.model, heads, shown.lora, shown.translated, request, held(source, target),
            on_progress,
        ):  # fmt: skip
            yield tuple(replace(one, note=shown.note) for one in drawn)

    def compared(
        self, pair: Pair, made: Attached | None = None, on_progress: OnProgress = ignore
    ) -> LayerFacts:
        """Compare all layers now."""
        source, target = self._stock.pair(pair)
        heads = self._find_heads(source, target, made.heads_job if made else "")
        return self._backend.layers(source.model, target.model, heads, held(source, target), on_progress)

    def written(self, drawn: Drawn, colour: str, kind: str) -> Path:
        """Write a map as a page of its own (`HTML`), or its tokens as a table (`CSV`).

        Raises:
            RequestError: nothing is drawn yet.
        """
        from app import plots_map

        if not drawn:
            raise RequestError("Draw a map first, then save it.")
        path = self._folder / "maps" / uuid.uuid4().hex / f"cast-map.{kind.lower()}"
        path.parent.mkdir(parents=True)
        plots_map.write(drawn, colour, path)
        return path

    def cancel(self, job_id: str) -> bool:
        """Ask a drawing to stop."""
        return self._jobs.cancel(job_id)

    def close(self) -> None:
        """Stop everything."""
        self._jobs.close()

    def _followed(
        self, kind: str, title: str, work: Callable[[OnProgress], None], found: SimpleQueue[T]
    ) -> Iterator[T | Job]:
        job_id = self._jobs.start(kind, title, work)
        try:
            job = self._jobs.get(job_id)
            while job is not None:
                yield job
                if job.is_over and found.empty():
                    break
                with suppress(Empty):
                    while True:
                        yield found.get(block=not job.is_over, timeout=_POLL_SECONDS)
                job = self._jobs.get(job_id)
                # What was found last is told before the end.
                while not found.empty():
                    yield found.get()
            if job is not None and job.state is JobState.FAILED:
                raise RequestError(job.message)
        finally:
            self._jobs.cancel(job_id)

    def _shown(
        self, request: MapRequest, made: Attached, source: Loaded, target: Loaded, heads: object | None
    ) -> _Shown:
        selection = request.selection
        if not (request.adapter and selection.adapter):
            return _Shown()
        lora = self._stock.adapter(selection.adapter, source)
        try:
            carried, way = self._carried(selection, made, source, target)
            if carried is not None:
                runner = self._backend.carried_runner(carried, source.model, target.model, 1.0)
                return _Shown(lora, runner, f"The target's shift is that of the translation ({way}).")
            if selection.by_words:
                return _Shown(lora, note=WORDS_ONLY)
            if selection.mode == "hosted" and heads is not None:
                runner = self._backend.hosted_runner(
                    source.model, target.model, lora, heads, selection.segment, 1.0
                )
                return _Shown(lora, runner, f"The target's shift is that of {selection.way}.")
        except CastError as error:
            return _Shown(lora, note=f"Only the source's shift is shown: {error}")
        return _Shown(lora, note=UNTRANSLATED.format(mode=selection.mode))

    def _carried(
        self, selection: Selection, made: Attached, source: Loaded, target: Loaded
    ) -> tuple[object | None, str]:
        """The translation of the choice, else one in another mode, that moves the target's states."""
        for choice in moving_states(selection):
            carried = self._translation(choice, made, source, target)
            if carried is not None:
                return carried, choice.way
        return None, ""
