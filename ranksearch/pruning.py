"""Which trials are pruned: others that cost no more are well ahead of them, after as many steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ranksearch.errors import SettingError


@dataclass(frozen=True)
class PruningSettings:
    """When a trial is pruned.

    Attributes:
        rungs: shares of the fine-tuning after which a trial is compared, 0 to below 1; none compares nothing.
        lead: accuracy by which others are ahead of a trial before any fine-tuning, 0 to 1. Later the steps
            that are left can make up for less, and it shrinks with them.
        rivals: how many others.
    """

    rungs: list[float] = field(default_factory=lambda: [0.0, 0.75])
    lead: float = 0.06
    rivals: int = 2

    def __post_init__(self) -> None:
        if not all(0 <= rung < 1 for rung in self.rungs):
            raise SettingError("rungs", self.rungs, "are out of range: use shares from 0 to below 1")
        if not 0 <= self.lead <= 1:
            raise SettingError("lead", self.lead, "is out of range: use 0 to 1")
        if self.rivals < 1:
            raise SettingError("rivals", self.rivals, "is out of range: use 1 or more")

    def steps(self, steps: int) -> set[int]:
        """The steps after which a trial is compared, of a fine-tuning of so many."""
        return {min(round(rung * steps), steps - 1) for rung in self.rungs} if steps else set()


@dataclass(frozen=True)
class Standing:
    """How a trial did on the way.

    Attributes:
        number: of the trial.
        cost: of its network.
        accuracies: step -> accuracy after it.
    """

    number: int
    cost: int
    accuracies: Mapping[int, float]


def why_pruned(
    settings: PruningSettings, steps: int, step: int, trial: Standing, others: Iterable[Standing]
) -> str | None:
    """Say why a trial is pruned, for want of a chance to be on the front; None where it goes on.

    Args:
        settings: when a trial is pruned.
        steps: of the whole fine-tuning.
        step: that was the trial's last.
        trial: how it did so far.
        others: how other trials did, finished or not.
    """
    lead = settings.lead * (1 - step / max(steps, 1))
    accuracy = trial.accuracies[step]
    ahead = [
        (other.accuracies[step], other.number)
        for other in others
        if other.cost <= trial.cost and other.accuracies.get(step, 0.0) > accuracy + lead
    ]
    if len(ahead) < settings.rivals:
        return None
    best, number = max(ahead)
    return (
        f"well behind: {100 * accuracy:.2f} % after {step} steps, where trial {number} had {100 * best:.2f} % "
        "and costs no more"
    )
