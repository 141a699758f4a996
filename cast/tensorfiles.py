"""Headers of safetensors files, read and checked before any tensor is mapped or any memory is taken.

Layout (huggingface/safetensors): 8 bytes little-endian header length, the header as JSON, then the data; each
entry names dtype, shape and the half-open byte range of its data.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cast.errors import CastError

MAX_HEADER_BYTES = 32 * 2**20
_ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: str
    """The file's own name of the number type, such as `F32` or `BF16`."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of data."""
        return self.size * _ITEM_BYTES[self.dtype]


def read_header(path: Path, error: type[CastError]) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors of a safetensors file whose header tells the truth.

    The ranges must follow one another without gap or overlap, agree with type and shape, and end where the
    file ends.

    Args:
        path: the file.
        error: class to raise, so that the message reaches the user as what it is (a model's or an adapter's
            error).

    Raises:
        CastError: as `error`; the file cannot be read, is cut off, or its header contradicts the file.
    """
    try:
        header, data_bytes = _raw_header(path)
        infos = {name: _info(entry) for name, entry in header.items() if name != "__metadata__"}
        ranges = sorted(tuple(entry["data_offsets"]) for name, entry in header.items() if name in infos)
        position = 0
        for start, end in ranges:
            if start != position or end < start:
                raise ValueError("its tensors overlap or leave gaps")
            position = end
        if position != data_bytes:
            raise ValueError(f"its header promises {position} bytes of data and the file holds {data_bytes}")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as cause:
        raise error(
            f"{path.name} is damaged or is not a safetensors file ({_reason(cause)}); fetch or save it again."
        ) from cause
    return infos


def _raw_header(path: Path) -> tuple[dict[str, Any], int]:
    total = path.stat().st_size
    with path.open("rb") as file:
        if total < 8:
            raise ValueError("it is too short to hold a header")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(total - 8, MAX_HEADER_BYTES):
            raise ValueError(f"its header claims {length} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a table of tensors")
    return header, total - 8 - length


def _info(entry: dict[str, Any]) -> TensorInfo:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"number type {str(dtype)[:20]!r} is not known")
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError("a shape or a range is not made of whole numbers")
    info = TensorInfo(dtype, tuple(shape))
    if info.bytes != end - start:
        raise ValueError("a tensor's shape contradicts its range")
    return info


def _reason(cause: Exception) -> str:
    if isinstance(cause, json.JSONDecodeError | UnicodeDecodeError):
        return "its header is not JSON"
    if isinstance(cause, KeyError):
        return f"an entry lacks {cause}"
    if isinstance(cause, OSError):
        return cause.strerror or "it cannot be read"
    return str(cause)
