"""A factorized network on disk: `plan.json` says how to build it, `model.safetensors` holds its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from torch import nn

from ranksearch.errors import PlanError, shorten
from ranksearch.factorize import factorized_like
from ranksearch.files import read_weights, write_json, write_weights
from ranksearch.plan import RankPlan

PLAN_FORMAT = "ranksearch.plan/1"
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"
LARGEST_SIDE = 2**16  # pixels
# Named one by one: whatever else a module of ours can be asked for by a dotted name, some of it runs anything.
BUILDERS = frozenset(
    f"ranksearch.models.{name}" for name in ("cifar_resnet", "torchvision_classifier", "timm_classifier")
)


def save_network(
    folder: Path, network: nn.Module, plan: RankPlan, builder: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Write a factorized network.

    An old plan goes first and the new one comes last, so that a plan on disk has its weights beside it.

    Args:
        folder: is made as needed.
        network: the factorized network.
        plan: what was factorized.
        builder: of the dense network: ``_target_`` and its arguments.
        facts: further entries of the plan file, plain JSON values.
    """
    (folder / PLAN_FILE).unlink(missing_ok=True)
    write_weights(folder / WEIGHTS_FILE, network)
    entries = {"format": PLAN_FORMAT, "model": dict(builder), "layers": plan.to_json(), **facts}
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
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error.strerror}): run the search again to write it anew") from None
    if not isinstance(entries, dict) or entries.get("format") != PLAN_FORMAT:
        found = entries.get("format") if isinstance(entries, dict) else type(entries).__name__
        raise PlanError(f"{path} has format {found!r}, expected '{PLAN_FORMAT}': use the ranksearch that wrote it")
    for key in ("model", "layers"):
        if not isinstance(entries.get(key), dict):
            raise PlanError(f"{path} is damaged (no '{key}'): run the search again to write it anew")
    return entries


def input_shape_of(entries: Mapping[str, Any], folder: Path) -> list[int]:
    """The shape of one image that a plan file names, `[C, H, W]`.

    Raises:
        PlanError: it names none.
    """
    shape = entries.get("input_shape")
    sizes = shape if isinstance(shape, list) else []
    if not sizes or not all(isinstance(size, int) and 0 < size <= LARGEST_SIDE for size in sizes):
        said = shorten(repr(shape))
        raise PlanError(f"{folder / PLAN_FILE} is damaged (input_shape {said}): run the search again to write it anew")
    return sizes


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
    try:
        dense = _make(entries["model"], trust)
    except TypeError as error:
        target = entries["model"].get("_target_")
        raise PlanError(f"the plan's builder '{target}' cannot be called ({error}): mend its arguments") from None
    if not isinstance(dense, nn.Module):
        raise PlanError(f"the plan's model is a {type(dense).__name__} and no network: give it a _target_")
    network = factorized_like(dense, RankPlan.from_json(entries["layers"]))
    read_weights(folder / WEIGHTS_FILE, network)
    return network.eval()


def _make(settings: Any, trust: bool) -> Any:
    """Call the builder that settings name, after those among its arguments."""
    if isinstance(settings, list):
        return [_make(entry, trust) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    arguments = {name: _make(entry, trust) for name, entry in settings.items() if name != "_target_"}
    return _find_builder(str(settings["_target_"]), trust)(**arguments) if "_target_" in settings else arguments


def is_trusted(target: str) -> bool:
    """Whether `load` calls a builder without being told to trust it: those of ranksearch's own."""
    return target in BUILDERS


def load_call(folder: Path) -> str:
    """The Python expression that loads the network of a folder.

    Raises:
        PlanError: it holds none.
    """
    trust = "" if is_trusted(str(read_plan_file(folder)["model"].get("_target_"))) else ", trust=True"
    return f"ranksearch.load({json.dumps(str(folder), ensure_ascii=False)}{trust})"


def _find_builder(target: str, trust: bool) -> Callable[..., Any]:
    if not (trust or is_trusted(target)):
        raise PlanError(
            f"the plan is built by '{target}', which is not part of ranksearch: pass trust=True if you trust it"
        )
    try:
        builder = locate(target)
    except ErrorDuringImport as error:
        raise PlanError(f"the plan's builder '{target}' cannot be imported ({error}): mend its module") from None
    if not callable(builder):
        raise PlanError(f"the plan's builder '{target}' cannot be found: put its module on the Python path")
    return builder
