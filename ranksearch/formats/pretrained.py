"""Compressed Hugging Face models on disk: their configuration, the plan, and the weights of the factors.

The weights' file has a name that ``from_pretrained`` does not know, so that it fails instead of drawing new weights for
the layers that are factorized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ranksearch.errors import PlanError, UserError
from ranksearch.factorize.layers.base import FactorizedLayer
from ranksearch.factorize.surgery import factorized_like
from ranksearch.files import read_json, write_json
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.tensor_files import read_weights, write_weights

PLAN, WEIGHTS = "ranksearch_plan.json", "ranksearch.safetensors"
FORMAT = "ranksearch.pretrained/1"


def plan_of(network: nn.Module) -> RankPlan:
    """Return the plan of a factorized network."""
    return RankPlan(
        {
            name: LayerChoice(module.latent_size, module.scheme)
            for name, module in network.named_modules()
            if isinstance(module, FactorizedLayer)
        }
    )


def save_pretrained(network: nn.Module, folder: str | Path) -> Path:
    """Save a compressed Hugging Face model; `load_pretrained` loads it.

    Args:
        network: the compressed model, with the ``config`` of transformers.
        folder: folder to write to; created if needed.

    Returns:
        The folder.

    Raises:
        UserError: the network is no Hugging Face model.
    """
    config: Any = getattr(network, "config", None)
    if not hasattr(config, "save_pretrained"):
        kind = type(network).__name__
        raise UserError(f"{kind} has no configuration of transformers: save its state_dict(), or use ranksearch.export")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).unlink(missing_ok=True)
    architecture = next(kind.__name__ for kind in type(network).__mro__ if kind.__module__.startswith("transformers"))
    config.save_pretrained(folder)
    write_weights(folder / WEIGHTS, network)
    write_json(folder / PLAN, {"format": FORMAT, "architecture": architecture, "layers": plan_of(network).to_json()})
    return folder


def load_pretrained(folder: str | Path) -> nn.Module:
    """Load a model that `save_pretrained` saved.

    Args:
        folder: the folder.

    Returns:
        The compressed model, on the CPU, in eval mode.

    Raises:
        PlanError: a file is missing or damaged.
        UserError: transformers is missing.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("a Hugging Face model needs transformers: pip install 'ranksearch[transformers]'") from None
    folder = Path(folder)
    if not (folder / PLAN).is_file():
        raise PlanError(f"{folder} has no {PLAN}: name a folder that ranksearch.save_pretrained wrote")
    entries = read_json(folder / PLAN)
    if entries.get("format") != FORMAT:
        raise PlanError(f"{folder / PLAN} has the format {entries.get('format')!r}, not {FORMAT!r}: save it again")
    name, version = str(entries.get("architecture")), transformers.__version__
    architecture: Any = getattr(transformers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
        raise PlanError(f"transformers {version} has no model '{name}': install the version that it was saved with")
    made: Any = architecture
    dense = made(made.config_class.from_pretrained(folder))
    network = factorized_like(dense, RankPlan.from_json(entries["layers"]))
    read_weights(folder / WEIGHTS, network)
    return network.eval()
