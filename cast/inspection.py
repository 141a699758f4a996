"""What a model, an adapter, heads or a translated adapter is, in facts that JSON takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cast import adapter_files, hub, models
from cast.errors import CastError
from cast.heads import HeadSet
from cast.pocket import registry
from cast.recipes import RECIPE_FILE, read_recipe


def heads_facts(heads: HeadSet) -> dict[str, Any]:
    """Which pair, how fitted, and the held-out quality of each depth."""
    return {
        "source": heads.source.name,
        "target": heads.target.name,
        "recipe": as_json(asdict(heads.recipe)),
        "quality": as_json([asdict(entry) for entry in heads.quality]),
    }


def inspected(name: str, token: str | None = None) -> tuple[str, dict[str, Any]]:
    """Kind and facts of a thing. A folder says itself what it is; a Hub id is tried as an adapter first.

    Raises:
        CastError: there is no such thing, or it cannot be read.
    """
    folder = registry.resolve(name) if registry.is_pocket(name) else Path(name).expanduser()
    if (folder / "heads.json").is_file():
        return "heads", heads_facts(HeadSet.load(folder))
    if (folder / "adapter_config.json").is_file():
        # An adapter of the zoo is called by its name, wherever the program is installed.
        found = adapter_files.inspect(name if registry.is_pocket(name) else folder)
        facts = as_json(asdict(found))
        if (folder / RECIPE_FILE).is_file():
            return "translated adapter", {**facts, "recipe": as_json(asdict(read_recipe(folder)))}
        return "adapter", facts
    if (folder / RECIPE_FILE).is_file():
        return "translated adapter", as_json(asdict(read_recipe(folder)))
    if not folder.exists() and _is_hub_adapter(name, token):
        return "adapter", as_json(asdict(adapter_files.inspect(name, token=token)))
    return "model", as_json(asdict(models.describe(name, token)))


def _is_hub_adapter(name: str, token: str | None) -> bool:
    try:
        hub.fetch_config(name, "adapter_config.json", token=token)
    except CastError:
        # Whatever is wrong is said by the attempt to describe it as a model.
        return False
    return True


def as_json(value: Any) -> Any:
    """A value as JSON takes it: NaN and infinity become null, tuples lists, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, Sequence | Iterator) and not isinstance(value, str):
        return [as_json(entry) for entry in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return str(value) if isinstance(value, Path) else value
