"""Which models, adapters, heads and compiled translations the pocket zoo holds, and where their folders are.

Names look like `pocket:llama` (a model) and `pocket:llama/mood` (an adapter of it). The weights lie in
`assets/pocket/` of a checkout, or inside the package when it was installed as a wheel.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cast.errors import RequestError
from cast.pocket.tasks import TASKS

PREFIX = "pocket:"
MODEL_NAMES = ("llama", "mistral", "qwen", "neox")
CARD = "card.json"
Card = Mapping[str, Any]


@dataclass(frozen=True)
class PocketAdapter:
    """One shipped adapter: its model, its task, and the scores recorded beside it."""

    model: str
    task: str
    folder: Path
    card: Card

    @property
    def name(self) -> str:
        """The name that every command accepts: `pocket:llama/mood`."""
        return f"{PREFIX}{self.model}/{self.task}"


def assets_folder() -> Path:
    """The folder with the zoo's weights: inside an installed package, else at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "assets" / "pocket"
    return installed if installed.is_dir() else package.parent / "assets" / "pocket"


def is_pocket(name: str) -> bool:
    """Whether a name means something of the pocket zoo."""
    return name.startswith(PREFIX)


def model_folder(model: str) -> Path:
    """Where a model's files are, shipped or not."""
    return assets_folder() / model


def adapter_folder(model: str, task: str) -> Path:
    """Where an adapter's files are, shipped or not."""
    return assets_folder() / "adapters" / model / task


def heads_folder(source: str, target: str) -> Path:
    """Where the heads of an ordered pair are, shipped or not."""
    return assets_folder() / "heads" / f"{source}-to-{target}"


def compiled_folder(source: str, task: str, target: str) -> Path:
    """Where the compiled translation of an adapter is, shipped or not."""
    return assets_folder() / "compiled" / f"{source}-{task}-to-{target}"


def models() -> tuple[str, ...]:
    """The models that are shipped, by short name."""
    return tuple(name for name in MODEL_NAMES if (model_folder(name) / "config.json").is_file())


def adapters(model: str | None = None) -> tuple[PocketAdapter, ...]:
    """The adapters that are shipped, of one model or of all."""
    return tuple(_adapters(MODEL_NAMES if model is None else (_known_model(model),)))


def model_card(model: str) -> Card:
    """The facts recorded beside a model: parameters, bits per byte, competence, a sample."""
    return _read_card(model_folder(_known_model(model)))


def resolve(name: str) -> Path:
    """The folder behind `pocket:llama` or `pocket:llama/mood`.

    Raises:
        RequestError: The zoo has no such thing, or it is not built here.
    """
    model, slash, task = name.removeprefix(PREFIX).partition("/")
    _known_model(model)
    if slash and task not in TASKS:
        raise RequestError(f"The pocket zoo has no task {task!r}; it has {', '.join(TASKS)}.")
    folder = adapter_folder(model, task) if slash else model_folder(model)
    needed = "adapter_config.json" if slash else "config.json"
    if not (folder / needed).is_file():
        raise RequestError(f"{name} is not built here; run `python -m cast pocket build` first.")
    return folder


def _known_model(model: str) -> str:
    short = model.removeprefix(PREFIX)
    if short not in MODEL_NAMES:
        raise RequestError(f"The pocket zoo has no model {short!r}; it has {', '.join(MODEL_NAMES)}.")
    return short


def _adapters(names: tuple[str, ...]) -> Iterator[PocketAdapter]:
    for name in names:
        for task in TASKS:
            folder = adapter_folder(name, task)
            if (folder / "adapter_config.json").is_file():
                yield PocketAdapter(name, task, folder, _read_card(folder))


def _read_card(folder: Path) -> Card:
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
