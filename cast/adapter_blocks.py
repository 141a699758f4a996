"""Where in a model LoRAs act, and how much: read from their files, without the model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor

from cast.adapter_files import AdapterFolder

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class BlockChange:
    """What adapters do to one block together."""

    block: int
    """Counted from 1."""
    modules: tuple[str, ...]
    """Last parts of the adapted modules' names, sorted."""
    share: float
    """Frobenius norm of s·B·A over the block's modules, as a share of the largest block's."""


def changes_by_block(folders: Sequence[AdapterFolder]) -> tuple[BlockChange, ...]:
    """The change of adapters that act at once, block by block.

    ‖B·A‖² is the sum of (BᵀB)∘(A·Aᵀ), so no full matrix is made.
    """
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for folder in folders:
        tensors = load_file(folder.weights)
        for module in sorted({module for module, _ in folder.keys}):
            a, b = (tensors[folder.keys[module, side]].double() for side in ("A", "B"))
            factors.setdefault(module, []).append((a, folder.config.scaling(module, a.shape[0]) * b))
    squares: dict[int, float] = {}
    modules: dict[int, list[str]] = {}
    for module, several in factors.items():
        found = _BLOCK.search(module)
        if found is None:
            continue
        block = int(found.group(1)) + 1
        a, b = torch.cat([a for a, _ in several]), torch.cat([b for _, b in several], 1)
        squares[block] = squares.get(block, 0.0) + float(((b.T @ b) * (a @ a.T)).sum())
        modules.setdefault(block, []).append(module.rsplit(".", 1)[-1])
    largest = max(squares.values(), default=0.0) or 1.0
    return tuple(
        BlockChange(block, tuple(sorted(modules[block])), max(0.0, square / largest) ** 0.5)
        for block, square in sorted(squares.items())
    )
