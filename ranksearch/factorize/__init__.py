"""Low-rank factorization of trained layers: torch only, usable on its own."""

from ranksearch.factorize.calibration import collect_statistics, recalibrate_batchnorm
from ranksearch.factorize.modules import FactorizedConv2d, FactorizedLinear
from ranksearch.factorize.solver import Decomposition, Factors, OutputStatistics, decompose
from ranksearch.factorize.surgery import LayerProfile, factorize_model, factorized_like, profile_layers

__all__ = [
    "Decomposition",
    "FactorizedConv2d",
    "FactorizedLinear",
    "Factors",
    "LayerProfile",
    "OutputStatistics",
    "collect_statistics",
    "decompose",
    "factorize_model",
    "factorized_like",
    "profile_layers",
    "recalibrate_batchnorm",
]
