"""`python app.py` answers, also in a Space: port 7860, SPACE_ID set, a home folder that cannot be written."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from app.serve import address, prepare_environment

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("127.0.0.1", 7860)),
        ({"SPACE_ID": "me/cast"}, ("0.0.0.0", 7860)),
        ({"PORT": "8080"}, ("127.0.0.1", 8080)),
        (
            {"GRADIO_SERVER_NAME": "::", "GRADIO_SERVER_PORT": "9000", "PORT": "8080", "SPACE_ID": "x"},
            ("::", 9000),
        ),
    ],
)
def test_where_the_page_listens(environ, expected):
    assert address(environ) == expected


def test_caches_move_where_the_home_folder_cannot_be_written(tmp_path):
    environ = {"HOME": str(tmp_path / "missing"), "HF_HOME": "/already/placed"}
    prepare_environment(environ)
    assert environ["HF_HOME"] == "/already/placed"
    assert os.access(Path(environ["MPLCONFIGDIR"]).parent, os.W_OK)


def test_caches_stay_where_the_home_folder_can_be_written(tmp_path):
    environ = {"HOME": str(tmp_path)}
    prepare_environment(environ)
    assert "HF_HOME" not in environ


def test_the_page_answers_in_a_space(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
    port = 7860 if _is_free(7860) else 7861  # someone may be using the app while testing it
    environ = {**kept, "HOME": str(home), "SPACE_ID": "me/cast", "GRADIO_SERVER_PORT": str(port)}
    environ |= {"HF_HUB_OFFLINE": "1", "GRADIO_SERVER_NAME": "127.0.0.1"}
    with subprocess.Popen(
        [sys.executable, "app.py"], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            body = _answer(process, f"http://127.0.0.1:{port}/")
        finally:
            process.terminate()
            output = process.communicate(timeout=60)[0].decode()
    assert "CAST" in body, output
    assert "Traceback" not in output
    assert list(home.iterdir()) == []


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _answer(process, url):
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return response.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    return ""
