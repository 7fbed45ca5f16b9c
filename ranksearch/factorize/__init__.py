"""Low-rank factorization of trained layers: torch only, usable on its own."""

from ranksearch.factorize.base import Decomposition, Factors
from ranksearch.factorize.batchnorm import (
    NormStatistics,
    adapt_batchnorm,
    recalibrate_batchnorm,
    statistics_of_norms,
)
from ranksearch.factorize.calibration import collect_outputs, collect_statistics
from ranksearch.factorize.decomposition import decompose, decompose_schemes
from ranksearch.factorize.fisher import collect_sensitivities
from ranksearch.factorize.functional import factorize_conv2d, factorize_matrix
from ranksearch.factorize.layers.base import factorizing_could_speedup
from ranksearch.factorize.layers.conv import FactorizedConv2d
from ranksearch.factorize.layers.linear import FactorizedLinear
from ranksearch.factorize.patch_moments import PatchMoments
from ranksearch.factorize.sequential import (
    DenseActivations,
    affordable_images,
    factorize_sequentially,
    record_activations,
)
from ranksearch.factorize.solution import LowRankSolution
from ranksearch.factorize.source_model import clone, require_ready, untouched, unwrap
from ranksearch.factorize.statistics import LayerStatistics, Moments
from ranksearch.factorize.surgery import factorize_model, factorized_like, require_called
from ranksearch.factorize.trace import profile_layers
from ranksearch.plan import LayerProfile

__all__ = [
    "Decomposition",
    "DenseActivations",
    "FactorizedConv2d",
    "FactorizedLinear",
    "Factors",
    "LayerProfile",
    "LayerStatistics",
    "LowRankSolution",
    "Moments",
    "NormStatistics",
    "PatchMoments",
    "adapt_batchnorm",
    "affordable_images",
    "clone",
    "collect_outputs",
    "collect_sensitivities",
    "collect_statistics",
    "decompose",
    "decompose_schemes",
    "factorize_conv2d",
    "factorize_matrix",
    "factorize_model",
    "factorize_sequentially",
    "factorized_like",
    "factorizing_could_speedup",
    "profile_layers",
    "recalibrate_batchnorm",
    "record_activations",
    "require_called",
    "require_ready",
    "statistics_of_norms",
    "untouched",
    "unwrap",
]
