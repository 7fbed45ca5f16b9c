"""What a network costs; multiply-accumulates, known from the layers' shapes alone, unless another model is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.factorize.dry_run import dry_run, meta_example
from ranksearch.plan import LayerSpec, RankPlan


@runtime_checkable
class CostModel(Protocol):
    """The cost of one layer and of a whole network. Pure: asking twice gives the same answer."""

    @property
    def unit(self) -> str:
        """What the numbers count."""
        ...

    def network(self, model: nn.Module, input_shape: Sequence[int]) -> int:
        """The dense network's cost for one example of shape ``input_shape``, `[C, H, W]`."""
        ...

    def dense(self, spec: LayerSpec) -> int:
        """A layer's cost as it stands."""
        ...

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        """A layer's cost once it is factorized.

        Args:
            spec: the layer.
            rank: 1 or more, at most the scheme's break-even rank.
            scheme: one that the layer can have.

        Returns:
            In ``unit``.
        """
        ...


@runtime_checkable
class MeasuredCost(Protocol):
    """A cost that must be measured on a network before any of it is known."""

    def measure(
        self, model: nn.Module, layers: Sequence[LayerSpec], input_shape: Sequence[int], device: torch.device
    ) -> CostModel:
        """Measure it, once.

        Args:
            model: the dense network, in eval mode; is not touched.
            layers: those that can be factorized.
            input_shape: of one example, `[C, H, W]`.
            device: to measure on.
        """
        ...


@dataclass(frozen=True)
class MacsCost:
    """Multiply-accumulates of one example."""

    unit: str = "MACs"

    def network(self, model: nn.Module, input_shape: Sequence[int]) -> int:
        """See `count_macs`."""
        return count_macs(model, input_shape)

    def dense(self, spec: LayerSpec) -> int:
        """Multiply-accumulates of the dense layer."""
        return spec.dense_macs

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        """Multiply-accumulates of both factors."""
        return spec.macs_at(rank, scheme)


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Measure the multiply-accumulates of one example, see `dry_run`.

    Args:
        model: is not touched.
        input_shape: of one example, `[C, H, W]`.
    """

    def count(_: nn.Module, run: Callable[[], None]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return int(counter.get_total_flops()) // 2

    return dry_run(model, meta_example(model, (1, *input_shape)), count)


def count_params(model: nn.Module) -> int:
    """Count the numbers in the model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Scale:
    """How people read costs of a unit.

    Attributes:
        name: of what is counted.
        divisor: that costs are divided by.
        suffix: that stands behind the quotient.
    """

    name: str
    divisor: float
    suffix: str

    def said(self, cost: float) -> str:
        """A cost as text."""
        return f"{cost / self.divisor:.{2 if self.suffix else 0}f} {self.suffix}".rstrip()


SCALES = {"MACs": Scale("MACs", 1e6, "M"), "ns": Scale("time", 1e6, "ms")}


def scale_of(unit: str) -> Scale:
    """How people read costs of a unit; as plain numbers, where it is one of their own."""
    return SCALES.get(unit, Scale(unit, 1.0, ""))


@dataclass(frozen=True)
class NetworkCost:
    """The cost of any plan of one network, without building it.

    Attributes:
        model: how a layer's cost is counted.
        dense: cost of the dense network.
        layers: name -> shape of every layer that can be factorized.
    """

    model: CostModel
    dense: int
    layers: dict[str, LayerSpec]

    @property
    def scale(self) -> Scale:
        """How people read the costs."""
        return scale_of(self.model.unit)

    def of(self, plan: RankPlan) -> int:
        """The whole network's cost under a plan."""
        saved = 0
        for name, choice in plan:
            spec = self.layers[name]
            saved += self.model.dense(spec) - self.model.at_rank(spec, choice.latent_size, choice.scheme)
        return self.dense - saved

    def break_even_rank(self, spec: LayerSpec, scheme: str) -> int:
        """The largest rank that saves weights, MACs and cost; 0 where none does."""
        dense, limit = self.model.dense(spec), spec.break_even_rank(scheme)
        ranks = range(limit, 0, -spec.groups)
        return next((rank for rank in ranks if self.model.at_rank(spec, rank, scheme) < dense), 0)
