"""Where results and caches go, and how a folder is written so that it is there whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cast.errors import OutputError


def cache_folder() -> Path:
    """Folder for converted models, heads and site maps: `$CAST_CACHE`, else `cast` in the user's cache.

    Falls back to the temporary folder where the home folder cannot be written, as on a hosted Space.
    """
    if chosen := os.environ.get("CAST_CACHE"):
        folder = Path(chosen)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cast"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _fallback_cache()
    return folder if os.access(folder, os.W_OK) else _fallback_cache()


def _fallback_cache() -> Path:
    folder = Path(tempfile.gettempdir()) / "cast-cache"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_output_folder(folder: Path) -> None:
    """Refuse an output folder that holds something already, before any work is done for it.

    Raises:
        OutputError: the path is a file, or a folder that is not empty.
    """
    if folder.is_file():
        raise OutputError(f"{folder} is a file; name a folder that does not exist yet.")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; name another folder, or empty it first.")


@contextmanager
def written_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not.

    Args:
        folder: Where the result shall stand. Its parents are made.
        replace: Take the place of what is there (for caches); otherwise the folder must be empty or missing.

    Raises:
        OutputError: the folder is not empty, cannot be made, or the disk is full. Nothing is left behind.
    """
    if not replace:
        check_output_folder(folder)
    with readable_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield draft
            _open_to_readers(draft)
            if folder.exists():
                shutil.rmtree(folder)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _open_to_readers(draft: Path) -> None:
    """Give a draft the rights that any new folder gets; safetensors writes files for their owner alone."""
    probe = draft / ".rights"
    probe.touch()  # asks the umask without changing it, which would be felt by other threads
    file = probe.stat().st_mode & 0o666
    probe.unlink()
    folder = file | (file & 0o444) >> 2
    draft.chmod(folder)
    for path in draft.rglob("*"):
        path.chmod(folder if path.is_dir() else file)


@contextmanager
def readable_write_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a failed write to `path` into an `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(f"No space is left to write {path}; free some and try again.") from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise OutputError(f"{path} may not be written here; choose another folder.") from error
        raise OutputError(f"{path} could not be written ({error.strerror or error}).") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Raises:
        OutputError: the file cannot be written.
    """
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).replace(path)
        finally:
            Path(draft).unlink(missing_ok=True)
