"""Text renderings of plans."""

from collections import Counter

from ranksearch.plan import DENSE, SCHEMES, LayerChoice, RankPlan
from ranksearch.results.metadata import StudyMetadata

SPEEDUPS = (1.5, 2.0, 3.0, 4.0)  # at which studies are compared


def by_scheme(plan: RankPlan) -> str:
    """Return the number of layers of each scheme as text."""
    counts = Counter(choice.scheme for _, choice in plan)
    return ", ".join(f"{counts[scheme]} {scheme}" for scheme in SCHEMES if counts[scheme]) or "all dense"


def after(steps: int) -> str:
    """Return a phrase for the fine-tuning that precedes a score."""
    return f"after {steps} steps of fine-tuning" if steps else "without fine-tuning"


def short(choice: LayerChoice | None) -> str:
    """Return a layer's choice as its latent size and the first letter of its scheme."""
    return DENSE if choice is None else f"{choice.latent_size}{choice.scheme[0].upper()}"


def by_stage(metadata: StudyMetadata, plan: RankPlan) -> list[str]:
    """Return a plan as one line per stage of the network."""
    lines: dict[str, list[str]] = {}
    for name, stage in metadata.stages().items():
        lines.setdefault(stage, []).append(short(plan.layers.get(name)))
    return [f"{stage}: {' '.join(choices)}" for stage, choices in lines.items()]
