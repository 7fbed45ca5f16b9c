"""Cost models of dense and factorized layers, and the cost of any plan of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ranksearch.plan import LayerSpec, RankPlan
from ranksearch.results.units import Scale, scale_of

if TYPE_CHECKING:
    import torch
    from torch import nn


@runtime_checkable
class CostModel(Protocol):
    """A deterministic cost of single layers and of the whole dense network."""

    @property
    def unit(self) -> str:
        """Unit of the costs."""

    def network(self, model: nn.Module, input_shape: Sequence[int]) -> int:
        """Return the dense network's cost for one example of shape ``input_shape``, `[C, H, W]`."""

    def dense(self, spec: LayerSpec) -> int:
        """Return the cost of a dense layer."""

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        """Return the cost of a factorized layer, in ``unit``.

        Args:
            spec: shape of the layer.
            rank: rank of the factorization, from 1 to the scheme's break-even rank.
            scheme: scheme of the factorization, one of those of the layer.
        """


@runtime_checkable
class MeasuredCost(Protocol):
    """A cost that requires measurements of the network first."""

    def measure(
        self, model: nn.Module, layers: Sequence[LayerSpec], input_shape: Sequence[int], device: torch.device
    ) -> CostModel:
        """Measure the network and return its cost model.

        Args:
            model: the dense network, in eval mode; left unchanged.
            layers: shapes of the layers that can be factorized.
            input_shape: shape of one example, `[C, H, W]`.
            device: device to measure on.
        """


@dataclass(frozen=True)
class NetworkCost:
    """The cost of any plan of one network, without building it.

    Attributes:
        model: cost model of the layers.
        dense: cost of the dense network.
        layers: name -> shape of every layer that can be factorized.
    """

    model: CostModel
    dense: int
    layers: dict[str, LayerSpec]

    @property
    def scale(self) -> Scale:
        """Display name, divisor and suffix for costs of this unit."""
        return scale_of(self.model.unit)

    def total(self, plan: RankPlan) -> int:
        """Return the cost of the whole network under a plan."""
        saved = 0
        for name, choice in plan:
            spec = self.layers[name]
            saved += self.model.dense(spec) - self.model.at_rank(spec, choice.latent_size, choice.scheme)
        return self.dense - saved

    def break_even_rank(self, spec: LayerSpec, scheme: str) -> int:
        """Return the largest rank that saves weights, MACs and cost; 0 if none does."""
        dense, limit = self.model.dense(spec), spec.break_even_rank(scheme)
        ranks = range(limit, 0, -spec.groups)
        return next((rank for rank in ranks if self.model.at_rank(spec, rank, scheme) < dense), 0)
