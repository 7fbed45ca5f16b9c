"""Names of layers in a model and in wrappers around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from ranksearch.factorize.exposure import hidden_names
from ranksearch.plan import RankPlan

# Attributes under which wrappers of torch keep a model: DataParallel and torch.compile.
WRAPPERS = ("module", "_orig_mod")


def fitted_plan(plan: RankPlan, model: nn.Module) -> RankPlan:
    """Return a plan with the names that its layers have in a model.

    A plan for a wrapped model fits the bare one and the reverse: names may differ in the attributes of `WRAPPERS`, and
    in one attribute that holds the whole model, as in a module of a training framework.

    Args:
        plan: the plan.
        model: the model.

    Returns:
        The plan; as it is, if it fits or nothing makes it fit.
    """
    names = {*dict(model.named_modules()), *hidden_names(model)}
    if plan.layers.keys() <= names:
        return plan
    bare: dict[str, list[str]] = {}
    for name in names:
        bare.setdefault(_bare(name), []).append(name)
    for candidates in _candidates([_bare(name) for name in plan.layers], model):
        found = [bare.get(name, []) for name in candidates]
        if all(len(matching) == 1 for matching in found):
            return RankPlan({name: choice for [name], choice in zip(found, plan.layers.values(), strict=True)})
    return plan


def _bare(name: str) -> str:
    """Return a name without the attributes of wrappers."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _candidates(names: Sequence[str], model: nn.Module) -> Iterator[list[str]]:
    """Yield what names may be in a model: the same, without an attribute that all begin with, or with one more."""
    yield list(names)
    owners = {name.partition(".")[0] for name in names}
    if len(owners) == 1 and all("." in name for name in names):
        yield [name.partition(".")[2] for name in names]
    for owner, _ in model.named_children():
        yield [f"{owner}.{name}" for name in names]
