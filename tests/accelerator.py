"""A device apart, for machines without one: its tensors lie in main memory and refuse what a real one does.

A tensor of it meets no tensor of the CPU, but for numbers and for indices, as with CUDA; none is of float64,
as with Apple's Metal; none becomes an array before it is on the CPU. Importing this registers the device for
the whole process, and libraries find it; so tests with it run in one of their own (`test_accelerator.py`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Module(_DummyBackendModule):
    """What PyTorch asks a device's module, `torch.cuda` of CUDA: here it draws no numbers of its own."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass


_setup_privateuseone_for_python_backend("apart", backend_module=_Module())
DEVICE = torch.device("apart:0")
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_INDEXING = {
    _aten.index.Tensor, _aten._unsafe_index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default, _aten._unsafe_index_put.default,
}  # fmt: skip
_PLAIN_ATTENTION = 0


class ApartTensor(Tensor):
    """A tensor of the device; `raw` holds its numbers."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> "ApartTensor":
        if raw.dtype == torch.float64:
            raise TypeError(f"{DEVICE} knows no float64.")
        made = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=DEVICE,
        )
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:
        return f"ApartTensor({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))

    # Of a tensor without storage of its own PyTorch answers none of these.

    def tolist(self) -> Any:
        return self.raw.tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"A tensor of {DEVICE} is no array; copy it to the CPU first.")


def _raw(tensor: Tensor) -> Tensor:
    return tensor.raw if isinstance(tensor, ApartTensor) else tensor


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is _aten._fused_sdp_choice.default:
        return _PLAIN_ATTENTION
    _check(func, args, kwargs)
    if func is _aten.copy_.default:
        _raw(args[0]).copy_(_raw(args[1]))
        return args[0]
    to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else DEVICE.type
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    raw_args, raw_kwargs = tree_map_only(ApartTensor, _raw, (args, kwargs))
    out = func(*raw_args, **raw_kwargs)
    if to == DEVICE.type:
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, ApartTensor, out))
    return out.clone() if any(out is given for given in tree_leaves(raw_args)) else out


def _check(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse what meets across devices.

    Raises:
        RuntimeError: as CUDA does.
    """
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"{func}: a generator of the CPU draws nothing on {DEVICE}.")
    if func in _COPIES:
        return
    looked_at = tree_leaves((args, kwargs))
    if func in _INDEXING:
        if not isinstance(args[0], ApartTensor):
            raise RuntimeError(f"{func}: a tensor of the CPU is indexed from {DEVICE}.")
        looked_at = [args[0], *args[2:3]]
    strange = [
        tuple(each.shape)
        for each in looked_at
        if isinstance(each, Tensor) and not isinstance(each, ApartTensor) and each.dim()
    ]
    if strange:
        raise RuntimeError(f"{func}: tensors of the CPU, of shapes {strange}, meet some of {DEVICE}.")


def _made_here(factory: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> ApartTensor:
        kwargs.pop("pin_memory", None)
        return ApartTensor(factory(*args, **kwargs | {"device": "cpu"}))

    return make


def _copied(given: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    _raw(to).copy_(_raw(given))
    return to


_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _made_here(_aten.empty.memory_format), "PrivateUse1")
_library.impl("empty_strided", _made_here(_aten.empty_strided.default), "PrivateUse1")
_library.impl("_copy_from", _copied, "PrivateUse1")
