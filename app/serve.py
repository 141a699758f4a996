"""Starts the page: where it listens, and where caches go when the home folder cannot be written."""

import os
import tempfile
import threading
from collections.abc import MutableMapping
from pathlib import Path

_CACHES = {
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "cache",
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
}
_WARM_AFTER_SECONDS = 1.0


def prepare_environment(environ: MutableMapping[str, str]) -> None:
    """Point every cache that is not placed yet to a writable folder where the home folder is read-only.

    Must run before anything that reads these variables is imported: gradio, huggingface_hub, numba.
    """
    environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    home = Path(environ.get("HOME") or "/")
    if os.access(home, os.W_OK) and home != Path("/"):
        return
    base = Path(tempfile.gettempdir()) / f"cast-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    for variable, name in _CACHES.items():
        environ.setdefault(variable, str(base / name))


def address(environ: MutableMapping[str, str]) -> tuple[str, int]:
    """Host and port: every interface on a Space, else this machine; GRADIO_SERVER_* and PORT are honoured."""
    host = environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if environ.get("SPACE_ID") else "127.0.0.1")
    port = environ.get("GRADIO_SERVER_PORT") or environ.get("PORT") or "7860"
    return host, int(port)


def main() -> None:
    """Build the page on the real library and serve it until interrupted."""
    prepare_environment(os.environ)
    # Only now: these imports read the variables set above.
    from app import theme
    from app.library import CastBackend
    from app.ui import build

    host, port = address(os.environ)
    with tempfile.TemporaryDirectory(prefix="cast-app-", ignore_cleanup_errors=True) as folder:
        page = build(CastBackend(), Path(folder))
        page.blocks.queue(default_concurrency_limit=16)
        page.blocks.launch(
            server_name=host,
            server_port=port,
            show_error=False,
            prevent_thread_lock=True,
            **theme.launch_options(),
        )
        # The page answers first: importing would hold up its first visitor.
        warming = threading.Timer(_WARM_AFTER_SECONDS, page.engine.warm)
        warming.daemon = True
        warming.start()
        try:
            page.blocks.block_thread()
        finally:
            page.close()
