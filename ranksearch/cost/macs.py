"""Multiply-accumulates (MACs; 1 MAC = 2 FLOPs), computed from layer shapes, and parameter counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.factorize.trace import dry_run, meta_example
from ranksearch.plan import LayerSpec


@dataclass(frozen=True)
class MacsCost:
    """Cost model that counts the multiply-accumulates of one example."""

    unit: str = "MACs"

    def network(self, model: nn.Module, input_shape: Sequence[int]) -> int:
        """Return the MACs of the dense network; see `count_macs`."""
        return count_macs(model, input_shape)

    def dense(self, spec: LayerSpec) -> int:
        """Return the MACs of the dense layer."""
        return spec.dense_macs

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        """Return the MACs of both factors."""
        return spec.macs_at(rank, scheme)


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Count the multiply-accumulates of one example; see `dry_run`.

    Args:
        model: network to count; left unchanged.
        input_shape: shape of one example, `[C, H, W]`.
    """

    def count(_: nn.Module, run: Callable[[], None]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return int(counter.get_total_flops()) // 2

    return dry_run(model, meta_example(model, (1, *input_shape)), count)


def count_params(model: nn.Module) -> int:
    """Count the model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
