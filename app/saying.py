"""Errors said in sentences: what a visitor reads instead of a traceback."""

import logging

from app.views import sentence
from cast.errors import CastError

logger = logging.getLogger(__name__)


def said(error: Exception) -> str:
    """The sentence for an error, as HTML; what was not foreseen goes to the log with its traceback."""
    if isinstance(error, CastError):
        return sentence(str(error), "error")
    logger.error("unforeseen error on the page", exc_info=error)
    return sentence(
        f"Something unexpected went wrong ({type(error).__name__}). Try again; the server's log has the "
        "details.",
        "error",
    )
