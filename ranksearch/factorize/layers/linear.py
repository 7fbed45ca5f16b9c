"""A factorized linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from ranksearch.errors import PlanError
from ranksearch.factorize.base import Factors
from ranksearch.factorize.layers.base import FactorizedLayer
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.plan import LayerSpec


class FactorizedLinear(FactorizedLayer, nn.Linear):  # type: ignore[misc]  # properties for attributes
    """A linear layer factorized into two, which maps `[..., in_features]` to `[..., out_features]`.

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
        self, in_features: int, out_features: int, bias: bool = True, latent_features: float = 0.25, **kwargs: Any
    ) -> None:
        nn.Module.__init__(self)  # the dense layer's would create its weight
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
        """Product of both factors, `[out_features, in_features]`; recomputed at every read."""
        return self.module1.weight.detach() @ self.module0.weight.detach()

    def extra_repr(self) -> str:
        """Return the dense layer's features and the latent features."""
        return f"{self.in_features}, {self.out_features}, latent_features={self.latent_size}"

    @property
    def latent_features(self) -> int:
        """Alias of `latent_size`."""
        return self.latent_size

    @staticmethod
    def max_allowed_latent_features(in_features: int, out_features: int) -> int:
        """Return the break-even rank, the largest latent size that saves MACs."""
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
            PlanError: the latent size saves no MACs, or the module is not a plain Linear.
        """
        if (given := type(module)) is not nn.Linear:
            raise PlanError(f"a {given.__name__} is not a plain Linear: give one (set_rank lowers a latent size)")
        return cls._from(module, latent_features, input, statistics, "full")

    @classmethod
    def _of(cls, layer: Layer, latent_size: int, scheme: str) -> Self:
        assert isinstance(layer, nn.Linear)
        options: dict[str, Any] = {"device": "meta", "dtype": layer.weight.dtype}
        return cls(layer.in_features, layer.out_features, latent_features=latent_size, **options)

    @staticmethod
    def _as_solution(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        # A solution's factors are the transposed weights of the linear layers.
        return first.mT, second.mT

    def _spec(self) -> LayerSpec:
        return LayerSpec(type(self).__name__, "linear", self.in_features, self.out_features, 1)

    def _dense_like(self) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, device="meta")

    def _set_factors(self, factors: Factors) -> None:
        super()._set_factors(factors)
        self.module0.out_features = self.module1.in_features = len(factors.down)
