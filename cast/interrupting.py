"""Cancel in the middle of a forward pass: a batch through a large model on a slow device takes minutes."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from cast.language_model import LanguageModel
from cast.progress import OnProgress, Progress


@contextmanager
def interruptible(models: Iterable[LanguageModel], on_progress: OnProgress) -> Iterator[OnProgress]:
    """While the block runs, each decoder block of the models asks first whether to go on.

    Args:
        models: models that nobody else runs meanwhile.
        on_progress: raises `Cancelled` to stop.

    Yields:
        The callback to give to the work; a decoder block asks by its last report once more.
    """
    # Before its first report work may take long as well.
    last = [Progress("load", 1, 1)]

    def report(progress: Progress) -> None:
        last[0] = progress
        on_progress(progress)

    def ask(*_: object) -> None:
        on_progress(last[0])

    with ExitStack() as hooks:
        for lm in models:
            for block in lm.architecture.blocks:
                hooks.callback(block.register_forward_pre_hook(ask).remove)
        yield report
