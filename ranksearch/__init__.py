"""ranksearch finds the latent size of every layer of a trained network."""

from typing import TYPE_CHECKING, Any

from ranksearch import _deprecated
from ranksearch._lazy import lazy_names

if TYPE_CHECKING:
    from ranksearch.allocation.api import apply_plan, compress, find_plan
    from ranksearch.cost.macs import count_macs
    from ranksearch.errors import DataError, PlanError, UserError
    from ranksearch.factorize.batchnorm import recalibrate_batchnorm
    from ranksearch.factorize.calibration import collect_statistics
    from ranksearch.factorize.decomposition import decompose, decompose_schemes
    from ranksearch.factorize.surgery import factorize_model
    from ranksearch.factorize.trace import profile_layers
    from ranksearch.formats.export import export
    from ranksearch.formats.pretrained import load_pretrained, save_pretrained
    from ranksearch.formats.serialization import load
    from ranksearch.plan import LayerChoice, LayerSpec, RankPlan

__all__ = [
    "DataError",
    "LayerChoice",
    "LayerSpec",
    "PlanError",
    "RankPlan",
    "UserError",
    "apply_plan",
    "collect_statistics",
    "compress",
    "count_macs",
    "decompose",
    "decompose_schemes",
    "export",
    "factorize_model",
    "find_plan",
    "load",
    "load_pretrained",
    "profile_layers",
    "recalibrate_batchnorm",
    "save_pretrained",
]
__version__ = "0.1.0"

_HOMES = {
    "errors": ("DataError", "PlanError", "UserError"),
    "plan": ("LayerChoice", "LayerSpec", "RankPlan"),
    "allocation.api": ("apply_plan", "compress", "find_plan"),
    "factorize": ("collect_statistics", "decompose", "decompose_schemes", "factorize_model", "profile_layers"),
    "cost.macs": ("count_macs",),
    "factorize.batchnorm": ("recalibrate_batchnorm",),
    "formats.export": ("export",),
    "formats.pretrained": ("load_pretrained", "save_pretrained"),
    "formats.serialization": ("load",),
}
_get, __dir__ = lazy_names(__name__, {name: f"ranksearch.{home}" for home, names in _HOMES.items() for name in names})
_deprecated.install()


def __getattr__(name: str) -> Any:
    if name == "apply":
        _deprecated.warn("ranksearch.apply", "ranksearch.apply_plan")
        name = "apply_plan"
    return _get(name)
