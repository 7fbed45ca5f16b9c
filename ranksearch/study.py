"""The study: made or continued, for one objective or two, with a sampler and a pruner that can serve it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from ranksearch.errors import SettingError, UserError, first_line
from ranksearch.guided import GuidedSampler
from ranksearch.sampler import FeasibleSampler, suggest
from ranksearch.space import SearchSpace

# What a study optimizes: accuracy and cost, or accuracy at the constraint's speedup alone.
OBJECTIVES = {"front": ("accuracy", "cost"), "accuracy": ("accuracy",)}
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
SETTINGS = "settings"
LONGEST = 180  # of a folder's name, which file systems bound at 255 bytes


@dataclass(frozen=True)
class StudySettings:
    """How long to search.

    Attributes:
        name: of the study; the same name continues it. A list of names where several are compared.
        n_trials: finished trials in total, over all runs of the study.
        closed_form_trials: of these, how many are closed-form plans: at the constraint's budget and, evenly on a
            logarithmic scale, below it.
    """

    name: Any
    n_trials: int = 24
    closed_form_trials: int = 8

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, list | tuple):
            object.__setattr__(self, "name", str(self.name))
        for name in self.names or [""]:
            if not name or not name.isprintable() or {"/", "\\"} & set(name) or name in (".", ".."):
                raise SettingError("name", name, "cannot name a folder: use a name without slashes, not . or ..")
            if len(name.encode()) > LONGEST:
                raise SettingError("name", name, f"is too long for a folder's: use at most {LONGEST} bytes")
        if self.n_trials < 1:
            raise SettingError("n_trials", self.n_trials, "is out of range: use 1 or more")
        if self.closed_form_trials < 0:
            raise SettingError("closed_form_trials", self.closed_form_trials, "is out of range: use 0 or more")

    @property
    def names(self) -> list[str]:
        """All names, each once."""
        return [self.name] if isinstance(self.name, str) else list(dict.fromkeys(map(str, self.name or [])))


def study_folder(name: object) -> str:
    """The folder of a study, or of several compared, below that of all outputs."""
    if isinstance(name, str) or not isinstance(name, Sequence):
        return str(name)
    whole = "+".join(map(str, name))
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}~{sha256(whole.encode()).hexdigest()[:8]}"


def require_studies(storage: BaseStorage, names: Iterable[str], to: str) -> None:
    """See that a storage has studies.

    Args:
        storage: that should.
        names: of the studies.
        to: what they are wanted for, for the error: ``there is no study 'x' to <to>``.

    Raises:
        UserError: one is not there.
    """
    known = optuna.get_all_study_names(storage)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known) or sorted(known)[:8]
            advice = f"use {', '.join(near)}" if near else "run task=search first"
            raise UserError(f"there is no study '{name}' to {to} in this storage: {advice}")


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
    if name in optuna.get_all_study_names(storage):
        _require_own(optuna.load_study(study_name=name, storage=storage), directions)
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


def _require_own(study: Study, directions: Sequence[StudyDirection]) -> None:
    """Raise if a study is not one that a search like this made; it is not written to.

    Raises:
        UserError: it was made for something else, or by another program.
    """
    # Other workers may be making it: its settings come before its trials, so that trials are looked for first.
    begun, attributes = bool(study.get_trials(deepcopy=False)), study.user_attrs
    ours = isinstance(attributes.get(SETTINGS), Mapping)
    if list(study.directions) != list(directions):
        if ours:
            made, now = ("accuracy" if len(each) == 1 else "front" for each in (study.directions, directions))
            raise UserError(
                f"study '{study.study_name}' was made with other settings (objective: {made} before, {now} now): give "
                "this search a study.name of its own, or take the change back"
            )
    elif ours or not (attributes or begun):
        return
    raise UserError(f"study '{study.study_name}' was not made by ranksearch: choose another study.name, or storage")


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
        name, reason = type(sampler).__name__, first_line(error)
        raise SettingError("sampler", name, f"cannot serve this search ({reason}): choose another") from None
