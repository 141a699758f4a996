"""The file that an unfinished fit leaves behind, so that a kill loses at most the last interval."""

import time
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cast.errors import HeadsError
from cast.storage import write_atomically

CHECKPOINT = "fit.safetensors"
State = Mapping[str, Tensor]


class Unfinished:
    """Keeps the state of an unfinished fit in one file, written whole, at most once an interval.

    Args:
        folder: where the file is or will be; None keeps nothing.
        key: what the fit is, as a hash; a file with another key is refused.
        seconds: the interval.

    Raises:
        HeadsError: the file that is there is damaged, or belongs to another fit.
    """

    def __init__(self, folder: Path | None, key: str, seconds: float) -> None:
        self.path = None if folder is None else folder / CHECKPOINT
        self.key, self.seconds = key, seconds
        self.written = time.monotonic()
        self.kept = self._read()

    def _read(self) -> tuple[str, dict[str, Tensor]]:
        if self.path is None or not self.path.exists():
            return "", {}
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise HeadsError(f"The checkpoint {self.path} is damaged; remove it to begin again.") from error
        if metadata.get("key") != self.key:
            raise HeadsError(
                f"The checkpoint {self.path} belongs to another fit (models, text or settings differ); "
                "remove it, or name another folder."
            )
        return metadata.get("stage", ""), tensors

    def stage(self, name: str) -> State:
        """The state that was there at the start, if it is of this stage; else nothing."""
        return self.kept[1] if self.kept[0] == name else {}

    def offer(self, stage: str, state: State) -> None:
        """Write the state if the interval has passed."""
        if self.path is not None and time.monotonic() - self.written >= self.seconds:
            tensors = {name: value.cpu().contiguous() for name, value in state.items()}
            write_atomically(self.path, save(tensors, metadata={"key": self.key, "stage": stage}))
            self.written = time.monotonic()

    def remove(self) -> None:
        """The fit is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
