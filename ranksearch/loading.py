"""A factorized network on disk: `plan.json` says how to build it, `model.safetensors` holds its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from torch import nn

from ranksearch.errors import DamagedError, PlanError, SettingError, UserError, first_line, shorten
from ranksearch.factorize import factorized_like
from ranksearch.files import read_json, read_weights, write_json, write_weights
from ranksearch.plan import RankPlan
from ranksearch.values import check_arguments

PLAN_FORMAT = "ranksearch.plan/1"
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"
LARGEST_SIDE = 2**16  # pixels
# Of what builders of ours are asked for by a plan, which may be a stranger's.
LIMITS = {"num_classes": 10**6}
DEEPEST = 20
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
        entries = read_json(path)
    except FileNotFoundError:
        raise PlanError(
            f"{path} does not exist: name the folder that a search wrote, such as outputs/<study>/best"
        ) from None
    except DamagedError as error:
        raise PlanError(f"{error}: run the search again to write it anew") from None
    if not isinstance(entries, dict) or entries.get("format") != PLAN_FORMAT:
        found = entries.get("format") if isinstance(entries, dict) else type(entries).__name__
        raise PlanError(
            f"{path} has format {shorten(repr(found))}, expected '{PLAN_FORMAT}': use the ranksearch that wrote it"
        )
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
    plan, target = RankPlan.from_json(entries["layers"]), shorten(str(entries["model"].get("_target_")))
    try:
        dense = _make(entries["model"], trust)
    except UserError:
        raise
    except Exception as error:  # whatever a builder makes of a stranger's arguments
        reason = shorten(f"{type(error).__name__}: {first_line(error)}", 160)
        raise PlanError(f"the plan's builder '{target}' cannot be called ({reason}): mend its arguments") from error
    if not isinstance(dense, nn.Module):
        raise PlanError(f"the plan's model is a {type(dense).__name__} and no network: give it a _target_")
    network = factorized_like(dense, plan)
    read_weights(folder / WEIGHTS_FILE, network)
    return network.eval()


def _make(settings: Any, trust: bool, depth: int = 0) -> Any:
    """Call the builder that settings name, after those among its arguments."""
    if depth > DEEPEST:
        raise PlanError(f"the plan's builder has arguments nested {depth} deep: it is damaged, or a stranger's")
    if isinstance(settings, list):
        return [_make(entry, trust, depth + 1) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    arguments = {name: _make(entry, trust, depth + 1) for name, entry in settings.items() if name != "_target_"}
    if "_target_" not in settings:
        return arguments
    target = str(settings["_target_"])
    if is_trusted(target):
        _check_own(target, arguments)
    return _find_builder(target, trust)(**arguments)


def _check_own(target: str, arguments: Mapping[str, Any]) -> None:
    """Raise if a builder of ours would reach for the network, or build without end.

    Raises:
        PlanError: it would.
    """
    if arguments.get("weights") is not None:
        raise PlanError("the plan's builder asks for published weights, and loading reaches for no network: set null")
    for name, limit in LIMITS.items():
        value = arguments.get(name)
        if isinstance(value, int) and value > limit:
            raise PlanError(f"{name} {shorten(str(value))} of the plan's builder exceeds {limit}: it is damaged")
    try:
        check_arguments("model", locate(target), arguments)
    except SettingError as error:
        raise PlanError(f"the plan's builder '{target}' cannot be called ({error}): mend its arguments") from None


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
            f"the plan is built by '{shorten(target)}', which is not part of ranksearch: pass trust=True if you trust "
            "it"
        )
    try:
        builder = locate(target)
    except ErrorDuringImport as error:
        raise PlanError(f"the plan's builder '{target}' cannot be imported ({error}): mend its module") from None
    if not callable(builder):
        raise PlanError(f"the plan's builder '{shorten(target)}' cannot be found: put its module on the Python path")
    return builder
