"""The files that a study leaves: `plan.json`, `front.json` and `run.json`, read and checked."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranksearch.errors import DamagedError, PlanError, shorten
from ranksearch.files import read_json
from ranksearch.results.metadata import StudyMetadata
from ranksearch.results.trials import FeasibleTrial

PLAN_FORMAT, FRONT_FORMAT, RUN_FORMAT = "ranksearch.plan/1", "ranksearch.front/1", "ranksearch.run/1"
PLAN_FILE, RUN_FILE, WEIGHTS_FILE = "plan.json", "run.json", "model.safetensors"
LARGEST_SIDE = 2**16  # pixels
# An explicit list, because some dotted names within ranksearch can run arbitrary code.
BUILDERS = frozenset(
    f"ranksearch.models.{name}" for name in ("cifar_resnet", "torchvision_classifier", "timm_classifier")
)
Front = Mapping[str, Any]  # the content of `front.json`
POINT_FIGURES = ("trial", "speedup", "cost", "macs", "params")  # values of a point besides its accuracy


def read_plan_file(folder: Path) -> dict[str, Any]:
    """Read `plan.json` of a folder.

    Raises:
        PlanError: it is missing, damaged or of another format.
    """
    path = folder / PLAN_FILE
    try:
        entries = read_json(path)
    except FileNotFoundError:
        advice = "name the folder that a search wrote, such as outputs/<study>/best"
        raise PlanError(f"{path} does not exist: {advice}") from None
    except DamagedError as error:
        raise PlanError(f"{error}: run the search again to rewrite it") from None
    if not isinstance(entries, dict) or entries.get("format") != PLAN_FORMAT:
        actual = entries.get("format") if isinstance(entries, dict) else type(entries).__name__
        formats = f"{shorten(repr(actual))}, expected '{PLAN_FORMAT}'"
        raise PlanError(f"{path} has format {formats}: use the ranksearch that wrote it")
    for key in ("model", "layers"):
        if not isinstance(entries.get(key), dict):
            raise PlanError(f"{path} is damaged (no '{key}'): run the search again to rewrite it")
    return entries


def input_shape_of(entries: Mapping[str, Any], folder: Path) -> list[int]:
    """Return the shape of one image from a plan file, `[C, H, W]`.

    Raises:
        PlanError: the shape is missing or invalid.
    """
    shape = entries.get("input_shape")
    sizes = shape if isinstance(shape, list) else []
    if not sizes or not all(isinstance(size, int) and 0 < size <= LARGEST_SIDE for size in sizes):
        value = shorten(repr(shape))
        raise PlanError(f"{folder / PLAN_FILE} is damaged (input_shape {value}): run the search again to rewrite it")
    return sizes


def is_trusted(target: str) -> bool:
    """Return whether `load` calls a builder without ``trust=True``, as it does ranksearch's own."""
    return target in BUILDERS


def load_call(folder: Path) -> str:
    """Return the Python expression that loads the network of a folder.

    Raises:
        PlanError: the folder holds no valid plan file.
    """
    trust = "" if is_trusted(str(read_plan_file(folder)["model"].get("_target_"))) else ", trust=True"
    return f"ranksearch.load({json.dumps(str(folder), ensure_ascii=False)}{trust})"


def front_content(study: str, metadata: StudyMetadata, front: Sequence[FeasibleTrial]) -> dict[str, Any]:
    """Return the content of `front.json`, the front by rising cost."""
    points = [
        {
            "trial": trial.number,
            "accuracy": trial.result.accuracy,
            "accuracy_before_fine_tuning": trial.result.accuracy_before,
            **{key: getattr(trial.result, key) for key in ("cost", "speedup", "macs", "params")},
            "plan": trial.result.plan.to_json(),
        }
        for trial in front
    ]
    measured = {
        "split": "validation",
        "fine_tune_steps": metadata.fine_tune_steps,
        "seed": metadata.seed,
        "cost_unit": metadata.unit,
        "input_shape": list(metadata.input_shape),
    }
    dense = {key: getattr(metadata, key) for key in ("accuracy", "cost", "macs", "params")}
    return {"format": FRONT_FORMAT, "study": study, "measured": measured, "dense": dense, "points": points}


def read_front(folder: Path) -> Front | None:
    """Read the `front.json` of a study's folder; None if it is missing or damaged."""
    try:
        content = read_json(folder / "front.json")
        measured, dense, points = content["measured"], content["dense"], content["points"]
        numbers = [dense[name] for name in ("accuracy", "cost", "macs", "params")]
        numbers += [point[name] for point in points for name in (*POINT_FIGURES, "accuracy")]
        whole = isinstance(measured["cost_unit"], str) and all(isinstance(number, int | float) for number in numbers)
    except (FileNotFoundError, DamagedError, KeyError, TypeError):
        return None
    return content if whole and dense["cost"] > 0 else None


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings, plain JSON values, as sixteen hex digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_run(folder: Path) -> dict[str, Any] | None:
    """Read the record of the last run in a study's folder; None if it is missing or damaged."""
    try:
        record = read_json(folder / RUN_FILE)
    except (FileNotFoundError, DamagedError):
        return None
    return record if isinstance(record, dict) and record.get("format") == RUN_FORMAT else None
