"""A layer decomposed: `decompose` by one scheme, `decompose_schemes` by all that it can have."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from torch import Tensor

from ranksearch.errors import DataError
from ranksearch.factorize.factors import Decomposition
from ranksearch.factorize.full import decompose_fully
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.split import SplitDecomposition, decompose_by_split
from ranksearch.factorize.statistics import Layer, LayerStatistics, groups_of
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
        DataError: statistics, sensitivity or weights are not finite, hold no rows, or do not fit.
    """
    check_scheme(scheme)
    if statistics is not None:
        _check_shape(layer, statistics)
    if scheme == "full":
        return decompose_fully(layer, statistics, sensitivity)
    return decompose_by_split(layer, scheme, statistics, sensitivity)


def _check_shape(layer: Layer, statistics: LayerStatistics) -> None:
    groups, out = groups_of(layer), len(layer.weight)
    size = out // groups if statistics.side == "output" else layer.weight[0].numel()
    if any(half.count for half in statistics.halves) and statistics.mean.shape != (groups, size):
        raise DataError(
            f"statistics of {list(statistics.mean.shape)} numbers do not fit the layer's {statistics.side}s, "
            f"{[groups, size]}: collect them from this layer"
        )


def decompose_schemes(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    schemes: Collection[str] = SCHEMES,
) -> dict[str, Decomposition]:
    """Take a layer apart by every scheme that it can have and that saves MACs.

    Args:
        layer: the dense layer.
        statistics: see `decompose`.
        sensitivity: see `decompose`.
        schemes: of these.
    """
    asked = {check_scheme(scheme) for scheme in schemes}
    found: dict[str, Decomposition] = {}
    sibling = None
    for scheme in describe(layer).schemes:
        if scheme in asked:
            decomposition = decompose(layer, statistics, sensitivity, scheme)
            if isinstance(decomposition, SplitDecomposition):
                sibling = sibling or decomposition.sibling or decomposition
                if decomposition is not sibling:
                    # Which looks for the ridge once, and holds the weights once.
                    decomposition = dataclasses.replace(
                        decomposition, sibling=sibling, weight=sibling.weight, inverse=sibling.inverse
                    )
            found[scheme] = decomposition
    return found
