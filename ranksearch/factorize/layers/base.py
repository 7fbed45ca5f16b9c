"""Base class of the factorized layers: lowering the rank, finding and applying solutions."""

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ranksearch.errors import DataError, PlanError, first_line
from ranksearch.factorize.base import Factors
from ranksearch.factorize.calibration import collect_statistics
from ranksearch.factorize.decomposition import decompose
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.solution import LowRankSolution, truncation_error
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.plan import FIRST_AXES, LayerSpec, check_scheme


def statistics_of(layer: Layer, input: Tensor, scheme: str) -> LayerStatistics:
    """Return the statistics of a layer for one batch.

    Raises:
        DataError: the batch is empty, not finite, or of a dtype or shape that does not fit the layer.
    """
    convolution, size = isinstance(layer, nn.Conv2d), list(input.shape)
    expected = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    axis = 1 if convolution else -1
    if input.ndim < 2 or (convolution and input.ndim != 4) or input.shape[axis] != expected:
        shape = f"[B, {expected}, H, W]" if convolution else f"[..., {expected}]"
        raise DataError(f"input of shape {size} does not fit the layer: give {shape}")
    if input.dtype != layer.weight.dtype:
        raise DataError(f"input of {input.dtype} does not fit weights of {layer.weight.dtype}: convert one of them")
    if input.numel() == 0 or not bool(torch.isfinite(input).all()):
        raise DataError(f"input of shape {size} is empty or not finite: give a batch of finite numbers")
    try:
        return collect_statistics(layer, [input], [""], [scheme])[""]
    except RuntimeError as error:
        reason = first_line(error)
        raise DataError(f"input of shape {size} is too small for the layer ({reason}): give larger images") from None


class FactorizedLayer(nn.Module):
    """A layer replaced by two factors; subclasses define the factors and their product.

    A subclass also derives from the dense layer's class, without its parameters, so that the calling code may check the
    layer's type, read its settings and weight, and call it by keyword.
    """

    __jit_unused_properties__ = (
        "latent_size",
        "latent_channels",
        "latent_features",
        "in_channels",
        "in_features",
        "out_channels",
        "out_features",
        "weight",
        "bias",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "_reversed_padding_repeated_twice",
    )
    if TYPE_CHECKING:  # TorchScript would take class annotations for attributes
        module0: Layer
        module1: Layer
    scheme = "full"

    @property
    def latent_size(self) -> int:
        """Number of channels or features between the two factors."""
        first = self.module0
        return first.out_channels if isinstance(first, nn.Conv2d) else first.out_features

    @property
    def weight(self) -> Tensor:
        """Product of the two factors, of the dense layer's shape; recomputed at every read.

        It is not a parameter and has no gradient; the parameters are those of the factors.
        """
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """Bias of the second factor."""
        return self.module1.bias

    def forward(self, input: Tensor) -> Tensor:
        """Apply both factors."""
        out: Tensor = self.module1(self.module0(input))
        return out

    def reset_parameters(self) -> None:
        """Reinitialize both factors at random."""
        self.module0.reset_parameters()
        self.module1.reset_parameters()

    def _dense_like(self) -> Layer:
        """Return a dense layer with this layer's settings, on the meta device."""
        raise NotImplementedError

    def _product(self) -> Layer:
        """Return the dense layer that is the product of the two factors, with this layer's gradient flags and mode."""
        dense, bias = self._dense_like(), self.module1.bias
        dense.weight = nn.Parameter(self.weight, requires_grad=self.module0.weight.requires_grad)
        dense.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
        return dense.train(self.training)

    def _set_factors(self, factors: Factors) -> None:
        """Set the weights of both factors; a subclass also adopts their latent size."""
        fill(self.module0, factors.down, None)
        fill(self.module1, factors.up, factors.bias)

    def _spec(self) -> LayerSpec:
        """Return the shape of the dense layer that the two factors replace."""
        raise NotImplementedError

    def should_factorize(self, rank: float) -> bool:
        """Return whether a latent size is below the current one; any reduction saves MACs."""
        return self._spec().rank(rank) < self.latent_size

    @torch.no_grad()
    def solution_for_rank(self, input: Tensor, rank: float) -> LowRankSolution:
        """Return the best factors of a smaller latent size for a batch of inputs; the layer is left unchanged.

        Args:
            input: batch of inputs of the layer, `[B, in, ...]`.
            rank: latent size, as an int or a fraction.

        Returns:
            The solution. For a rank of at least ``min(in, out)``, a single matrix or kernel, with ``Wb`` None and rank
            -1; for a lower one that is at least the current latent size, the current factors, with rank -1.

        Raises:
            DataError: the input is empty, not finite, or of another shape or dtype.
        """
        spec = self._spec()
        size, bias = spec.rank(rank), None if self.bias is None else self.bias.detach()
        if size >= min(spec.in_size, spec.out_size):
            weight, _ = self._as_solution(self.weight.detach(), self.module1.weight.detach())
            return LowRankSolution(weight, None, bias, -1, 0.0)
        if size >= self.latent_size:
            factors = self._as_solution(self.module0.weight.detach(), self.module1.weight.detach())
            return LowRankSolution(*factors, bias, -1, 0.0)
        return self._solve(input, size)

    def _solve(self, input: Tensor, size: int) -> LowRankSolution:
        """Return the best two factors of a latent size below the current one."""
        dense = self._product()
        factors = decompose(dense, statistics_of(dense, input, self.scheme), scheme=self.scheme).factors(dense, size)
        twin = type(self)._like(dense, size, self.scheme)
        twin._set_factors(factors)
        nmse = truncation_error(dense(input), twin(input), axis=1 if isinstance(dense, nn.Conv2d) else -1)
        return LowRankSolution(*self._as_solution(factors.down, twin.module1.weight.detach()), factors.bias, size, nmse)

    def apply_solution(self, solution: LowRankSolution) -> None:
        """Replace the factors by those of a solution.

        Raises:
            DataError: the solution is not factorized (rank -1, or a single matrix or kernel), not finite, or does not
                fit the layer, which is then left unchanged.
        """
        if solution.rank == -1 or solution.Wb is None:
            raise DataError("a solution of rank -1 is not factorized: keep the layer as it is")
        down, up = self._as_solution(solution.Wa, solution.Wb)
        first, second = self.module0.weight, self.module1.weight
        fits = down.shape[1:] == first.shape[1:] and up.shape[2:] == second.shape[2:] and len(up) == len(second)
        if not fits or len(down) != up.shape[1] * self._spec().groups:
            shapes = f"{list(solution.Wa.shape)} and {list(solution.Wb.shape)}"
            raise DataError(f"a solution of shapes {shapes} does not fit the layer: find one for its own inputs")
        bias = solution.bias if solution.bias is not None else torch.zeros(len(up))
        if bias.shape != (len(up),) or not all(bool(torch.isfinite(part).all()) for part in (down, up, bias)):
            raise DataError(
                f"a solution with a bias {list(bias.shape)} does not fit {len(up)} outputs or is not finite: find one"
            )
        self._set_factors(Factors(down, up, bias))

    def set_rank(self, input: Tensor, rank: float) -> None:
        """Lower the latent size, with the best factors for a batch of inputs.

        A layer without a bias gets one, which holds the mean of the truncated directions.

        Raises:
            PlanError: the size is above the current one.
            DataError: the input is empty, not finite, or of another shape or dtype.
        """
        size = self._spec().rank(rank)
        if size > self.latent_size:
            raise PlanError(f"latent size {size} exceeds the current {self.latent_size}: give that or less")
        if size < self.latent_size:
            with torch.no_grad():
                self.apply_solution(self._solve(input, size))

    @staticmethod
    def _as_solution(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Convert between weights of a layer and of a solution; the conversion is its own inverse."""
        return first, second

    @classmethod
    def _like(cls, layer: Layer, latent_size: int, scheme: str) -> Self:
        """Return an empty twin with a layer's settings, device, dtype, memory format, mode and gradient flags."""
        # Created on the meta device, so that no random numbers are drawn for weights that are overwritten.
        twin = cls._of(layer, latent_size, scheme).to_empty(device=layer.weight.device)
        twin.requires_grad_(layer.weight.requires_grad).train(layer.training)
        if layer.bias is not None and twin.module1.bias is not None:
            twin.module1.bias.requires_grad_(layer.bias.requires_grad)
        if layer.weight.ndim == 4 and layer.weight.is_contiguous(memory_format=torch.channels_last):
            twin.to(memory_format=torch.channels_last)
        return twin

    @classmethod
    def _of(cls, layer: Layer, latent_size: int, scheme: str) -> Self:
        raise NotImplementedError

    @classmethod
    def _from(
        cls, layer: Layer, size: float, input: Tensor | None, statistics: LayerStatistics | None, scheme: str
    ) -> Self:
        rank = describe(layer).require_saving(describe(layer).rank(size), scheme)
        if input is not None:
            statistics = statistics_of(layer, input, scheme)
        twin = cls._like(layer, rank, scheme)
        twin._set_factors(decompose(layer, statistics, scheme=scheme).factors(layer, rank))
        return twin


@torch.no_grad()
def fill(factor: Layer, weight: Tensor, bias: Tensor | None) -> None:
    """Set a factor's weight and bias, replacing parameters if their shape changes.

    Args:
        factor: the factor; modified in place.
        weight: new weight, which may differ from the old one in its latent size only.
        bias: new bias, one element per output; None keeps the current one.
    """
    parameter = factor.weight
    new = weight.to(parameter)
    if parameter.is_meta or parameter.shape == new.shape:
        parameter.copy_(new)
    else:
        new = new.clone()
        if new.ndim == 4 and not parameter.is_contiguous():
            new = new.contiguous(memory_format=torch.channels_last)
        factor.weight = nn.Parameter(new, requires_grad=parameter.requires_grad)
    if bias is not None and factor.bias is not None:
        factor.bias.copy_(bias)
    elif bias is not None:
        factor.bias = nn.Parameter(bias.to(parameter).clone(), requires_grad=parameter.requires_grad)


def factorizing_could_speedup(module: nn.Module, latent_size: float, scheme: str = "full") -> bool:
    """Return whether a latent size saves MACs, on maps so large that borders are negligible.

    Args:
        module: a convolution or linear layer, whose break-even rank must be at least the size, or a factorized layer,
            whose latent size must be greater than the size. The result is False for any other module.
        latent_size: latent size, as an int or a fraction.
        scheme: scheme of the factorization; ignored for a factorized layer, which keeps its own.

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
        return False  # a latent size must be a multiple of the groups
    if isinstance(module, FactorizedLayer):
        return module.should_factorize(latent_size)
    if isinstance(module, nn.Conv2d):
        between = {
            name: prod(stride for stride, first in zip(module.stride, axes, strict=True) if not first)
            for name, axes in FIRST_AXES.items()
        }
        spec = replace(spec, latent_positions=between)
    return scheme in spec.schemes and spec.rank(latent_size) <= spec.break_even_rank(scheme)
