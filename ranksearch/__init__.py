"""ranksearch finds the latent size of every layer of a trained network."""

from ranksearch.applying import apply
from ranksearch.errors import DataError, PlanError, UserError
from ranksearch.factorize import (
    collect_statistics,
    decompose,
    decompose_schemes,
    factorize_model,
    profile_layers,
)
from ranksearch.loading import load
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan
from ranksearch.planning import find_plan

__all__ = [
    "DataError",
    "LayerChoice",
    "LayerSpec",
    "PlanError",
    "RankPlan",
    "UserError",
    "apply",
    "collect_statistics",
    "decompose",
    "decompose_schemes",
    "factorize_model",
    "find_plan",
    "load",
    "profile_layers",
]
__version__ = "0.1.0"
