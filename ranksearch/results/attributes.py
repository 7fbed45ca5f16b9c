"""Keys of the study and trial attributes that ranksearch writes, and access to them.

Large values are system attributes, because Optuna's dashboard shows all user attributes in full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.storages import BaseStorage

# System attributes of a study.
METADATA = "ranksearch:facts"
CLOSED_FORM_PLANS = "ranksearch:closed_form_plans"
# User attributes of a study.
SETTINGS = "settings"
# System attributes of a trial.
RESULT = "ranksearch:result"
FIXED = "fixed_params"  # Optuna's own key for parameters that were enqueued by hand
HEARTBEAT = "heartbeat"
# User attributes of a trial.
REASON = "reason"
RUNGS = "rungs"
COST = "cost"
CLOSED_FORM = "closed_form"
RETRY = "retry"
# Values of REASON that do not count as the end of a trial.
INTERRUPTED = "interrupted"
DRAWN_TWICE = "drawn by two processes at once, and left to the other"


def read_study_attribute(storage: BaseStorage, study: str, key: str) -> Any:
    """Read a system attribute of a study; None if it is missing."""
    return storage.get_study_system_attrs(storage.get_study_id_from_name(study)).get(key)


def write_study_attribute(storage: BaseStorage, study: str, key: str, value: Any) -> None:
    """Write a system attribute of a study; its value consists of plain JSON values."""
    storage.set_study_system_attr(storage.get_study_id_from_name(study), key, value)


def write_trial_attribute(trial: Trial, key: str, value: Any) -> None:
    """Write a system attribute of a running trial; its value consists of plain JSON values."""
    storage, study = trial.storage, trial.storage.get_study_id_from_name(trial.study.study_name)
    storage.set_trial_system_attr(storage.get_trial_id_from_study_id_trial_number(study, trial.number), key, value)
