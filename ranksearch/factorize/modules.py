"""The two factorized layers: each a factor into the latent size, and one out of it."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ranksearch.errors import PlanError
from ranksearch.factorize.factorized_layer import FactorizedLayer, fill
from ranksearch.factorize.factors import Factors
from ranksearch.factorize.shapes import KernelSize, describe, joined_settings, pair, settings_of, split_settings
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.plan import FIRST_AXES, LayerSpec, check_scheme


class FactorizedConv2d(FactorizedLayer, nn.Conv2d):  # type: ignore[override]  # properties for attributes
    """A convolution as two, with the latent channels between them; the scheme says how its kernel is split.

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
        **kwargs: what ``nn.Conv2d`` takes besides; ``bias`` goes to the second factor, ``groups``, ``device`` and
            ``dtype`` to both, the rest with its axis.

    Raises:
        PlanError: the latent size saves no MACs, or is no multiple of the groups, or such a convolution
            cannot have the scheme. Only a profile's `LayerSpec` knows the sizes of maps, and so whether a stride in the
            second factor leaves the first one too much to compute.
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
        nn.Module.__init__(self)  # not the dense layer's, which would make its weight
        kernel, groups = pair(kernel_size), kwargs.get("groups", 1)
        spec = LayerSpec("convolution", "conv2d", in_channels, out_channels, 1, kernel, groups)
        latent = spec.require_saving(spec.rank(latent_channels), scheme)
        bias = kwargs.pop("bias", True)
        first, second = split_settings({**kwargs, "kernel_size": kernel}, scheme)
        self.scheme = scheme
        self.module0 = nn.Conv2d(in_channels, latent, bias=False, **first)
        self.module1 = nn.Conv2d(latent, out_channels, bias=bias, **second)

    # What follows reads as the dense layer's: mypy sees attributes there, which properties stand for here.
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
        """Height and width of the kernel that the two factors share."""
        return pair(self._settings()["kernel_size"])

    @property
    def stride(self) -> tuple[int, int]:  # type: ignore[override]  # read-only here
        """Of both factors together."""
        return pair(self._settings()["stride"])

    @property
    def padding(self) -> str | tuple[int, int]:  # type: ignore[override]  # read-only here
        """Of both factors together."""
        padding: str | tuple[int, int] = self._settings()["padding"]
        return padding

    @property
    def dilation(self) -> tuple[int, int]:  # type: ignore[override]  # read-only here
        """Of both factors together."""
        return pair(self._settings()["dilation"])

    @property
    def groups(self) -> int:  # type: ignore[override]  # read-only here
        """Of either factor."""
        return self.module0.groups

    @property
    def padding_mode(self) -> str:  # type: ignore[override]  # read-only here
        """Of either factor."""
        return str(self._settings()["padding_mode"])

    @property
    def _reversed_padding_repeated_twice(self) -> Any:  # type: ignore[override]  # read-only here
        plain = nn.Conv2d(self.groups, self.groups, bias=False, device="meta", **self._settings())
        return plain._reversed_padding_repeated_twice

    transposed = False
    output_padding = (0, 0)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed here
        """`[out_channels, in_channels / groups, height, width]`: a copy, computed from both factors at every read."""
        groups, latent = self.groups, self.latent_size // self.groups
        first, second = self.module0.weight.detach(), self.module1.weight.detach()
        up = second.reshape(groups, -1, *second.shape[1:])
        down = first.reshape(groups, latent, *first.shape[1:])
        # Along each axis one of the two has all of the kernel, and the other a single number.
        return torch.einsum("gorab,grcij->gocaibj", up, down).flatten(5).flatten(3, 4).flatten(0, 1)

    def extra_repr(self) -> str:
        """The dense layer's sizes, the latent size and the scheme."""
        return f"{self.in_channels}, {self.out_channels}, latent_channels={self.latent_size}, scheme='{self.scheme}'"

    @property
    def latent_channels(self) -> int:
        """The same as `latent_size`."""
        return self.latent_size

    @staticmethod
    def max_allowed_latent_channels(
        in_channels: int, out_channels: int, kernel_size: KernelSize, scheme: str = "full"
    ) -> int:
        """The break-even rank: the largest latent size that saves MACs.

        Where strides make the map between the factors larger than the output, a profile's `LayerSpec`, which knows
        the sizes of the maps, has a lower one.
        """
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

        Args:
            module: is not touched.
            latent_channels: as for the class.
            input: a batch `[B, in_channels, H, W]` that the outputs should be kept for.
            statistics: of the module's calibration, instead of a batch. Without either, the weights themselves are
                kept as well as their number allows.
            scheme: as for the class.

        A bias is always there afterwards, for the mean that the lost directions had.

        Raises:
            PlanError: the latent size saves no MACs, the module is another, or cannot have the scheme.
            DataError: the input is empty, not finite or of another shape.
        """
        if type(module) is not nn.Conv2d:
            raise PlanError(
                f"a {type(module).__name__} is not a plain Conv2d: give one (set_rank lowers what is factorized)"
            )
        return cls._from(module, latent_channels, input, statistics, scheme)

    @classmethod
    def _of(cls, layer: Layer, latent_size: int, scheme: str) -> Self:
        assert isinstance(layer, nn.Conv2d)
        options = {**settings_of(layer), "device": "meta", "dtype": layer.weight.dtype}
        return cls(layer.in_channels, layer.out_channels, latent_channels=latent_size, scheme=scheme, **options)

    def _spec(self) -> LayerSpec:
        settings = self._settings()
        name, sizes = type(self).__name__, (self.in_channels, self.out_channels)
        return LayerSpec(name, "conv2d", *sizes, 1, settings["kernel_size"], settings["groups"])

    def _settings(self) -> dict[str, Any]:
        return joined_settings(self.module0, self.module1, self.scheme)

    def _product(self) -> nn.Conv2d:
        weight = self.weight
        dense = nn.Conv2d(self.in_channels, self.out_channels, bias=True, device="meta", **self._settings())
        self._give(dense, weight)
        return dense

    def _set_factors(self, factors: Factors) -> None:
        rank = len(factors.down)
        fill(self.module0, factors.down, None)
        fill(self.module1, factors.up, factors.bias)
        self.module0.out_channels = self.module1.in_channels = rank


class FactorizedLinear(FactorizedLayer, nn.Linear):  # type: ignore[misc]  # properties for attributes
    """A linear layer as two, through fewer features. Maps `[..., in_features]` to `[..., out_features]`.

    Args:
        in_features: input features.
        out_features: output features.
        bias: whether the second factor has a bias.
        latent_features: an int of at least 1, or a fraction in (0, 1) of ``min(in_features, out_features)``.
        **kwargs: ``device`` and ``dtype``.

    Raises:
        PlanError: the latent size saves no MACs.
    """

    if TYPE_CHECKING:
        module0: nn.Linear
        module1: nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        latent_features: float = 0.25,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)  # not the dense layer's, which would make its weight
        spec = LayerSpec("linear layer", "linear", in_features, out_features, 1)
        latent = spec.require_saving(spec.rank(latent_features))
        self.module0 = nn.Linear(in_features, latent, bias=False, **kwargs)
        self.module1 = nn.Linear(latent, out_features, bias=bias, **kwargs)

    @property
    def in_features(self) -> int:  # type: ignore[override]  # read-only here
        """Input features."""
        return self.module0.in_features

    @property
    def out_features(self) -> int:  # type: ignore[override]  # read-only here
        """Output features."""
        return self.module1.out_features

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed here
        """`[out_features, in_features]`: a copy, computed from both factors at every read."""
        return self.module1.weight.detach() @ self.module0.weight.detach()

    def extra_repr(self) -> str:
        """The dense layer's sizes and the latent size."""
        return f"{self.in_features}, {self.out_features}, latent_features={self.latent_size}"

    @property
    def latent_features(self) -> int:
        """The same as `latent_size`."""
        return self.latent_size

    @staticmethod
    def max_allowed_latent_features(in_features: int, out_features: int) -> int:
        """The break-even rank: the largest latent size that saves MACs."""
        return LayerSpec("linear layer", "linear", in_features, out_features, 1).break_even_rank()

    max_allowed_latent_channels = max_allowed_latent_features

    @classmethod
    def from_linear(
        cls,
        module: nn.Linear,
        latent_features: float = 0.25,
        input: Tensor | None = None,
        statistics: LayerStatistics | None = None,
    ) -> FactorizedLinear:
        """Factorize a trained linear layer; see `FactorizedConv2d.from_conv2d`.

        Raises:
            PlanError: the latent size saves no MACs, or the module is another.
        """
        if type(module) is not nn.Linear:
            raise PlanError(
                f"a {type(module).__name__} is not a plain Linear: give one (set_rank lowers what is factorized)"
            )
        return cls._from(module, latent_features, input, statistics, "full")

    @classmethod
    def _of(cls, layer: Layer, latent_size: int, scheme: str) -> Self:
        assert isinstance(layer, nn.Linear)
        options: dict[str, Any] = {"device": "meta", "dtype": layer.weight.dtype}
        return cls(layer.in_features, layer.out_features, latent_features=latent_size, **options)

    @staticmethod
    def _as_solution(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        # A solution multiplies rows from the right, a linear layer's weight from the left.
        return first.mT, second.mT

    def _spec(self) -> LayerSpec:
        return LayerSpec(type(self).__name__, "linear", self.in_features, self.out_features, 1)

    def _product(self) -> nn.Linear:
        dense = nn.Linear(self.in_features, self.out_features, device="meta")
        self._give(dense, self.weight)
        return dense

    def _set_factors(self, factors: Factors) -> None:
        rank = len(factors.down)
        fill(self.module0, factors.down, None)
        fill(self.module1, factors.up, factors.bias)
        self.module0.out_features = self.module1.in_features = rank


def factorizing_could_speedup(module: nn.Module, latent_size: float, scheme: str = "full") -> bool:
    """Whether a latent size saves MACs, on maps so large that borders do not count.

    Args:
        module: for a convolution or a linear layer, whether the size is at or below the break-even rank; for one that
            is factorized already, whether it is below the present latent size; for anything else, False.
        latent_size: as users write it.
        scheme: of a convolution; one that is factorized already keeps its own.

    Raises:
        PlanError: there is no such scheme, or the size is out of range.
    """
    check_scheme(scheme)
    if isinstance(module, FactorizedLayer):
        spec = module._spec()
    elif isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, LazyModuleMixin):
        spec = describe(module)
    else:
        return False
    if isinstance(latent_size, int) and latent_size % spec.groups:
        return False  # no such layer can be
    if isinstance(module, FactorizedLayer):
        return module.should_factorize(latent_size)
    if isinstance(module, nn.Conv2d):
        strides = [int(stride) for stride in module.stride]
        between = {
            name: prod(stride for stride, first in zip(strides, axes, strict=True) if not first)
            for name, axes in FIRST_AXES.items()
        }
        spec = replace(spec, latent_positions=between)
    return scheme in spec.schemes and spec.rank(latent_size) <= spec.break_even_rank(scheme)
