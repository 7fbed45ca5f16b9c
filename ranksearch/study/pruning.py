"""The pruning rule: a trial ends early once others that cost no more are well ahead of it."""

from collections.abc import Iterable

from ranksearch.results.trials import LearningCurve
from ranksearch.study.settings import PruningSettings


def pruning_reason(
    settings: PruningSettings, steps: int, step: int, trial: LearningCurve, others: Iterable[LearningCurve]
) -> str | None:
    """Return why a trial has no chance to be on the front, or None if it should continue.

    Args:
        settings: when a trial is pruned.
        steps: steps of the whole fine-tuning.
        step: the trial's last step so far.
        trial: its accuracies so far.
        others: those of other trials, finished or not.
    """
    lead, accuracy = settings.lead * (1 - step / max(steps, 1)), trial.accuracies[step]
    ahead = [
        (other.accuracies[step], other.number)
        for other in others
        if other.cost <= trial.cost and other.accuracies.get(step, 0.0) > accuracy + lead
    ]
    if len(ahead) < settings.rivals:
        return None
    best, number = max(ahead)
    rival = f"trial {number} had {100 * best:.2f} % and costs no more"
    return f"well behind: {100 * accuracy:.2f} % after {step} steps, where {rival}"
