"""The library on a device that is not the CPU, in a process of its own; see `accelerator.py`."""

import subprocess
import sys
from pathlib import Path


def test_an_accelerator_does_what_the_cpu_does():
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/on_accelerator.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
