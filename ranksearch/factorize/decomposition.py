"""Layer decomposition: `decompose` by one scheme, `decompose_schemes` by all applicable schemes."""

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from ranksearch.errors import DataError
from ranksearch.factorize.base import Decomposition
from ranksearch.factorize.pca import decompose_pca
from ranksearch.factorize.separable import SeparableDecomposition, decompose_separable
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.statistics import Layer, LayerStatistics, groups_of
from ranksearch.plan import SCHEMES, check_scheme


def decompose(
    layer: Layer, statistics: LayerStatistics | None = None, sensitivity: Tensor | None = None, scheme: str = "full"
) -> Decomposition:
    """Decompose a layer by one scheme.

    Args:
        layer: the dense layer.
        statistics: calibration statistics of the layer; None assumes white inputs (the best weights-only choice).
        sensitivity: error weights, `[groups, out / groups, out / groups]`: second moment of the loss's output gradient.
        scheme: how the kernel is split.

    Raises:
        PlanError: the scheme does not apply to the layer.
        DataError: statistics, sensitivity or weights are not finite, have no rows, or do not fit.
    """
    check_scheme(scheme)
    if statistics is not None and any(half.count for half in statistics.halves):
        groups = groups_of(layer)
        size = len(layer.weight) // groups if statistics.side == "output" else layer.weight[0].numel()
        if statistics.mean.shape != (groups, size):
            raise DataError(
                f"statistics of {list(statistics.mean.shape)} numbers do not fit the layer's {statistics.side}s, "
                f"{[groups, size]}: collect them from this layer"
            )
    if scheme == "full":
        return decompose_pca(layer, statistics, sensitivity)
    return decompose_separable(layer, describe(layer), scheme, statistics, sensitivity)


def decompose_schemes(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    schemes: Collection[str] = SCHEMES,
) -> dict[str, Decomposition]:
    """Decompose a layer by every scheme that applies to it and saves MACs.

    Args:
        layer: the dense layer.
        statistics: see `decompose`.
        sensitivity: see `decompose`.
        schemes: schemes to consider.
    """
    asked = {check_scheme(scheme) for scheme in schemes}
    decompositions: dict[str, Decomposition] = {}
    sibling = None
    for scheme in [scheme for scheme in describe(layer).schemes if scheme in asked]:
        decomposition = decompose(layer, statistics, sensitivity, scheme)
        if isinstance(decomposition, SeparableDecomposition):
            sibling = sibling or decomposition.sibling or decomposition
            if decomposition is not sibling:
                # Siblings share the search for the ridge, and the weights.
                decomposition = replace(decomposition, sibling=sibling, weight=sibling.weight, inverse=sibling.inverse)
        decompositions[scheme] = decomposition
    return decompositions
