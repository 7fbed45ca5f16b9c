"""ranksearch finds the latent size of every layer of a trained network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Public name -> the module that has it, which is imported when the name is first asked for (PEP 562).
_HOMES = {
    "DataError": "ranksearch.errors",
    "LayerChoice": "ranksearch.plan",
    "LayerSpec": "ranksearch.plan",
    "PlanError": "ranksearch.errors",
    "RankPlan": "ranksearch.plan",
    "UserError": "ranksearch.errors",
    "apply": "ranksearch.applying",
    "collect_statistics": "ranksearch.factorize",
    "decompose": "ranksearch.factorize",
    "decompose_schemes": "ranksearch.factorize",
    "factorize_model": "ranksearch.factorize",
    "find_plan": "ranksearch.planning",
    "load": "ranksearch.loading",
    "profile_layers": "ranksearch.factorize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ranksearch' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
