"""The speedup that every plan must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ranksearch.errors import SettingError

if TYPE_CHECKING:
    from ranksearch.search_space.space import SearchSpace


# Smallest share of the MACs of a dense layer that is named where a speedup is out of reach.
WORTH_NAMING = 0.05


@dataclass
class Constraint:
    """The speedup that every plan must reach.

    Attributes:
        speedup: minimum ratio of the dense cost to the plan's cost.
    """

    speedup: float = 1.5

    def __post_init__(self) -> None:
        if not self.speedup >= 1:
            raise SettingError("speedup", self.speedup, "is below 1, the dense network's: use 1 or more")

    def budget(self, space: SearchSpace) -> int:
        """Return the highest cost of a feasible plan.

        Raises:
            UserError: no plan of the space reaches the speedup.
        """
        budget = int(space.cost.dense / self.speedup)
        if space.cost.total(space.cheapest) > budget:
            highest = f"{int(space.highest_speedup * 100) / 100:g}, the highest that the space reaches"
            dense = max(space.left.items(), key=lambda entry: entry[1].share, default=None)
            largest = f" with '{dense[0]}' dense, {dense[1]}" if dense and dense[1].share > WORTH_NAMING else ""
            advice = "lower it, or allow more layers or smaller latent sizes by space rules"
            raise SettingError("speedup", f"{self.speedup:g}", f"exceeds {highest}{largest}: {advice}")
        return budget
