"""A layer taken apart: `decompose` by one scheme, `decompose_schemes` by all that it can have."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from ranksearch.factorize.factors import Decomposition
from ranksearch.factorize.full import decompose_fully
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.split import decompose_by_split
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.plan import SCHEMES, check_scheme


def decompose(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    scheme: str = "full",
) -> Decomposition:
    """Take a layer apart by one scheme.

    Args:
        layer: the dense layer.
        statistics: of its calibration; None takes the inputs as white, which makes the best weights-only choice.
        sensitivity: second moment of the loss's gradient at the layer's outputs, `[groups, out / groups,
            out / groups]`, which errors are then weighted by.
        scheme: how its kernel is split.

    Raises:
        PlanError: the layer cannot have the scheme.
        ValueError: statistics, sensitivity or weights are not finite, hold no rows, or do not fit.
    """
    if check_scheme(scheme) == "full":
        return decompose_fully(layer, statistics, sensitivity)
    return decompose_by_split(layer, scheme, statistics, sensitivity)


def decompose_schemes(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    schemes: Collection[str] = SCHEMES,
) -> dict[str, Decomposition]:
    """Take a layer apart by every scheme that it can have and that saves multiply-adds.

    Args:
        layer: the dense layer.
        statistics: see `decompose`.
        sensitivity: see `decompose`.
        schemes: of these.
    """
    return {
        scheme: decompose(layer, statistics, sensitivity, scheme)
        for scheme in describe(layer).schemes
        if scheme in schemes
    }
