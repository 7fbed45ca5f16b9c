"""Layer decomposition: `decompose` by one scheme, `decompose_schemes` by all applicable schemes."""

from collections.abc import Collection

from torch import Tensor

from ranksearch.errors import DataError
from ranksearch.factorize.base import Decomposition
from ranksearch.factorize.pca import decompose_pca
from ranksearch.factorize.separable import PatchProblem, SeparableDecomposition, decompose_separable
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.statistics import Layer, LayerStatistics, groups_of
from ranksearch.plan import SCHEMES, check_scheme


def decompose(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    scheme: str = "full",
    *,
    all_ranks: bool = False,
) -> Decomposition:
    """Decompose a layer by one scheme.

    Args:
        layer: the dense layer.
        statistics: calibration statistics of the layer; None assumes white inputs (the best weights-only choice).
        sensitivity: error weights, `[groups, out / groups, out / groups]`: second moment of the loss's output gradient.
        scheme: how the kernel is split.
        all_ranks: compute the errors of wide layers at all ranks and on both halves of the examples, which takes long.

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
    return decompose_separable(layer, describe(layer), scheme, statistics, sensitivity, all_ranks=all_ranks)


def decompose_schemes(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    schemes: Collection[str] = SCHEMES,
    *,
    all_ranks: bool = False,
) -> dict[str, Decomposition]:
    """Decompose a layer by every scheme that applies to it and saves MACs.

    Args:
        layer: the dense layer.
        statistics: see `decompose`.
        sensitivity: see `decompose`.
        schemes: schemes to consider.
        all_ranks: see `decompose`.
    """
    asked = {check_scheme(scheme) for scheme in schemes}
    decompositions: dict[str, Decomposition] = {}
    problem: PatchProblem | None = None
    for scheme in [scheme for scheme in describe(layer).schemes if scheme in asked]:
        if problem is not None and scheme in problem.limits:
            decompositions[scheme] = SeparableDecomposition(scheme, problem)
            continue
        decomposition = decompositions[scheme] = decompose(layer, statistics, sensitivity, scheme, all_ranks=all_ranks)
        if isinstance(decomposition, SeparableDecomposition):
            problem = decomposition.problem
    return decompositions
