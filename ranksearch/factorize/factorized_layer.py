"""What both factorized layers do alike: ranks that are lowered, solutions found and applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from ranksearch.errors import DataError, PlanError, first_line
from ranksearch.factorize.calibration import collect_statistics
from ranksearch.factorize.decomposition import decompose
from ranksearch.factorize.factors import Factors
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.solver import LowRankSolution, truncation_error
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.plan import LayerSpec


def statistics_of(layer: Layer, input: Tensor, scheme: str) -> LayerStatistics:
    """The statistics of one layer for one batch.

    Raises:
        DataError: the batch is empty, not finite, or of a shape that cannot go through the layer.
    """
    check_input(input, layer)
    try:
        return collect_statistics(layer, [input], [""], [scheme])[""]
    except RuntimeError as error:
        reason = first_line(error)
        raise DataError(
            f"input of shape {list(input.shape)} cannot go through ({reason}): give larger images"
        ) from None


def check_input(input: Tensor, layer: Layer) -> None:
    """See that a batch fits a layer.

    Raises:
        DataError: it is empty, not finite, or of another shape.
    """
    convolution = isinstance(layer, nn.Conv2d)
    expected = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    axis = 1 if convolution else -1
    if input.ndim < 2 or (convolution and input.ndim != 4) or input.shape[axis] != expected:
        shape = f"[B, {expected}, H, W]" if convolution else f"[..., {expected}]"
        raise DataError(f"input of shape {list(input.shape)} does not fit the layer: give {shape}")
    if input.dtype != layer.weight.dtype:
        raise DataError(f"input of {input.dtype} does not fit weights of {layer.weight.dtype}: convert one of them")
    if input.numel() == 0 or not bool(torch.isfinite(input).all()):
        raise DataError(f"input of shape {list(input.shape)} is empty or not finite: give a batch of finite numbers")


class FactorizedLayer(nn.Module):
    """Two factors in the place of one layer; a subclass says how they and their product look.

    Such a subclass is one of the dense layer's class as well, without its parameters: code around a layer may ask for
    its type, read its settings and its weight, and call it by keyword, as it did before.
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
    if TYPE_CHECKING:  # for TorchScript would read annotations of a class as its own
        module0: Layer
        module1: Layer
    scheme = "full"

    @property
    def latent_size(self) -> int:
        """Numbers between the two factors."""
        first = self.module0
        return first.out_channels if isinstance(first, nn.Conv2d) else first.out_features

    @property
    def weight(self) -> Tensor:
        """The weight that the two factors make together, of the dense layer's shape: a copy, computed at every read.

        It is no parameter and has no gradient; the parameters are those of the factors.
        """
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """The second factor's."""
        return self.module1.bias

    def forward(self, input: Tensor) -> Tensor:
        """Apply both factors."""
        out: Tensor = self.module1(self.module0(input))
        return out

    def reset_parameters(self) -> None:
        """Draw both factors anew."""
        self.module0.reset_parameters()
        self.module1.reset_parameters()

    def _product(self) -> Layer:
        """The layer that the two factors make together."""
        raise NotImplementedError

    def _give(self, dense: Layer, weight: Tensor) -> None:
        """Give a layer the product's weight, the bias and the mode."""
        dense.weight = nn.Parameter(weight, requires_grad=self.module0.weight.requires_grad)
        bias = self.module1.bias
        dense.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
        dense.train(self.training)

    def _set_factors(self, factors: Factors) -> None:
        """Take the factors over, with the latent size that they have."""
        raise NotImplementedError

    def _spec(self) -> LayerSpec:
        """The shape of the layer that the two factors stand for."""
        raise NotImplementedError

    def should_factorize(self, rank: float) -> bool:
        """Whether a latent size is below the present one: any reduction saves MACs."""
        return self._spec().rank(rank) < self.latent_size

    @torch.no_grad()
    def solution_for_rank(self, input: Tensor, rank: float) -> LowRankSolution:
        """Find the best factors of a smaller latent size for a batch of inputs; nothing is changed.

        Args:
            input: `[B, in, ...]`, as the layer takes it.
            rank: the latent size.

        Returns:
            The solution. For a rank of the inputs or outputs and more, one matrix or kernel, with ``Wb`` None and rank
            -1; for a lower one that is at least the present latent size, the present factors, with rank -1.

        Raises:
            DataError: the input is empty, not finite, or of another shape.
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
        """The best two factors of a latent size below the present one."""
        dense = self._product()
        statistics = statistics_of(dense, input, self.scheme)
        factors = decompose(dense, statistics, scheme=self.scheme).factors(dense, size)
        twin = type(self)._like(dense, size, self.scheme)
        twin._set_factors(factors)
        nmse = truncation_error(dense(input), twin(input), axis=1 if isinstance(dense, nn.Conv2d) else -1)
        return LowRankSolution(*self._as_solution(factors.down, twin.module1.weight.detach()), factors.bias, size, nmse)

    def apply_solution(self, solution: LowRankSolution) -> None:
        """Take a solution's factors over.

        Raises:
            DataError: the solution says that nothing was factorized (rank -1, or one matrix or kernel), or was made for
                another layer; the layer is then unchanged.
        """
        if solution.rank == -1 or solution.Wb is None:
            raise DataError("a solution of rank -1 is not factorized: keep the layer as it is")
        down, up = self._as_solution(solution.Wa, solution.Wb)
        same_kernels = all(
            part.shape[2:] == factor.weight.shape[2:] for part, factor in ((down, self.module0), (up, self.module1))
        )
        fits = same_kernels and down.shape[1] == self.module0.weight.shape[1] and len(up) == len(self.module1.weight)
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
        """Lower the latent size to the best smaller factors for a batch of inputs.

        A layer without a bias gets one, for the mean that the lost directions had.

        Raises:
            PlanError: the size is above the present one.
            DataError: the input is empty, not finite or of another shape.
        """
        size = self._spec().rank(rank)
        if size > self.latent_size:
            raise PlanError(f"latent size {size} exceeds the present {self.latent_size}: give that or less")
        if size < self.latent_size:
            with torch.no_grad():
                self.apply_solution(self._solve(input, size))

    @staticmethod
    def _as_solution(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Between a layer's weights and a solution's; the way there is the way back."""
        return first, second

    @classmethod
    def _like(cls, layer: Layer, latent_size: int, scheme: str) -> Self:
        """An empty one for a layer: its settings, device, dtype, memory format, mode and gradient flag."""
        # Made on the meta device: no random numbers are drawn for weights that are set from elsewhere.
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


def fill(factor: Layer, weight: Tensor, bias: Tensor | None) -> None:
    """Give a factor its weights, and the sizes that go with them.

    Args:
        factor: is changed in place.
        weight: of its shape but for the latent size, which it may change.
        bias: of as many numbers as outputs, or None.
    """
    parameter = factor.weight
    new = weight.to(parameter)
    if parameter.is_meta or parameter.shape == new.shape:
        with torch.no_grad():
            parameter.copy_(new)
    else:
        new = new.clone()
        if new.ndim == 4 and not parameter.is_contiguous():
            new = new.contiguous(memory_format=torch.channels_last)
        factor.weight = nn.Parameter(new, requires_grad=parameter.requires_grad)
    if bias is None:
        return
    if factor.bias is None:
        factor.bias = nn.Parameter(bias.to(parameter).clone(), requires_grad=parameter.requires_grad)
    else:
        with torch.no_grad():
            factor.bias.copy_(bias)
