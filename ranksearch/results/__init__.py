"""Results of a study as plain values; importing them loads neither torch nor other numerical libraries."""

from ranksearch.results.final import FinalResult, read_final_result
from ranksearch.results.metadata import StudyMetadata, read_metadata
from ranksearch.results.pareto import hypervolume, pareto_front
from ranksearch.results.trials import TrialRecord, TrialResult, read_trials

__all__ = [
    "FinalResult",
    "StudyMetadata",
    "TrialRecord",
    "TrialResult",
    "hypervolume",
    "pareto_front",
    "read_final_result",
    "read_metadata",
    "read_trials",
]
