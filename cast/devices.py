"""Where computations run: device, number type and memory, found by looking and not by assumption."""

import time
from functools import cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def pick_device() -> torch.device:
    """The fastest device here: CUDA, then Apple's Metal, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """The number type in which matrix products are fastest on `device`: bfloat16 or float32.

    A CPU is measured (about 50 ms, once per process): with AVX512-BF16 or AMX bfloat16 is about 3 times as
    fast as float32, without them many times slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if _bfloat16_is_faster() else torch.float32
    return torch.float32


@cache
def _bfloat16_is_faster() -> bool:
    return _product_seconds(torch.bfloat16) < 0.8 * _product_seconds(torch.float32)


@cache
def product_speed(width: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of the shape that a decoder block of this width makes.

    Measured once per process and shape, in a few milliseconds.
    """
    rows = 256
    return 2.0 * rows * width * 4 * width / _product_seconds(dtype, device, rows, width)


def _product_seconds(
    dtype: torch.dtype, device: torch.device | str = "cpu", rows: int = 64, width: int = 512
) -> float:
    """Best of three timed products of the shape that a decoder block makes."""
    left = torch.ones(rows, width, dtype=dtype, device=device)
    right = torch.ones(4 * width, width, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):  # the first one warms up and loses against the rest
        started = time.perf_counter()
        # Reading one number waits for a device that works beside the program.
        float(torch.nn.functional.linear(left, right)[0, 0])
        best = min(best, time.perf_counter() - started)
    return best


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on `device`, a container's limit counted in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    try:
        limit = int(_CGROUP_LIMIT.read_text()) - int(_CGROUP_USED.read_text())
    except (OSError, ValueError):  # no control group, or its limit is "max"
        return available
    return max(0, min(available, limit))
