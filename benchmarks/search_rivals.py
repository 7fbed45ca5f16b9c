"""How others choose latent sizes without a search, on our factors: what `search_quality.py` compares with.

All of them work on the closed form's own factors, recalibration and fine-tuning; only the choice of plans differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ranksearch.allocation.lagrangian import RankAllocator, layer_options
from ranksearch.plan import FIRST_AXES, LayerChoice, RankPlan
from ranksearch.study.context import SearchContext
from ranksearch.training.loop import evaluate

# Layer name -> option -> how much it is feared to lose; dense loses nothing.
Losses = Mapping[str, Mapping[LayerChoice | None, float]]


def one_ratio(problem: SearchContext, budget: int) -> RankPlan:
    """The same share of its largest latent size for every layer (Composer's factorize, plain SVD tools)."""
    space = problem.space
    largest = {name: value for layer in space.layers for name, value in layer.values(None).items()}
    for layer in space.layers:
        largest |= {layer.spec.name: layer.highs[layer.schemes[0]]}
    return space.plan(space.shrink(largest, budget))


def equal_loss(problem: SearchContext, losses: Losses, budget: int) -> RankPlan:
    """Every layer's cheapest option that loses no more than one threshold, the lowest that the budget allows."""
    table = RankAllocator.from_options(layer_options(problem.space, problem.errors))
    feared = [
        [losses[name][choice] for choice in choices] for name, choices in zip(table.names, table.choices, strict=True)
    ]

    def plan(threshold: float) -> RankPlan:
        # Options come by rising cost, and dense, which loses nothing, is among them or replaced by the best.
        chosen = {}
        for name, choices, lost in zip(table.names, table.choices, feared, strict=True):
            allowed = [index for index, loss in enumerate(lost) if loss <= threshold]
            choice = choices[allowed[0] if allowed else lost.index(min(lost))]
            if choice is not None:
                chosen[name] = choice
        return RankPlan(chosen)

    levels = sorted({loss for layer in feared for loss in layer})
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if problem.space.cost.total(plan(levels[middle])) <= budget else (middle + 1, high)
    return plan(levels[low])


def energy(problem: SearchContext) -> Losses:
    """The share of its outputs' variance that a layer loses: one energy threshold for all."""
    return {
        layer.spec.name: {
            choice: 0.0 if choice is None else problem.errors[layer.spec.name][choice.scheme][choice.latent_size]
            for choice in layer.choices
        }
        for layer in problem.space.layers
    }


def spectral(problem: SearchContext) -> Losses:
    """The largest relative error of a layer's weight, by its singular values (ALDS; Liebenwein et al., 2021)."""
    losses: dict[str, dict[LayerChoice | None, float]] = {}
    for layer in problem.space.layers:
        weight = problem.model.get_submodule(layer.spec.name).weight.detach().double()
        assert isinstance(weight, torch.Tensor)
        losses[layer.spec.name] = found = {None: 0.0}
        for scheme in layer.schemes:
            matrix = weight.flatten(1)
            if weight.ndim == 4:
                # Axes of the first factor go with the inputs, the others with the outputs.
                first = [axis + 2 for axis, mine in enumerate(FIRST_AXES[scheme]) if mine]
                second = [axis for axis in (2, 3) if axis not in first]
                matrix = weight.permute(0, *second, 1, *first).flatten(0, len(second)).flatten(1)
            values = torch.linalg.svdvals(matrix)
            for choice in layer.choices:
                if choice is not None and choice.scheme == scheme:
                    rest = values[choice.latent_size] if choice.latent_size < len(values) else 0.0
                    found[choice] = float(rest / values[0])
    return losses


def exclusive(problem: SearchContext, ratios: int = 9) -> tuple[Losses, int]:
    """The accuracy that a layer costs when it alone is factorized (AIMET's greedy selection), and evaluations."""
    losses: dict[str, dict[LayerChoice | None, float]] = {}
    evaluations = 0
    for layer in problem.space.layers:
        losses[layer.spec.name] = found = {None: 0.0}
        for scheme in layer.schemes:
            choices = [choice for choice in layer.choices if choice is not None and choice.scheme == scheme]
            tried = sorted({round(index * (len(choices) - 1) / (ratios - 1)) for index in range(ratios)})
            known: dict[int, float] = {}
            for index in tried:
                network = problem.build(RankPlan({layer.spec.name: choices[index]}))
                accuracy = evaluate(network, problem.validation()).accuracy
                known[index] = max(problem.baseline.accuracy - accuracy, 1e-6)
                evaluations += 1
            for index, choice in enumerate(choices):  # a rank that was not tried loses what the next lower one does
                found[choice] = known[max(known_index for known_index in tried if known_index <= index)]
    return losses, evaluations


def allocators(problem: SearchContext) -> dict[str, Callable[[int], RankPlan]]:
    """Name -> plan of a budget, of those that need no evaluation."""
    by_energy, by_spectrum = energy(problem), spectral(problem)
    return {
        "one ratio": lambda budget: one_ratio(problem, budget),
        "energy threshold": lambda budget: equal_loss(problem, by_energy, budget),
        "ALDS-like": lambda budget: equal_loss(problem, by_spectrum, budget),
    }
