"""Units of costs, and the scales in which they are displayed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """Scale in which costs of a unit are displayed.

    Attributes:
        name: name of the cost.
        divisor: number by which costs are divided.
        suffix: suffix of the quotient.
    """

    name: str
    divisor: float
    suffix: str

    def format(self, cost: float) -> str:
        """Format a cost."""
        return f"{cost / self.divisor:.{2 if self.suffix else 0}f} {self.suffix}".rstrip()


SCALES = {"MACs": Scale("MACs", 1e6, "M"), "ns": Scale("time", 1e6, "ms")}


def scale_of(unit: str) -> Scale:
    """Return the display scale of a unit; plain numbers for a custom unit."""
    return SCALES.get(unit, Scale(unit, 1.0, ""))


def format_device(description: Mapping[str, Any]) -> str:
    """Format a result of `ranksearch.device.describe_device`: the name and, if given, the threads."""
    name = str(description["name"])
    return f"{name}, {description['threads']} threads" if "threads" in description else name
