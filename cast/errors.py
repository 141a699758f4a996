"""Errors whose message may be shown to a user as it is.

Every class inherits both `CastError` and the built-in that describes it, so callers can catch either.
The message is one or two sentences: what is wrong, and what to do about it.
"""


class CastError(Exception):
    """Base of every error that CAST raises on purpose."""


class RequestError(CastError, ValueError):
    """The request contradicts itself or names something that does not exist."""


class ModelError(CastError, ValueError):
    """A model cannot be found, loaded or used."""


class AdapterError(CastError, ValueError):
    """An adapter cannot be read, does not fit its model, or is of a kind that is not supported."""


class HeadsError(CastError, ValueError):
    """Heads are damaged, or were made for another pair of models."""


class CorpusError(CastError, ValueError):
    """A text corpus is empty, unreadable, or too short to determine the heads."""


class TaskError(CastError, ValueError):
    """A task file is missing or malformed."""


class HubError(CastError, OSError):
    """The Hub cannot be reached, or refuses."""


class OutputError(CastError, OSError):
    """A result cannot be written where it was asked for."""


class Cancelled(CastError):  # noqa: N818  the user's wish, not a fault
    """The user cancelled a long operation."""


def first_line(cause: BaseException) -> str:
    """First line of what a library said, at most 200 characters, to be put in brackets into a sentence."""
    return (str(cause).strip() or type(cause).__name__).splitlines()[0][:200].rstrip(".")
