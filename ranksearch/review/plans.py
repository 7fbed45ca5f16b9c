"""Plans in words and figures, for people who look at a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ranksearch.facts import StudyFacts
from ranksearch.plan import DENSE, SCHEMES, LayerChoice, RankPlan
from ranksearch.records import TrialRecord
from ranksearch.trial import TrialResult

# At which studies are told apart.
SPEEDUPS = (1.5, 2.0, 3.0, 4.0)


def by_scheme(plan: RankPlan) -> str:
    """How many layers have each scheme."""
    counts = Counter(choice.scheme for _, choice in plan)
    return ", ".join(f"{counts[scheme]} {scheme}" for scheme in SCHEMES if counts[scheme]) or "all dense"


def after(steps: int) -> str:
    """When a score was taken, in words."""
    return f"after {steps} steps of fine-tuning" if steps else "without fine-tuning"


def short(choice: LayerChoice | None) -> str:
    """A layer's choice in a few letters: its latent size and the first letter of its scheme."""
    return DENSE if choice is None else f"{choice.latent_size}{choice.scheme[0].upper()}"


def by_stage(facts: StudyFacts, plan: RankPlan) -> list[str]:
    """A plan, a line for each part of the network."""
    lines: dict[str, list[str]] = {}
    for name, stage in facts.stages().items():
        lines.setdefault(stage, []).append(short(plan.layers.get(name)))
    return [f"{stage}: {' '.join(choices)}" for stage, choices in lines.items()]


def completed(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, TrialResult]]:
    """The trials that came to a result within the budget, with it."""
    return [(record, record.result) for record in records if record.result is not None and record.feasible]


def by_speedup(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, TrialResult]]:
    """The same by rising speedup; of equals, the first trial first."""
    return sorted(completed(records), key=lambda pair: -pair[1].cost)
