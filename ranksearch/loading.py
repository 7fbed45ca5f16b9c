"""A factorized network on disk: `plan.json` says how to build it, `model.safetensors` holds its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save
from torch import nn

from ranksearch.errors import PlanError
from ranksearch.factorize import factorized_like
from ranksearch.files import write_bytes, write_json
from ranksearch.plan import RankPlan

PLAN_FORMAT = "ranksearch.plan/1"
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"


def save_network(
    folder: Path, network: nn.Module, plan: RankPlan, recipe: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Write a factorized network.

    An old plan goes first and the new one comes last, so that a plan on disk has its weights beside it.

    Args:
        folder: is made as needed.
        network: the factorized network.
        plan: what was factorized.
        recipe: how to build the dense network: ``_target_`` and its arguments.
        facts: further entries of the plan file, plain JSON values.
    """
    # One entry per name: a tensor with two names is written twice, and tied again when the network is built.
    state = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in network.state_dict().items()}
    (folder / PLAN_FILE).unlink(missing_ok=True)
    write_bytes(folder / WEIGHTS_FILE, save(state))
    entries = {"format": PLAN_FORMAT, "model": dict(recipe), "layers": plan.to_json(), **facts}
    write_json(folder / PLAN_FILE, entries)


def read_plan_file(folder: Path) -> dict[str, Any]:
    """Read `plan.json` of a folder.

    Raises:
        PlanError: it is missing or of another format.
    """
    path = folder / PLAN_FILE
    try:
        entries = json.loads(path.read_text())
    except FileNotFoundError:
        raise PlanError(
            f"{path} does not exist: name the folder that a search wrote, such as outputs/<study>/best"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is damaged ({error}): run the search again to write it anew") from None
    if not isinstance(entries, dict) or entries.get("format") != PLAN_FORMAT:
        found = entries.get("format") if isinstance(entries, dict) else type(entries).__name__
        raise PlanError(f"{path} has format {found!r}, expected '{PLAN_FORMAT}': use the ranksearch that wrote it")
    return entries


def load(folder: str | Path, trust: bool = False) -> nn.Module:
    """Load a network that a search wrote.

    Args:
        folder: holds ``plan.json`` and ``model.safetensors``.
        trust: let the plan name a builder outside ranksearch, which is then imported and called. A plan from
            someone else could name anything, so this is off until you say so.

    Returns:
        The factorized network, on the CPU, in eval mode.

    Raises:
        PlanError: a file is missing or damaged, the plan does not fit, or its builder is not trusted.
    """
    folder = Path(folder)
    entries = read_plan_file(folder)
    recipe = dict(entries["model"])
    builder = _find_builder(str(recipe.pop("_target_", "")), trust)
    network = factorized_like(builder(**recipe), RankPlan.from_json(entries["layers"]))
    weights = folder / WEIGHTS_FILE
    try:
        load_model(network, weights, strict=True)
    except FileNotFoundError:
        raise PlanError(f"{weights} does not exist: keep it beside {PLAN_FILE}") from None
    except (SafetensorError, RuntimeError) as error:
        summary = " ".join(str(error).split())[:300]
        raise PlanError(
            f"{weights} does not fit {PLAN_FILE} ({summary}): keep the two files of one run together"
        ) from None
    return network.eval()


def _find_builder(target: str, trust: bool) -> Callable[..., nn.Module]:
    if not (trust or target.startswith("ranksearch.models.")):
        raise PlanError(
            f"the plan is built by '{target}', which is not part of ranksearch: pass trust=True if you trust it"
        )
    module, _, name = target.rpartition(".")
    try:
        builder = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise PlanError(
            f"the plan's builder '{target}' cannot be imported: put its module on the Python path"
        ) from None
    assert callable(builder)
    return builder  # type: ignore[no-any-return]  # getattr returns Any
