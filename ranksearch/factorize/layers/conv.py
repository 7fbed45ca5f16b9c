"""A factorized convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ranksearch.errors import PlanError
from ranksearch.factorize.base import Factors
from ranksearch.factorize.layers.base import FactorizedLayer
from ranksearch.factorize.shapes import KernelSize, convolution, joined_settings, pair, settings_of, split_settings
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.plan import LayerSpec


class FactorizedConv2d(FactorizedLayer, nn.Conv2d):  # type: ignore[override]  # properties for attributes
    """A convolution factorized into two, with latent channels in between; the scheme defines how the kernel is split.

    ========== ============================ ============================
    scheme     first factor                 second factor
    ========== ============================ ============================
    full       the whole kernel and strides 1x1
    vertical   its rows, their stride       its columns, their stride
    horizontal its columns, their stride    its rows, their stride
    pointwise  1x1                          the whole kernel and strides
    ========== ============================ ============================

    Maps `[B, in_channels, H, W]` to `[B, out_channels, H', W']`, as ``nn.Conv2d`` of the same settings does.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: one int for both axes, or height and width.
        latent_channels: an int of at least 1, or a fraction in (0, 1) of ``min(in_channels, out_channels)``.
        scheme: ``"full"``, ``"vertical"``, ``"horizontal"`` or ``"pointwise"``.
        **kwargs: other arguments of ``nn.Conv2d``; ``bias`` applies to the second factor, ``groups``, ``device`` and
            ``dtype`` to both, the others to the factor that has the axis.

    Raises:
        PlanError: the latent size saves no MACs or is not a multiple of the groups, or the scheme does not apply. A
            stride in the second factor, which enlarges the latent map, is only considered in a profile's `LayerSpec`.
    """

    if TYPE_CHECKING:
        module0: nn.Conv2d
        module1: nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: KernelSize,
        latent_channels: float = 0.25,
        scheme: str = "full",
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)  # the dense layer's would create its weight
        kernel, groups = pair(kernel_size), kwargs.get("groups", 1)
        spec = LayerSpec("convolution", "conv2d", in_channels, out_channels, 1, kernel, groups)
        latent = spec.require_saving(spec.rank(latent_channels), scheme)
        bias = kwargs.pop("bias", True)
        first, second = split_settings({**kwargs, "kernel_size": kernel}, scheme)
        self.scheme = scheme
        self.module0 = convolution(in_channels, latent, bias=False, **first)
        self.module1 = convolution(latent, out_channels, bias=bias, **second)

    # The interface of nn.Conv2d, with properties in place of the attributes that it declares.
    @property
    def in_channels(self) -> int:  # type: ignore[override]  # read-only here
        """Input channels."""
        return self.module0.in_channels

    @property
    def out_channels(self) -> int:  # type: ignore[override]  # read-only here
        """Output channels."""
        return self.module1.out_channels

    @property
    def kernel_size(self) -> tuple[int, int]:  # type: ignore[override]  # read-only here
        """Height and width of the kernel that is split between the factors."""
        return pair(self._settings()["kernel_size"])

    @property
    def stride(self) -> tuple[int, int]:  # type: ignore[override]  # read-only here
        """Stride of both factors combined."""
        return pair(self._settings()["stride"])

    @property
    def padding(self) -> str | tuple[int, int]:  # type: ignore[override]  # read-only here
        """Padding of both factors combined."""
        padding: str | tuple[int, int] = self._settings()["padding"]
        return padding

    @property
    def dilation(self) -> tuple[int, int]:  # type: ignore[override]  # read-only here
        """Dilation of both factors combined."""
        return pair(self._settings()["dilation"])

    @property
    def groups(self) -> int:  # type: ignore[override]  # read-only here
        """Groups of each factor."""
        return self.module0.groups

    @property
    def padding_mode(self) -> str:  # type: ignore[override]  # read-only here
        """Padding mode of the convolution."""
        return str(self._settings()["padding_mode"])

    @property
    def _reversed_padding_repeated_twice(self) -> Any:  # type: ignore[override]  # read-only here
        return self._dense_like()._reversed_padding_repeated_twice

    transposed = False
    output_padding = (0, 0)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed here
        """Product of both factors, `[out_channels, in_channels / groups, height, width]`; recomputed at every read."""
        groups, latent = self.groups, self.latent_size // self.groups
        first, second = self.module0.weight.detach(), self.module1.weight.detach()
        up = second.reshape(groups, -1, *second.shape[1:])
        down = first.reshape(groups, latent, *first.shape[1:])
        # Along each axis, one factor has the whole kernel and the other has size 1.
        return torch.einsum("gorab,grcij->gocaibj", up, down).flatten(5).flatten(3, 4).flatten(0, 1)

    def extra_repr(self) -> str:
        """Return the dense layer's channels, the latent channels and the scheme."""
        return f"{self.in_channels}, {self.out_channels}, latent_channels={self.latent_size}, scheme='{self.scheme}'"

    @property
    def latent_channels(self) -> int:
        """Alias of `latent_size`."""
        return self.latent_size

    @staticmethod
    def max_allowed_latent_channels(
        in_channels: int, out_channels: int, kernel_size: KernelSize, scheme: str = "full"
    ) -> int:
        """Return the break-even rank, the largest latent size that saves MACs; strides may lower it in a profile."""
        spec = LayerSpec("convolution", "conv2d", in_channels, out_channels, 1, pair(kernel_size))
        return spec.break_even_rank(spec.require_scheme(scheme))

    max_allowed_latent_features = max_allowed_latent_channels

    @classmethod
    def from_conv2d(
        cls,
        module: nn.Conv2d,
        latent_channels: float = 0.25,
        input: Tensor | None = None,
        statistics: LayerStatistics | None = None,
        scheme: str = "full",
    ) -> FactorizedConv2d:
        """Factorize a trained convolution.

        The result always has a bias, which holds the mean of the truncated directions.

        Args:
            module: the trained convolution; left unchanged.
            latent_channels: latent size, as for the class.
            input: batch `[B, in_channels, H, W]` on which the reconstruction error of the outputs is minimized.
            statistics: calibration statistics of the module, in place of a batch. If both are None, the weights
                themselves are approximated, as for white inputs.
            scheme: scheme of the factorization, as for the class.

        Raises:
            PlanError: the latent size saves no MACs, the module is not a plain Conv2d, or the scheme does not apply.
            DataError: input, statistics or weights are empty, not finite, or do not fit the module.
        """
        if (given := type(module)) is not nn.Conv2d:
            raise PlanError(f"a {given.__name__} is not a plain Conv2d: give one (set_rank lowers a latent size)")
        return cls._from(module, latent_channels, input, statistics, scheme)

    @classmethod
    def _of(cls, layer: Layer, latent_size: int, scheme: str) -> Self:
        assert isinstance(layer, nn.Conv2d)
        options = {**settings_of(layer), "device": "meta", "dtype": layer.weight.dtype}
        return cls(layer.in_channels, layer.out_channels, latent_channels=latent_size, scheme=scheme, **options)

    def _spec(self) -> LayerSpec:
        sizes = self.in_channels, self.out_channels
        return LayerSpec(type(self).__name__, "conv2d", *sizes, 1, self.kernel_size, self.groups)

    def _settings(self) -> dict[str, Any]:
        return joined_settings(self.module0, self.module1, self.scheme)

    def _dense_like(self) -> nn.Conv2d:
        return convolution(self.in_channels, self.out_channels, device="meta", **self._settings())

    def _set_factors(self, factors: Factors) -> None:
        super()._set_factors(factors)
        self.module0.out_channels = self.module1.in_channels = len(factors.down)
