"""What a plan costs: multiply-accumulates, measured latency, or a custom cost model."""

from typing import TYPE_CHECKING

from ranksearch._lazy import lazy_names

if TYPE_CHECKING:
    from ranksearch.cost.base import CostModel, MeasuredCost, NetworkCost
    from ranksearch.cost.latency import Latency
    from ranksearch.cost.macs import MacsCost, count_macs, count_params

__all__ = ["CostModel", "Latency", "MacsCost", "MeasuredCost", "NetworkCost", "count_macs", "count_params"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CostModel": "ranksearch.cost.base",
        "Latency": "ranksearch.cost.latency",
        "MacsCost": "ranksearch.cost.macs",
        "MeasuredCost": "ranksearch.cost.base",
        "NetworkCost": "ranksearch.cost.base",
        "count_macs": "ranksearch.cost.macs",
        "count_params": "ranksearch.cost.macs",
    },
)
