"""Multiply-accumulates (MACs; 1 MAC = 2 FLOPs), computed from layer shapes, and parameter counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.batches import Call, read_batch
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


def count_macs(model: nn.Module, example: Any, *, call: Call | None = None) -> int:
    """Count the multiply-accumulates of one example; see `dry_run`.

    Args:
        model: network to count; left unchanged.
        example: batch of examples, see `read_batch`, over which they are averaged; or the shape of one, `[C, H, W]`.
        call: runs the model on the batch.
    """
    batch = meta_example(model, (1, *example)) if _is_shape(example) else example
    inputs = read_batch(model, batch, call)

    def count(_: nn.Module, run: Callable[[], None]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return int(counter.get_total_flops()) // 2

    return dry_run(model, inputs, count) // max(1, len(inputs))


def _is_shape(example: Any) -> bool:
    return isinstance(example, Sequence) and all(isinstance(size, int) for size in example)


def count_params(model: nn.Module) -> int:
    """Count the model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
