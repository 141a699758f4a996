"""A share link: a visitor's choices in the query string of the page's address.

The link is written in the browser (assets/js/stage.js) and read here. Whoever follows one did not write it,
so it may name what anybody can fetch, and nothing on this machine.
"""

import re
from dataclasses import fields
from pathlib import Path
from urllib.parse import parse_qsl

from app.workspace import Workspace

_LONGEST = 20_000
_MOST_FIELDS = 32
_FIELDS = frozenset(field.name for field in fields(Workspace))
_PUBLIC = re.compile(r"pocket:[\w.-]+(/[\w.-]+)?|[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_NUMBERS = {
    "segment": int,
    "strength": float,
    "source_strength": float,
    "retrained_strength": float,
    "second_strength": float,
    "max_tokens": int,
    "temperature": float,
    "seed": int,
}


def is_public(name: str) -> bool:
    """Whether a name is of the pocket zoo or has the form of a Hub id, and is no folder of this machine."""
    if _PUBLIC.fullmatch(name) is None:
        return False
    return name.startswith("pocket:") or not Path(name).exists()


def read(query: str, kept: Workspace) -> Workspace:
    """The choices of a link, in place of those that the browser kept.

    Args:
        query: the query string; whatever does not fit is left out.
        kept: what is chosen where there is no link, and the models where it names none. A link holds only
            what is not as `Workspace` has it by default.
    """
    try:
        pairs = parse_qsl(query[:_LONGEST].removeprefix("?"), max_num_fields=_MOST_FIELDS)
    except ValueError:
        return kept
    told = {name: _value(name, text) for name, text in pairs}
    told = {name: value for name, value in told.items() if name in _FIELDS}
    if not is_public(str(told.get("retrained", ""))):
        told.pop("retrained", None)
    named = [str(told[name]) for name in kept.choice() if name in told]
    if not told or not all(map(is_public, named)):
        return kept
    models = {**kept.choice(), "adapter": ""} if named else kept.choice()
    return Workspace.from_json(models, told)


def _value(name: str, text: str) -> object:
    """A field as the browser keeps it; None where the text is of another kind."""
    if name == "one_line":
        return text == "true"
    if name not in _NUMBERS:
        return text
    try:
        return _NUMBERS[name](text)
    except ValueError:
        return None
