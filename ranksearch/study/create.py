"""A study made or continued, for one objective or two, with a sampler and a pruner that can serve it."""

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from ranksearch._deprecated import upgrade_settings
from ranksearch.errors import SettingError, UserError, first_line
from ranksearch.results.attributes import SETTINGS
from ranksearch.samplers.base import PlanSampler, suggest
from ranksearch.samplers.feasible import FeasibleSampler
from ranksearch.search_space.space import SearchSpace
from ranksearch.study.settings import OBJECTIVES

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
REMEDY = "give this search its own study.name, or revert the change"


def open_study(
    name: str, storage: BaseStorage, settings: Mapping[str, Any], objective: str = "front", unit: str = "MACs"
) -> Study:
    """Make a study, or continue the one of this name.

    Args:
        name: name of the study.
        storage: storage that holds it.
        settings: everything that makes two trials comparable, as plain JSON values.
        objective: one of `OBJECTIVES`.
        unit: unit of costs.

    Raises:
        UserError: the study of this name was made with other settings, or by another program.
    """
    metrics = [unit if metric == "cost" else metric for metric in OBJECTIVES[objective]]
    directions = DIRECTIONS[: len(metrics)]
    if name in optuna.get_all_study_names(storage):
        _require_own(optuna.load_study(study_name=name, storage=storage), directions)
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    stored = study.user_attrs.get(SETTINGS)
    if stored is None:
        study.set_user_attr(SETTINGS, dict(settings))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(metrics)
    elif changed := sorted(_differences(upgrade_settings(stored), json.loads(json.dumps(settings)))):
        raise UserError(f"study '{name}' was made with other settings ({', '.join(changed[:3])}): {REMEDY}")
    return study


def _require_own(study: Study, directions: Sequence[StudyDirection]) -> None:
    """Raise if a study was made for other objectives, or by another program; it is not written to."""
    # Another worker may be making it: settings are written before trials, so trials are read first.
    begun, attributes = bool(study.get_trials(deepcopy=False)), study.user_attrs
    own, name = isinstance(attributes.get(SETTINGS), Mapping), study.study_name
    if list(study.directions) != list(directions):
        if own:
            made, now = ("accuracy" if len(each) == 1 else "front" for each in (study.directions, directions))
            changed = f"objective: {made} before, {now} now"
            raise UserError(f"study '{name}' was made with other settings ({changed}): {REMEDY}")
    elif own or not (attributes or begun):
        return
    raise UserError(f"study '{name}' was not made by ranksearch: choose another study.name, or storage")


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return what changed, a line each; a key that is new and null, or an empty list, is no change."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in {**old, **new}
            for line in _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    old, new = (None if value == [] else value for value in (old, new))
    return [] if old == new else [f"{prefix}: {old} before, {new} now"]


def check_pruner(pruner: BasePruner, rungs: Collection[int], objective: str = "front") -> None:
    """Raise if an Optuna pruner cannot serve a study.

    Args:
        pruner: the pruner.
        rungs: steps of a trial's fine-tuning at which it is asked.
        objective: one of `OBJECTIVES`.

    Raises:
        SettingError: the pruner serves one objective only, or is never asked.
    """
    if isinstance(pruner, NopPruner):
        return
    advice = "has no effect without rungs and fine-tuning: set pruner.rungs, or use pruner=lead"
    if len(OBJECTIVES[objective]) > 1:
        advice = "cannot serve two objectives: use pruner=lead, or study.objective=accuracy"
    if len(OBJECTIVES[objective]) > 1 or not rungs:
        raise SettingError("pruner", type(pruner).__name__, advice)


def check_sampler(sampler: BaseSampler, space: SearchSpace, budget: int, objective: str = "front") -> None:
    """Raise if a sampler cannot serve a study, by asking it on one that is thrown away.

    Args:
        sampler: the sampler.
        space: what is searched.
        budget: highest cost of a plan.
        objective: one of `OBJECTIVES`.

    Raises:
        SettingError: the sampler fails.
    """
    if isinstance(sampler, PlanSampler):
        return
    directions = DIRECTIONS[: len(OBJECTIVES[objective])]
    study = optuna.create_study(directions=directions, sampler=FeasibleSampler(sampler, space, budget))
    try:
        suggest(study.ask(), space)
    except (ValueError, NotImplementedError) as error:
        name, reason = type(sampler).__name__, first_line(error)
        raise SettingError("sampler", name, f"cannot serve this search ({reason}): choose another") from None
