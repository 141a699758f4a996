"""Export without the page: what a translated folder holds, as a zip, as text, and on the Hub.

Only the files that a translation consists of ever leave.
"""

import json
import re
import tempfile
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.backend import Backend
from app.cache import Cache
from app.engine import Engine
from app.maps import moving_states
from app.workspace import Attached, Pair, Selection
from cast.errors import AdapterError, CastError, HeadsError, HubError, RequestError
from cast.recipes import RECIPE_FILE
from cast.storage import readable_write_errors

CONFIG = "adapter_config.json"
CARD = "README.md"
_FILES = (CONFIG, "adapter_model.safetensors", RECIPE_FILE, CARD)
_HEADS = "heads.json"
_HEADS_FILES = (_HEADS, "heads.safetensors", CARD)
_LARGEST_TEXT = 1 << 20
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Export:
    """A translated folder that is ready to leave: a zip with one folder of its own name in it."""

    name: str
    archive: Path
    size: int
    card: str
    recipe: str
    rank: int | None
    """Largest rank of the LoRA; None where the folder is a recipe only."""


class Exports:
    """The page's way to what can be taken away; one for all visitors, made in `app.ui.build`."""

    def __init__(self, backend: Backend, engine: Engine, folder: Path) -> None:
        self._backend = backend
        self._engine = engine
        self._folder = folder
        self._made: Cache[Export] = Cache(32)

    def current(self, selection: Selection, made: Attached) -> Export | None:
        """What the visitor's translation of a choice holds; None where nothing has been written for it.

        Raises:
            AdapterError: the folder is gone, or holds no translation.
            OutputError: it cannot be copied.
        """
        folder = self._engine.translated_folder(selection, made)
        if folder is None:
            return None
        gone = AdapterError(f"{folder} holds no {RECIPE_FILE} any more; translate once more.")
        return self._packed_once(folder, self.name(selection), RECIPE_FILE, _FILES, gone)

    def heads(self, pair: Pair, heads_job: str) -> Export | None:
        """The heads that a pair would use now; None where there are none. Loads both models.

        Raises:
            HeadsError: they are gone.
            OutputError: they cannot be copied.
        """
        folder = self._engine.heads_folder(pair, heads_job)
        if folder is None:
            return None
        gone = HeadsError("The heads of this pair are gone; train or load them once more.")
        name = _named("heads", pair.source, "to", pair.target)
        return self._packed_once(folder, name, _HEADS, _HEADS_FILES, gone)

    def name(self, selection: Selection) -> str:
        """A folder name for a translation: the adapter, and the model that it is for."""
        return _named(selection.adapter, "for", selection.target)

    def on_a_map(self, selection: Selection, made: Attached) -> str:
        """The folder whose translation a map of a choice shows; empty where it shows none.

        One that was opened stands where it is; any other is called as it is when it was downloaded.

        Raises:
            AdapterError: the opened folder cannot be read any more.
        """
        for choice in moving_states(selection):
            if folder := self._engine.translated_folder(choice, made):
                return made.folder if str(folder) == made.folder else self.name(choice)
        return ""

    def _packed_once(
        self, folder: Path, name: str, newest: str, wanted: Sequence[str], gone: CastError
    ) -> Export:
        """What a folder holds, packed anew only where its file `newest` was written since; else `gone`."""
        try:
            written = (folder / newest).stat().st_mtime_ns
        except OSError as error:
            raise gone from error
        return self._made.get((folder, written, name), lambda: self._packed(folder, name, wanted))

    def _packed(self, folder: Path, name: str, wanted: Sequence[str]) -> Export:
        archive = self._folder / "exports" / uuid.uuid4().hex / f"{name}.zip"
        # A link may lead anywhere on the server.
        files = [path for file in wanted if (path := folder / file).is_file() and not path.is_symlink()]
        with readable_write_errors(archive):
            archive.parent.mkdir(parents=True)
            # Weights do not get smaller by being compressed, only later.
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
                for path in files:
                    packed.write(path, f"{name}/{path.name}")
        texts = {path.name: _text(path) for path in files if path.suffix != ".safetensors"}
        rank = _rank(texts[CONFIG]) if CONFIG in texts else None
        return Export(
            name, archive, archive.stat().st_size, texts.get(CARD, ""), texts.get(RECIPE_FILE, ""), rank
        )

    def publish(self, export: Export, repo: str, token: str, private: bool) -> str:
        """Publish an export with the visitor's own token, which is neither kept nor logged.

        Raises:
            RequestError: there is no token, or no name of a repository.
            HubError: the Hub cannot be reached, or refuses.
        """
        if not _REPO.fullmatch(repo):
            raise RequestError(f"Name the repository as owner/name, such as me/{export.name}.")
        if not token or any(character.isspace() for character in token):
            # Without one the Hub's client would take the token of whoever runs the server.
            raise RequestError("Give your own Hub token, with the right to write; it is not kept.")
        with tempfile.TemporaryDirectory(dir=export.archive.parent) as place:
            with zipfile.ZipFile(export.archive) as packed:
                packed.extractall(place)
            try:
                return self._backend.publish(Path(place) / export.name, repo, token, private)
            except HubError as error:
                # What was said may go to a log: it must not hold the token, whatever the client put into it.
                raise HubError(str(error).replace(token, "…")) from None


def _named(*words: str) -> str:
    """A folder name from the last parts of names."""
    short = (word.removeprefix("pocket:").rstrip("/").rsplit("/", 1)[-1] for word in words)
    return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(short)).strip("-.")[:80] or "translated"


def _text(path: Path) -> str:
    """A small text file; empty where it is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size <= _LARGEST_TEXT else ""


def _rank(config: str) -> int:
    """Largest rank that the text of an `adapter_config.json` tells of."""
    try:
        record = json.loads(config)
        return max([record["r"], *record.get("rank_pattern", {}).values()])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{CONFIG} of this translation cannot be read; translate once more.") from error
