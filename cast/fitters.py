"""Estimators of heads: each takes paired batches with `update` and gives its heads with `result`.

`RidgeFitter` sums up moments and solves once. `MLPFitter` goes on from its affine heads by gradient steps: it
fits the nonlinear part, and the deepest decode head in the target's own metric too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cast.activations import Moments, PairedBatch
from cast.alignment import below
from cast.errors import CorpusError
from cast.heads import AffineHead, HeadPair, MLPHead
from cast.measures import r_squared

# Share of the standardised variance that is added to the diagonal.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Most logits of one product: 64 positions of a vocabulary of 262,144.
_KL_LOGITS = 1 << 24
Logits = Callable[[Tensor], Tensor]


class RidgeFitter:
    """Affine heads both ways at several depths, by ridge regression on streamed moments.

    Args:
        depths: target depths.
        source_width: d_s.
        target_width: d_t.
        reads: target depths that an encode head reads, its own the last of them.
    """

    def __init__(self, depths: Iterable[int], source_width: int, target_width: int, reads: int = 1) -> None:
        self.moments = {depth: Moments(source_width, target_width) for depth in depths}
        self.reads = reads
        # An encode head that reads one depth is solved from the moments of the decode head there.
        self.wide = {
            depth: Moments(width, source_width)
            for depth in self.moments
            if (width := target_width * len(below(depth, reads))) > target_width
        }

    @property
    def count(self) -> int:
        """Pairs so far."""
        return next(iter(self.moments.values())).count

    def update(self, batch: PairedBatch) -> None:
        """Add the pairs of a batch."""
        for depth, moments in self.moments.items():
            moments.update(batch.source[depth], batch.target[depth])
        for depth, moments in self.wide.items():
            moments.update(batch.below(depth, self.reads), batch.source[depth])

    def result(self, validation: PairedBatch) -> dict[int, HeadPair]:
        """Solve at every depth, with the ridge that does best on pairs that were not added.

        Raises:
            CorpusError: too few pairs were added to tell anything.
        """
        if self.count < 2:
            raise CorpusError(f"The text holds {self.count} aligned tokens; give more text.")
        pairs = {}
        for depth, moments in self.moments.items():
            source, target = validation.source[depth], validation.target[depth]
            reading = self.wide.get(depth) or moments.swapped()
            pairs[depth] = HeadPair(
                encode=ridge_head(reading, validation.below(depth, self.reads), source),
                decode=ridge_head(moments, source, target),
            )
        return pairs

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {f"{name}.{k}": v for name, moments in self._named() for k, v in moments.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""
        for name, moments in self._named():
            moments.load_state(_under(f"{name}.", state))

    def _named(self) -> Iterator[tuple[str, Moments]]:
        yield from ((str(depth), moments) for depth, moments in self.moments.items())
        yield from ((f"wide.{depth}", moments) for depth, moments in self.wide.items())


def procrustes(cross: Tensor) -> Tensor:
    """The orthogonal Procrustes map (Schönemann 1966): argmax tr(Tᵀ XᵀY), rows or columns orthonormal.

    Args:
        cross: XᵀY [d_x, d_y] of paired rows.

    Returns:
        T [d_x, d_y] = L·Rᵀ of the SVD XᵀY = L Σ Rᵀ.
    """
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    return left @ right


def ridge_head(moments: Moments, x: Tensor, y: Tensor, ridges: Iterable[float] = RIDGES) -> AffineHead:
    """Ridge regression in standardised coordinates: W = C_yx (C_xx + λI)^-1 with correlation matrices C.

    Args:
        moments: of the pairs to fit on.
        x: [M, dim_x], validation inputs.
        y: [M, dim_y], validation outputs, by whose R² λ is chosen.
        ridges: candidates for λ.

    Returns:
        The head, in float32; the solve is in float64, by Cholesky.
    """
    scale_x, scale_y = (_deviation(square, moments.count) for square in (moments.xx, moments.yy))
    correlation = moments.xx / moments.count / torch.outer(scale_x, scale_x)
    cross = moments.xy / moments.count / torch.outer(scale_x, scale_y)
    head = AffineHead(len(scale_x), len(scale_y)).requires_grad_(False)
    for buffer, value in (
        (head.mean_in, moments.mean_x), (head.scale_in, scale_x), (head.mean_out, moments.mean_y),
        (head.scale_out, scale_y),
    ):  # fmt: skip
        buffer.copy_(value)
    best, weight = -math.inf, head.weight.clone()
    identity = torch.eye(len(scale_x), dtype=torch.float64)
    for ridge in ridges:
        factor, failed = torch.linalg.cholesky_ex(correlation + ridge * identity)
        if failed:
            continue
        head.weight.copy_(torch.cholesky_solve(cross, factor).T)
        score = r_squared(head(x), y)
        if score > best:
            best, weight = score, head.weight.clone()
    head.weight.copy_(weight)
    return head


def _deviation(squares: Tensor, count: int) -> Tensor:
    deviation = (squares.diagonal() / count).sqrt()
    # A dimension that never varies keeps scale 1, so that nothing is divided by 0.
    return torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))


@dataclass(frozen=True)
class GradientSchedule:
    """How `MLPFitter` steps.

    Attributes:
        rows: pairs that will be given in all; over them the rate falls to 0 by half a cosine.
        learning_rate: the peak.
        kl_weight: of the KL term of the deepest decode head, in nats, against the standardised squared error.
        kl_rows: most pairs of a batch on which the KL is taken.
    """

    rows: int
    learning_rate: float = 2e-3
    kl_weight: float = 1.0
    kl_rows: int = 256

    def rate(self, seen: int) -> float:
        """Learning rate after so many pairs."""
        done = min(1.0, seen / max(1, self.rows))
        return self.learning_rate * min(1.0, done / 0.03 + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))


class MLPFitter:
    """Heads by gradient steps (Adam), all depths and both ways at once, from affine heads.

    Args:
        heads: `(depth, way)` → the head to train in place, `way` being `encode` or `decode`; batches are
            moved to where it is.
        schedule: rates and weights.
        deepest: `(L_t, "decode")`, the head that is fitted in the target's metric as well.
        logits: last residual state [N, d_t] of the target → next-token logits [N, V].
        reads: target depths that an encode head reads.
    """

    def __init__(
        self,
        heads: Mapping[tuple[int, str], AffineHead],
        schedule: GradientSchedule,
        *,
        deepest: tuple[int, str],
        logits: Logits,
        reads: int = 1,
    ) -> None:
        self.reads = reads
        self.heads = nn.ModuleDict({f"{depth}_{way}": head for (depth, way), head in heads.items()})
        self.heads.requires_grad_(True)
        self.keys = tuple(heads)
        self.schedule, self.deepest, self.logits = schedule, deepest, logits
        self.seen = 0
        self.by_depth: dict[int, float] = {}
        self.optimizer = torch.optim.Adam(
            self.heads.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99)
        )
        self.best = dict.fromkeys(self.keys, math.inf)
        self.kept = {key: _copied(heads[key]) for key in self.keys}

    def update(self, batch: PairedBatch) -> float:
        """Take one step on a batch; returns the loss, averaged over the heads."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.seen)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([term for key in self.keys for term in self._losses(key, batch)]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0 * len(self.keys))
        self.optimizer.step()
        self.seen += len(batch)
        return float(loss.detach()) / len(self.keys)

    @torch.no_grad()
    def validate(self, batch: PairedBatch) -> dict[str, float]:
        """Keep each head as it is now if it is the best so far on pairs that are not trained on.

        Returns:
            Mean R² over the heads (`r_squared`), and `kl` in nats if the deepest decode head is among them.
            The R² of each depth's decode head is in `by_depth`.
        """
        squares, kl = [], []
        for key in self.keys:
            square, divergence = self._losses(key, batch)
            squares.append(float(square))
            if key[1] == "decode":
                self.by_depth[key[0]] = 1 - squares[-1]
            if key == self.deepest:
                kl.append(float(divergence) / (self.schedule.kl_weight or 1.0))
            total = float(square) + float(divergence)
            if total < self.best[key]:
                self.best[key] = total
                self.kept[key] = _copied(self._head(key))
        metrics = {"r_squared": 1 - sum(squares) / len(squares)}
        return metrics | ({"kl": kl[0]} if kl else {})

    def result(self) -> dict[tuple[int, str], AffineHead]:
        """The best heads so far, frozen, on the CPU."""
        for key in self.keys:
            self._head(key).load_state_dict(self.kept[key])
        self.heads.requires_grad_(False).cpu()
        return {key: self._head(key) for key in self.keys}

    def _head(self, key: tuple[int, str]) -> AffineHead:
        head = self.heads[f"{key[0]}_{key[1]}"]
        assert isinstance(head, AffineHead)
        return head

    def _losses(self, key: tuple[int, str], batch: PairedBatch) -> tuple[Tensor, Tensor]:
        """Mean squared error in standardised coordinates, and the weighted KL (0 for most heads)."""
        depth, way = key
        x, y = batch.source[depth], batch.target[depth]
        x, y = (batch.below(depth, self.reads), x) if way == "encode" else (x, y)
        head = self._head(key)
        x, y = x.to(head.weight.device), y.to(head.weight.device)
        standardised = head.standardised(head.standardise(x))
        square = (standardised - head.standardise_out(y)).square().mean()
        if key != self.deepest or not self.schedule.kl_weight:
            return square, square.new_zeros(())
        rows = slice(0, self._kl_rows(len(y)))
        predicted = head.mean_out + head.scale_out * standardised[rows]
        return square, self.schedule.kl_weight * next_token_kl(self.logits, y[rows], predicted)

    def _kl_rows(self, rows: int) -> int:
        return min(rows, self.schedule.kl_rows)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: heads, the best heads, the optimizer's moments."""
        state = {f"heads.{name}": value for name, value in self.heads.state_dict().items()}
        for (depth, way), kept in self.kept.items():
            state |= {f"kept.{depth}_{way}.{name}": value for name, value in kept.items()}
            state[f"best.{depth}_{way}"] = torch.tensor(self.best[depth, way], dtype=torch.float64)
        for index, entry in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{name}": value for name, value in entry.items()}
        return state | {"seen": torch.tensor(self.seen)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a kept state."""
        self.heads.load_state_dict(_under("heads.", state))
        for depth, way in self.keys:
            self.kept[depth, way] = _under(f"kept.{depth}_{way}.", state)
            self.best[depth, way] = float(state[f"best.{depth}_{way}"])
        optimizer = self.optimizer.state_dict()
        count = len(optimizer["param_groups"][0]["params"])
        moments = {index: _under(f"adam.{index}.", state) for index in range(count)}
        optimizer["state"] = {index: entry for index, entry in moments.items() if entry}
        self.optimizer.load_state_dict(optimizer)
        self.seen = int(state["seen"])


def widened(affine: AffineHead, width: int, generator: torch.Generator) -> MLPHead:
    """An MLP head that computes exactly what the affine head does, ready to be trained."""
    head = MLPHead(affine.in_features, affine.out_features, width)
    head.load_state_dict(affine.state_dict(), strict=False)
    with torch.no_grad():
        head.inner_weight.normal_(std=1 / math.sqrt(affine.in_features), generator=generator)
    return head


def next_token_kl(logits: Logits, truth: Tensor, predicted: Tensor) -> Tensor:
    """Mean KL(softmax logits(truth) ‖ softmax logits(predicted)) in nats, of last residuals [N, d_t]."""
    with torch.no_grad():
        wanted = logits(truth).float().log_softmax(-1)
    got = logits(predicted).float().log_softmax(-1)
    return nn.functional.kl_div(got, wanted, log_target=True, reduction="batchmean")


def kl_rows(vocabulary: int, wanted: int = 256) -> int:
    """How many positions' logits are taken at once: fewer where the vocabulary is giant."""
    return max(1, min(wanted, _KL_LOGITS // vocabulary))


def _copied(head: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
