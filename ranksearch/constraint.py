"""What every plan must reach."""

from __future__ import annotations

from dataclasses import dataclass

from ranksearch.errors import SettingError
from ranksearch.space import SearchSpace


@dataclass(frozen=True)
class Constraint:
    """What every plan must reach.

    Attributes:
        speedup: dense cost over the plan's cost, at least.
    """

    speedup: float = 1.5

    def __post_init__(self) -> None:
        if not self.speedup >= 1:
            raise SettingError("speedup", self.speedup, "is below 1, the dense network's: use 1 or more")

    def budget(self, space: SearchSpace) -> int:
        """The highest cost of a feasible plan.

        Raises:
            UserError: no plan of the space is that cheap.
        """
        highest = space.highest_speedup
        budget = int(space.cost.dense / self.speedup)
        if space.cost.of(space.cheapest) > budget:
            raise SettingError(
                "speedup",
                f"{self.speedup:g}",
                f"exceeds {int(highest * 100) / 100:g}, the highest that the space reaches: lower it, or let space "
                "rules free more layers or smaller latent sizes",
            )
        return budget
