"""How soon the page answers: `python app.py` beside an empty Gradio page, in turn, in one run.

    python -m benchmarks.startup --repeats 5

Prints both medians and their ratio; with `--at-most 1.3` a larger ratio is an error. Starting is bound by the
disk and by what else the machine does, so the two take turns, and each pair of neighbours gives a ratio.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PATIENCE = 180.0
# What every Gradio page needs: nothing on it, and no question to Gradio's own server on the way.
_EMPTY = "import gradio\nwith gradio.Blocks(analytics_enabled=False) as page: pass\npage.launch()"
_PAGES = {"empty Gradio page": ("-c", _EMPTY), "python app.py": ("app.py",)}


def seconds_to_answer(arguments: Sequence[str], folder: Path) -> float:
    """Seconds from the start of `python ARGUMENTS` to a page that came whole.

    Args:
        arguments: of the Python that runs this.
        folder: takes what the page keeps.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    port = _free_port()
    environ = os.environ | {
        "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False", "CAST_CACHE": str(folder),
    }  # fmt: skip
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=_ROOT, env=environ, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            while time.perf_counter() - started < _PATIENCE and process.poll() is None:
                if _answers(f"http://127.0.0.1:{port}/"):
                    return time.perf_counter() - started
                time.sleep(0.02)
            raise RuntimeError(f"python {' '.join(arguments)} gave no page.")
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as response:
            return b"gradio" in response.read()
    except (urllib.error.URLError, ConnectionError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure in turn, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--at-most", type=float, help="largest ratio that is no error")
    given = parser.parse_args(arguments)
    taken: dict[str, list[float]] = {name: [] for name in _PAGES}
    with tempfile.TemporaryDirectory() as folder:
        # The first round fills the caches of files and of compiled modules, and is not counted.
        for turn in range(given.repeats + 1):
            for name, words in _PAGES.items():
                seconds = seconds_to_answer(words, Path(folder))
                if turn:
                    taken[name].append(seconds)
    for name, times in taken.items():
        print(f"{name:<18} {statistics.median(times):6.2f} s   ({min(times):.2f} to {max(times):.2f})")
    empty, ours = taken.values()
    ratio = statistics.median(own / bare for own, bare in zip(ours, empty, strict=True))
    print(f"{'ratio':<18} {ratio:6.2f}     (median of {given.repeats} pairs of neighbours)")
    return int(given.at_most is not None and ratio > given.at_most)


if __name__ == "__main__":
    sys.exit(main())
