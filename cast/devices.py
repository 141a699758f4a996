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


def _product_seconds(dtype: torch.dtype) -> float:
    """Best of three timed products of the shape that a decoder block makes."""
    left, right = torch.ones(64, 512, dtype=dtype), torch.ones(2048, 512, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up and loses against the rest
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
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
