"""Factorized networks on disk: `plan.json` describes how to build them, `model.safetensors` holds the weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from torch import nn

from ranksearch.errors import PlanError, SettingError, UserError, first_line, shorten
from ranksearch.factorize.surgery import factorized_like
from ranksearch.files import write_json
from ranksearch.plan import RankPlan
from ranksearch.results.study_files import PLAN_FILE, PLAN_FORMAT, WEIGHTS_FILE, is_trusted, read_plan_file
from ranksearch.tensor_files import read_weights, write_weights
from ranksearch.validation import check_arguments

# Limits on arguments of ranksearch's own builders, since a plan may come from an untrusted source.
LIMITS = {"num_classes": 10**6}
DEEPEST = 20


def save_network(
    folder: Path, network: nn.Module, plan: RankPlan, builder: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Save a factorized network.

    An old plan is removed first and the new one written last, so that a plan on disk always has its weights beside it.

    Args:
        folder: folder to write to; created if needed.
        network: the factorized network.
        plan: rank plan of the factorized layers.
        builder: ``_target_`` and arguments of the dense network's builder.
        facts: further entries of the plan file, plain JSON values.
    """
    (folder / PLAN_FILE).unlink(missing_ok=True)
    write_weights(folder / WEIGHTS_FILE, network)
    entries = {"format": PLAN_FORMAT, "model": dict(builder), "layers": plan.to_json(), **facts}
    write_json(folder / PLAN_FILE, entries)


def load(folder: str | Path, trust: bool = False) -> nn.Module:
    """Load a network that a search saved.

    Args:
        folder: folder of ``plan.json`` and ``model.safetensors``.
        trust: whether to import and call a builder outside ranksearch; an untrusted plan could name any function.

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
    except Exception as error:  # a builder may raise anything on untrusted arguments
        reason = shorten(f"{type(error).__name__}: {first_line(error)}", 160)
        raise PlanError(f"the plan's builder '{target}' cannot be called ({reason}): fix its arguments") from error
    if not isinstance(dense, nn.Module):
        raise PlanError(f"the plan's model is a {type(dense).__name__}, not a network: give it a _target_")
    network = factorized_like(dense, plan)
    read_weights(folder / WEIGHTS_FILE, network)
    return network.eval()


def _make(settings: Any, trust: bool, depth: int = 0) -> Any:
    """Call the builder that the settings name, after the builders among its arguments."""
    if depth > DEEPEST:
        raise PlanError(f"the plan's builder has arguments nested {depth} deep: it is damaged, or not by ranksearch")
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
    """Raise PlanError if arguments of ranksearch's own builder are invalid, too large, or request a download."""
    if arguments.get("weights") is not None:
        raise PlanError("the plan's builder requests published weights, but loading never downloads: set null")
    for name, limit in LIMITS.items():
        value = arguments.get(name)
        if isinstance(value, int) and value > limit:
            raise PlanError(f"{name} {shorten(str(value))} of the plan's builder exceeds {limit}: it is damaged")
    try:
        check_arguments("model", locate(target), arguments)
    except SettingError as error:
        raise PlanError(f"the plan's builder '{target}' cannot be called ({error}): fix its arguments") from None


def _find_builder(target: str, trust: bool) -> Callable[..., Any]:
    if not (trust or is_trusted(target)):
        origin = f"the plan is built by '{shorten(target)}', which is not part of ranksearch"
        raise PlanError(f"{origin}: pass trust=True if you trust it")
    try:
        builder = locate(target)
    except ErrorDuringImport as error:
        raise PlanError(f"the plan's builder '{target}' cannot be imported ({error}): fix its module") from None
    if not callable(builder):
        raise PlanError(f"the plan's builder '{shorten(target)}' cannot be found: put its module on the Python path")
    return builder
