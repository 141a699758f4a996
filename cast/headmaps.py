"""The maps that heads are made of.

A map works in *standardised coordinates*: each input and each output dimension has mean 0 and deviation 1,
because real residual streams carry a few dimensions a thousand times larger than the rest. In these
coordinates weights are of order 1, so they survive storage in 16 bits; means and scales are kept in 32.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cast.errors import RequestError


class AffineHead(nn.Module):
    """y = mean_out + scale_out · (W z + b) with z = (x - mean_in) / scale_in.

    Args:
        in_features: width of x.
        out_features: width of y.

    Attributes:
        mean_in, scale_in, mean_out, scale_out: float32 buffers of the standardised coordinates.
        weight: W, [out, in] float32, zero at first.
        bias: b, [out] float32, zero at first; after a ridge fit the means already hold the intercept.
    """

    mean_in: Tensor
    scale_in: Tensor
    mean_out: Tensor
    scale_out: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("mean_in", torch.zeros(in_features))
        self.register_buffer("scale_in", torch.ones(in_features))
        self.register_buffer("mean_out", torch.zeros(out_features))
        self.register_buffer("scale_out", torch.ones(out_features))
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def standardise(self, x: Tensor) -> Tensor:
        """Map x [..., in] of any float dtype to z [..., in] float32."""
        return (x.float() - self.mean_in) / self.scale_in

    def standardise_out(self, y: Tensor) -> Tensor:
        """Map y [..., out] of any float dtype to its standardised coordinates, float32."""
        return (y.float() - self.mean_out) / self.scale_out

    def standardised(self, z: Tensor) -> Tensor:
        """The map between standardised coordinates, [..., in] → [..., out]."""
        return nn.functional.linear(z, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] of any float dtype to y [..., out] float32."""
        return self.mean_out + self.scale_out * self.standardised(self.standardise(x))

    @classmethod
    def of(cls, matrix: Tensor) -> "AffineHead":
        """The frozen head x → matrix·x without intercept, of a matrix [out, in]."""
        head = cls(matrix.shape[1], matrix.shape[0]).requires_grad_(False)
        head.weight.copy_(matrix)
        return head

    def linear_map(self) -> Tensor:
        """The [out, in] matrix of the map in raw coordinates: how a change of x becomes a change of y."""
        return self.scale_out[:, None] * self.weight / self.scale_in


class MLPHead(AffineHead):
    """An affine head plus V·GELU(U z + c), in the same standardised coordinates.

    Args:
        in_features: width of x.
        out_features: width of y.
        width: hidden units.

    Attributes:
        inner_weight: U, [width, in].
        inner_bias: c, [width].
        outer_weight: V, [out, width], zero at first: an unfitted MLP head is exactly its affine part.
    """

    def __init__(self, in_features: int, out_features: int, width: int) -> None:
        super().__init__(in_features, out_features)
        self.width = width
        self.inner_weight = nn.Parameter(torch.randn(width, in_features) / math.sqrt(in_features))
        self.inner_bias = nn.Parameter(torch.zeros(width))
        self.outer_weight = nn.Parameter(torch.zeros(out_features, width))

    def standardised(self, z: Tensor) -> Tensor:
        """The map between standardised coordinates, [..., in] → [..., out]."""
        hidden = nn.functional.gelu(nn.functional.linear(z, self.inner_weight, self.inner_bias))
        return super().standardised(z) + nn.functional.linear(hidden, self.outer_weight)

    def linear_map(self) -> Tensor:
        """There is none.

        Raises:
            RequestError: always; a nonlinear head has no single matrix.
        """
        raise RequestError("A nonlinear head has no single matrix; fit affine heads for this.")


class HeadPair(NamedTuple):
    """The two heads at one target depth: `encode` R^{d_t} → R^{d_s} and `decode` R^{d_s} → R^{d_t}."""

    encode: AffineHead
    decode: AffineHead
