"""The study: made or continued, for one objective or two, with a sampler and a pruner that can serve it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from ranksearch.errors import SettingError, UserError
from ranksearch.guided import GuidedSampler
from ranksearch.sampler import FeasibleSampler, suggest
from ranksearch.space import SearchSpace

# What a study optimizes: accuracy and cost, or accuracy at the constraint's speedup alone.
OBJECTIVES = {"front": ("accuracy", "cost"), "accuracy": ("accuracy",)}
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
SETTINGS = "settings"


def open_study(
    name: str, storage: BaseStorage, settings: Mapping[str, Any], objective: str = "front", unit: str = "MACs"
) -> Study:
    """Make a study, or continue the one of this name.

    Args:
        name: of the study.
        storage: that keeps it.
        settings: all that makes two trials comparable, as plain JSON values.
        objective: one of `OBJECTIVES`.
        unit: that costs are counted in.

    Raises:
        UserError: the study of this name was made with other settings.
    """
    metrics = [unit if metric == "cost" else metric for metric in OBJECTIVES[objective]]
    directions = DIRECTIONS[: len(metrics)]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    known = study.user_attrs.get(SETTINGS)
    if known is None:
        study.set_user_attr(SETTINGS, dict(settings))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(metrics)
    elif changed := sorted(_differences(known, json.loads(json.dumps(settings)))):
        raise UserError(
            f"study '{name}' was made with other settings ({', '.join(changed[:3])}): "
            "give this search a study.name of its own, or take the change back"
        )
    return study


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """What changed, a line each; a key that is new and null, or an empty list, is no change."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in {**old, **new}
            for line in _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    old, new = (None if value == [] else value for value in (old, new))
    return [] if old == new else [f"{prefix}: {old} before, {new} now"]


def check_sampler(
    sampler: BaseSampler,
    pruner: BasePruner,
    rungs: Collection[int],
    space: SearchSpace,
    budget: int,
    objective: str = "front",
) -> None:
    """See that a sampler and a pruner can serve a study like ours, on one that is thrown away.

    Args:
        sampler: the sampler.
        pruner: of one objective.
        rungs: steps of a trial's fine-tuning at which the pruner is asked.
        space: what is searched.
        budget: highest cost of a plan.
        objective: one of `OBJECTIVES`.

    Raises:
        SettingError: one cannot.
    """
    directions = DIRECTIONS[: len(OBJECTIVES[objective])]
    if not isinstance(pruner, NopPruner):
        advice = "has nothing to judge without rungs and fine-tuning: set pruning.rungs, or use pruner=none"
        if len(directions) > 1:
            advice = "cannot serve two objectives: use pruner=none, or objective=accuracy"
        if len(directions) > 1 or not rungs:
            raise SettingError("pruner", type(pruner).__name__, advice)
    if isinstance(sampler, GuidedSampler):
        return
    study = optuna.create_study(directions=directions, sampler=FeasibleSampler(sampler, space, budget))
    try:
        suggest(study.ask(), space)
    except (ValueError, NotImplementedError) as error:
        name, reason = type(sampler).__name__, str(error).splitlines()[0]
        raise SettingError("sampler", name, f"cannot serve this search ({reason}): choose another") from None
