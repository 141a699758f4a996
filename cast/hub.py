"""The Hub: find adapters and models, fetch what is safe to read, publish a folder.

Only JSON, safetensors, tokenizer files and model cards are ever fetched. `HF_HUB_OFFLINE`, `HF_ENDPOINT`,
`HF_HOME` and `HF_TOKEN` act as everywhere. Every failure is a `HubError` with one sentence.
"""

import errno
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import HfApi, ModelInfo, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cast.errors import HubError

Kind = Literal["model", "adapter", "heads"]
T = TypeVar("T")

_ALLOWED: Mapping[Kind, tuple[str, ...]] = {
    "model": (
        "*.safetensors",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    ),
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "cast.json", "README.md"),
    "heads": ("heads.json", "heads.safetensors", "README.md"),
}
# Each entry: one of these files must have come.
_NEEDED: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "model": (("config.json",), ("*.safetensors",)),
    "adapter": (("adapter_config.json", "cast.json"), ("adapter_model.safetensors", "cast.json")),
    "heads": (("heads.json",), ("heads.safetensors",)),
}
# Folders inside a repository, and Mistral's second copy of its own weights.
_IGNORED = ("*/*", "consolidated*")
_ANSWER_SECONDS = 20.0
_CONFIRM_THREADS = 8
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterHit:
    """A LoRA on the Hub whose own configuration names the base model that was searched for."""

    repo_id: str
    base_model: str
    rank: int
    targets: tuple[str, ...]
    downloads: int
    licence: str


@dataclass(frozen=True)
class ModelHit:
    """A text-generation model on the Hub."""

    repo_id: str
    downloads: int
    licence: str


def search_adapters(
    model_id: str, words: str = "", *, limit: int = 20, token: str | None = None
) -> list[AdapterHit]:
    """LoRA adapters of a model whose name contains `words`, most downloaded first.

    The Hub's tag `base_model:adapter:` comes from model cards and is unreliable, so a hit counts only when
    its `adapter_config.json` says LoRA and names the same base model.

    Raises:
        HubError: The Hub cannot be reached or refuses.
    """
    with _sentences(model_id, _unsearched):
        found = _listed(
            lambda: HfApi(token=token).list_models(
                search=words or None,
                filter=f"base_model:adapter:{model_id}",
                sort="downloads",
                limit=2 * limit,
                expand=["downloads", "tags"],
            )
        )
        with ThreadPoolExecutor(_CONFIRM_THREADS) as pool:
            hits = list(pool.map(lambda info: _confirmed(info, model_id, token), found))
    return [hit for hit in hits if hit is not None][:limit]


def search_models(query: str, *, limit: int = 20, token: str | None = None) -> list[ModelHit]:
    """Text-generation models whose name contains the words of `query`, most downloaded first.

    Raises:
        HubError: The Hub cannot be reached or refuses.
    """
    with _sentences(query, _unsearched):
        found = _listed(
            lambda: HfApi(token=token).list_models(
                search=query,
                pipeline_tag="text-generation",
                sort="downloads",
                limit=limit,
                expand=["downloads", "tags"],
            )
        )
    return [ModelHit(info.id, info.downloads or 0, _licence(info)) for info in found]


def fetch_config(
    repo_id: str, filename: str = "config.json", *, token: str | None = None
) -> Mapping[str, Any]:
    """One JSON object of a repository, such as `config.json` or `adapter_config.json`.

    Raises:
        HubError: It cannot be fetched, or it is not a JSON object of at most 1 MiB.
    """
    with _sentences(repo_id):
        path = Path(hf_hub_download(repo_id, filename, token=token))
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise HubError(f"{filename} of {repo_id} is larger than 1 MiB; that is no configuration.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HubError(f"{filename} of {repo_id} is not JSON; choose another repository.") from error
    if not isinstance(value, dict):
        raise HubError(f"{filename} of {repo_id} is not a JSON object; choose another repository.")
    return value


def download(repo_id: str, *, kind: Kind, token: str | None = None, revision: str | None = None) -> Path:
    """Fetch a repository's usable files into the cache and return the folder that holds them.

    Offline, what the cache holds already is used.

    Raises:
        HubError: It cannot be fetched, or it holds no safetensors files of this kind.
    """
    with _sentences(repo_id):
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                allow_patterns=list(_ALLOWED[kind]),
                ignore_patterns=list(_IGNORED),
            )
        )
    for names in _NEEDED[kind]:
        if not any(any(folder.glob(name)) for name in names):
            raise HubError(
                f"{repo_id} has no {names[0]}, so it holds no {kind} that can be read; "
                "pickle files are never loaded."
            )
    return folder


def push(folder: Path, repo_id: str, token: str | None = None, *, private: bool = False) -> str:
    """Publish the files of a folder as a model repository, made if need be; returns its address.

    Raises:
        HubError: The folder is empty, or the Hub refuses.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise HubError(f"{folder} is empty or missing; write an adapter or heads there first.")
    with _sentences(repo_id, _unpublished):
        api = HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=["*.json", "*.safetensors", "README.md"],
            commit_message="Add files written by CAST",
        )
    return str(address)


def _listed(ask: Callable[[], Iterable[ModelInfo]]) -> list[ModelInfo]:
    """The whole answer of a listing. The client sets no time limit on it, so one is set here."""
    answer: Future[list[ModelInfo]] = Future()

    def run() -> None:
        try:
            answer.set_result(list(ask()))
        except BaseException as error:
            answer.set_exception(error)

    # A daemon thread: a connection that hangs must not keep the interpreter from ending.
    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(_ANSWER_SECONDS)
    except TimeoutError as error:
        raise HubError(
            f"The Hub did not answer within {_ANSWER_SECONDS:.0f} seconds; try again later."
        ) from error


def _confirmed(info: ModelInfo, model_id: str, token: str | None) -> AdapterHit | None:
    try:
        config = fetch_config(info.id, "adapter_config.json", token=token)
    except HubError as error:
        if _concerns_the_hub(error.__cause__):
            raise
        return None
    base = config.get("base_model_name_or_path")
    if config.get("peft_type") != "LORA" or not isinstance(base, str) or base.lower() != model_id.lower():
        return None
    rank, targets = config.get("r"), config.get("target_modules")
    return AdapterHit(
        repo_id=info.id,
        base_model=base,
        rank=rank if isinstance(rank, int) else 0,
        targets=tuple(sorted(str(t) for t in targets)) if isinstance(targets, list) else (str(targets),),
        downloads=info.downloads or 0,
        licence=_licence(info),
    )


def fetch_card(repo_id: str, *, token: str | None = None) -> str:
    """The model card of a repository; empty where it has none that can be read: nothing depends on a card."""
    try:
        with _sentences(repo_id):
            path = Path(hf_hub_download(repo_id, "README.md", token=token))
            return path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_CONFIG_BYTES else ""
    except (HubError, ValueError):
        return ""


def read_card(folder: Path) -> str:
    """The model card in a folder on this machine; empty where there is none that can be read."""
    path = folder / "README.md"
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_CONFIG_BYTES else ""
    except (OSError, ValueError):
        return ""


def licence_of(card: str) -> str | None:
    """The `license:` entry of a card's front matter."""
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.\-]+)", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else None


def is_cached(repo_id: str) -> bool:
    """Whether a repository's weights, or some of them, were fetched before."""
    try:
        found = try_to_load_from_cache(repo_id, "config.json")
    except HFValidationError:
        return False
    return isinstance(found, str) and any(Path(found).parent.glob("*.safetensors"))


def _concerns_the_hub(cause: BaseException | None) -> bool:
    """Whether the Hub is gone or refuses, rather than that one repository is of no use."""
    if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return True
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        return cause.response.status_code == 429 or cause.response.status_code >= 500
    return False


def _licence(info: ModelInfo) -> str:
    return next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "")


@contextmanager
def _sentences(name: str, sentence: Callable[[str, BaseException], str] | None = None) -> Iterator[None]:
    """Turn whatever the client raises into a `HubError` about `name`."""
    try:
        yield
    except HubError:
        raise
    except (
        OfflineModeIsEnabled,
        HFValidationError,
        EntryNotFoundError,
        RevisionNotFoundError,
        HTTPError,
        OSError,
        ValueError,
    ) as error:
        raise HubError((sentence or _sentence)(name, error)) from error


_CAUSES = (OfflineModeIsEnabled, HTTPError)
_UNREACHABLE = (
    "The Hub cannot be reached{why}, and {name} is not in the cache; check the connection, or choose "
    "a pocket model or a local folder."
)
# From the most to the least specific: a gated repository is also a repository that was not found.
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (OfflineModeIsEnabled, _UNREACHABLE.replace("{why}", " because HF_HUB_OFFLINE is set")),
    (
        GatedRepoError,
        "{name} is gated: accept its terms on its page on the Hub, then set HF_TOKEN to your token.",
    ),
    (
        RepositoryNotFoundError,
        "The Hub has no repository {name}, or it is private; check the name, or set HF_TOKEN.",
    ),
    (RevisionNotFoundError, "{name} has no such revision; check its branches and tags."),
    (LocalEntryNotFoundError, _UNREACHABLE.replace("{why}", "")),
    (EntryNotFoundError, "{name} lacks the file that was asked for; choose another repository."),
    (HFValidationError, "{name} is not a name that the Hub knows; it should look like owner/name."),
    (HfHubHTTPError, ""),  # by status, see `_refusal`
    (HTTPError, _UNREACHABLE.replace("{why}", "")),
    (ValueError, "{name} is not a name that the Hub knows; it should look like owner/name."),
)


def _sentence(name: str, error: BaseException) -> str:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, _CAUSES):
        # Raised when nothing is cached either; its cause says why the Hub did not serve.
        return _sentence(name, error.__cause__)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"There is no space left for {name}; free some, or point HF_HOME to a larger disk."
    for kind, words in _SENTENCES:
        if isinstance(error, kind):
            return words.format(name=name) or _refusal(name, error)
    return f"{name} could not be fetched ({type(error).__name__}); try again."


def _unsearched(name: str, error: BaseException) -> str:
    """Why nothing was found."""
    if why := _not_reached(error):
        return f"{why}, so nothing was searched there; what ships, and any folder, can still be chosen."
    return _sentence(name, error)


def _unpublished(name: str, error: BaseException) -> str:
    """Why nothing was published."""
    response = getattr(error, "response", None)
    if why := _not_reached(error):
        return f"{why}, so {name} was not published; try again with a connection."
    if response is not None and response.status_code in (401, 403):
        return f"The Hub refuses this token for {name}; use one with the right to write there."
    return _sentence(name, error)


def _not_reached(error: BaseException) -> str:
    """The first half of a sentence where the Hub gave no answer at all; empty where it did."""
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub cannot be reached because HF_HUB_OFFLINE is set"
    silent = isinstance(error, HTTPError) and getattr(error, "response", None) is None
    return "The Hub cannot be reached" if silent else ""


def _refusal(name: str, error: Exception) -> str:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    if status == 429:
        return "The Hub is asked too often from here; wait five minutes, or set HF_TOKEN for a higher limit."
    if status in (401, 403):
        return f"The Hub refuses access to {name}; set HF_TOKEN to a token with the right to it."
    if status >= 500:
        return f"The Hub has a problem of its own (status {status}); try again later."
    return f"The Hub refused the request for {name} (status {status}); check the name."
