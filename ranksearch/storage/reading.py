"""Trials read from a database in a few plain queries, where Optuna makes an object of every parameter's row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from ranksearch.errors import UserError, first_line, shorten
from ranksearch.records import CLOSED_FORM

# Values of parameters, and their distributions.
Parameters = tuple[dict[str, Any], dict[str, BaseDistribution]]


def read_trials(session: Session, wanted: Sequence[Any], known: dict[int, Parameters]) -> list[FrozenTrial]:
    """Read some trials, in the order they were made; see `_read_trials`.

    Raises:
        UserError: what the database holds of one is damaged.
    """
    try:
        return _read_trials(session, wanted, known)
    except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError) as error:
        reason = shorten(first_line(error), 120)
        raise UserError(
            f"the study's database is damaged ({reason}): move it away, or take it from a backup"
        ) from error


def _read_trials(session: Session, wanted: Sequence[Any], known: dict[int, Parameters]) -> list[FrozenTrial]:
    """Read some trials.

    Args:
        session: of the database.
        wanted: conditions on their rows.
        known: identifier -> parameters of trials that get no more of them, which are not asked for again; is added to.
    """
    trial, value, step = models.TrialModel, models.TrialValueModel, models.TrialIntermediateValueModel
    rows: Sequence[Any] = session.scalars(select(trial).where(*wanted).order_by(trial.trial_id)).all()
    ids = [row.trial_id for row in rows]
    plans = known | _plans(session, [trial_id for trial_id in ids if trial_id not in known])
    values = _by_trial(session, ids, value, value.objective, value.value, value.value_type)
    steps = _by_trial(session, ids, step, step.step, step.intermediate_value, step.intermediate_value_type)
    user, system = (
        _by_trial(session, ids, table, table.key, table.value_json)
        for table in (models.TrialUserAttributeModel, models.TrialSystemAttributeModel)
    )
    found = []
    for row in rows:
        params, distributions = plans.get(row.trial_id, ({}, {}))
        scores = sorted(values.get(row.trial_id, []), key=itemgetter(0))
        read = FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=[value.stored_repr_to_value(*stored) for _, *stored in scores] or None,
            datetime_start=row.datetime_start,
            datetime_complete=row.datetime_complete,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={key: json.loads(text) for key, text in user.get(row.trial_id, [])},
            system_attrs={key: json.loads(text) for key, text in system.get(row.trial_id, [])},
            intermediate_values={
                at: step.stored_repr_to_intermediate_value(*stored) for at, *stored in steps.get(row.trial_id, [])
            },
            trial_id=row.trial_id,
        )
        if params and (read.state.is_finished() or CLOSED_FORM in read.user_attrs):
            known[row.trial_id] = (params, distributions)
        found.append(read)
    return found


def _plans(session: Session, trials: Sequence[int]) -> dict[int, Parameters]:
    param, plans = models.TrialParamModel, {}
    stored = _by_trial(session, trials, param, param.param_name, param.param_value, param.distribution_json)
    for trial_id, entries in stored.items():
        distributions = {name: _distribution(text) for name, _, text in entries}
        plans[trial_id] = (
            {name: distributions[name].to_external_repr(value) for name, value, _ in entries},
            distributions,
        )
    return plans


def _by_trial(session: Session, trials: Sequence[int], table: Any, *columns: Any) -> dict[int, list[list[Any]]]:
    """Columns of a table's rows that belong to some trials, in the order they were written."""
    found: dict[int, list[list[Any]]] = {}
    if trials:
        of_these = select(table.trial_id, *columns).where(table.trial_id.in_(trials))
        for trial_id, *entries in session.execute(of_these.order_by(inspect(table).primary_key[0])):
            found.setdefault(trial_id, []).append(entries)
    return found


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    found: BaseDistribution = json_to_distribution(text)
    return found
