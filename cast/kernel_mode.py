"""Mode `kernel`, the paper's own form (CAST, arXiv 2510.17902): the frozen source kernels run in the target.

At every paired target site the input is encoded into the source site's input space, the frozen kernel acts,
and its change is decoded into the target site's output: y += Σ weight · Q · s·B·A · P(x). P is affine with an
intercept, or has an MLP residual. Q is linear: a kernel's change is a difference of site outputs, for which a
map fitted on outputs themselves holds only by its slope.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cast.adapters import Lora
from cast.headmaps import AffineHead
from cast.models import LanguageModel, TokenBatch
from cast.runners import PlainRunner, Session
from cast.sites import SiteMaps


@dataclass(frozen=True)
class _SiteChange:
    """Forward hook that adds what the kernels of one target site decode to."""

    ways: tuple[tuple[AffineHead, Tensor, Tensor], ...]
    """Encode head, A [r, in_s], and strength · weight · s · Q · B [out_t, r]."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        changes = [linear(linear(encode(inputs[0]), a), b) for encode, a, b in self.ways]
        return (output + torch.stack(changes).sum(0)).to(output.dtype)


class KernelRunner:
    """The target with a source adapter's frozen kernels at its own sites. A `Runner`.

    The change at a position depends on that position alone, so the target's own caches hold.

    Args:
        target: the model that is read and that writes.
        lora: the source adapter.
        maps: site maps that cover it.
        strength: factor on the change; 0 is exactly the base.

    Raises:
        HeadsError: a kernel's site has no map.
    """

    def __init__(self, target: LanguageModel, lora: Lora, maps: SiteMaps, strength: float = 1.0) -> None:
        self._plain = PlainRunner(target)
        ways: dict[str, list[tuple[AffineHead, Tensor, Tensor]]] = {}
        modules: dict[str, nn.Module] = {}
        for site_map, kernel in maps.covering(lora) if strength else ():
            site, gain = site_map.pair.target, strength * site_map.pair.weight * kernel.scaling
            a = kernel.a.float().to(target.device)
            b = gain * (site_map.decode @ kernel.b.float()).to(target.device)
            ways.setdefault(site.name, []).append((site_map.encode.to(target.device), a, b))
            modules[site.name] = target.architecture.module(site)
        self._hooks = tuple((modules[name], _SiteChange(tuple(found))) for name, found in ways.items())

    @property
    def lm(self) -> LanguageModel:
        """The target."""
        return self._plain.lm

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Hold the target and let the kernels act on every forward pass inside the block."""
        with self.lm.lock, ExitStack() as stack:
            for module, hook in self._hooks:
                stack.callback(module.register_forward_hook(hook).remove)
            yield

    def logits(
        self, batch: TokenBatch, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """See `Runner.logits`."""
        with self.acting():
            return self._plain.logits(batch, rows, positions)

    def session(self) -> "KernelSession":
        """A fresh session with an empty cache."""
        return KernelSession(self, self._plain.session())


class KernelSession:
    """A session of the target in which the kernels act."""

    def __init__(self, runner: KernelRunner, plain: Session) -> None:
        self._runner, self._plain = runner, plain

    def next_logits(self, token_ids: Sequence[int]) -> Tensor:
        """See `Session.next_logits`."""
        with self._runner.acting():
            return self._plain.next_logits(token_ids)
