"""What a study has shown so far, in the terms of a space: which options its trials took, and what came of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from ranksearch.allocation import Indices, OptionTable
from ranksearch.front import undominated
from ranksearch.layer_weights import LogWeights, learn
from ranksearch.plan import SCHEMES
from ranksearch.records import DRAWN_TWICE, FIXED, REASON, RESULT
from ranksearch.space import Errors, SearchSpace, Value

Array = NDArray[np.float64]
Point = tuple[float, float]

# Gaps of the front at its ends count from this width on, in the logarithm of costs.
LEAST_GAP = 0.05
# One trial of so many is at the lowest or the highest budget.
ENDS_EVERY = 5


@dataclass(frozen=True)
class Options:
    """What trials choose from; it does not change between them.

    Attributes:
        space: what a plan may choose.
        budget: highest cost of the network.
        table: of all layers' options.
        fixed: cost of what no plan can change.
        schemes: of every option, one-hot, `[layers, options, schemes]`; none of dense.
        readers: per layer, its parameter for the scheme, its name, and (scheme, size) -> option.
    """

    space: SearchSpace
    budget: int
    table: OptionTable
    fixed: int
    schemes: Array
    readers: tuple[tuple[str, str, Mapping[tuple[Value | None, Value], int]], ...]

    @staticmethod
    def of(space: SearchSpace, errors: Errors, budget: int) -> Options:
        """Price every option of a space.

        Args:
            space: what a plan may choose.
            errors: layer name -> scheme -> the expected error at rank 0, 1, ...
            budget: highest cost of the network.
        """
        table = OptionTable.of(space.options(errors))
        schemes = np.zeros((*table.costs.shape, len(SCHEMES)))
        readers = []
        for row, (layer, choices) in enumerate(zip(space.layers, table.choices, strict=True)):
            places = {choice: place for place, choice in enumerate(choices)}
            for choice, place in places.items():
                if choice is not None:
                    schemes[row, place, SCHEMES.index(choice.scheme)] = 1
            found: dict[tuple[Value | None, Value], int] = {}
            for scheme in layer.schemes:
                for size in range(layer.low, layer.largest_value + 1, layer.step):
                    values: dict[str, Value] = {layer.spec.name: size, layer.scheme_parameter: scheme}
                    written = scheme if len(layer.schemes) > 1 else None
                    found[written, size] = places[layer.choice(values)]
            readers.append((layer.scheme_parameter, layer.spec.name, found))
        return Options(space, budget, table, space.fixed_cost, schemes, tuple(readers))

    def rest(self, budget: float) -> float:
        """What a budget leaves to the layers."""
        return budget - self.fixed

    def read(self, params: Mapping[str, Value]) -> Indices | None:
        """A trial's values as options; None where they are not of this space."""
        try:
            found = [options[params.get(scheme), params[name]] for scheme, name, options in self.readers]
        except KeyError:
            return None
        return np.array(found, dtype=np.intp)

    def weighed(self, weights: Array, exponent: float) -> Array:
        """Errors of all options by the logarithms of weights: of the layers, then of the schemes."""
        layers = len(self.table.names)
        by_scheme = self.schemes @ weights[layers:]
        weighed: Array = self.table.errors**exponent * np.exp(weights[:layers, None] + by_scheme)
        return weighed

    def around(self, start: Indices, generator: np.random.Generator) -> Iterator[Indices]:
        """All plans within the budget, the nearest first: those that differ in one layer, then in two, and so on."""
        seen, queue = {tuple(start)}, deque([start])
        while queue:
            for near in self._neighbours(queue.popleft(), generator):
                if tuple(near) not in seen:
                    seen.add(tuple(near))
                    queue.append(near)
                    yield near

    def _neighbours(self, chosen: Indices, generator: np.random.Generator) -> Iterator[Indices]:
        """Plans within the budget that differ in one layer at the most, in random order."""
        rows = np.arange(len(chosen))
        costs = self.table.costs - self.table.costs[rows, chosen][:, None] + self.table.cost(chosen)
        fits = np.argwhere(np.isfinite(self.table.errors) & (costs <= self.rest(self.budget)))
        for row, option in generator.permutation(fits):
            near = chosen.copy()
            near[row] = option
            yield near


@dataclass(frozen=True)
class Experience:
    """What the study knows.

    Attributes:
        options: that they chose from.
        tried: options of all trials, whatever became of them -> cost of the network.
        chosen: options of every trial that completed within the budget, `[trials, layers]`.
        costs: of these, `[trials]`.
        losses: of these.
        accuracies: of these, or what the study maximizes.
    """

    options: Options
    tried: Mapping[tuple[int, ...], float]
    chosen: Indices
    costs: Array
    losses: Array
    accuracies: Array

    @staticmethod
    def of(trials: Iterable[FrozenTrial], options: Options) -> Experience:
        """Read all trials of a study."""
        tried: dict[tuple[int, ...], float] = {}
        completed, costs, losses, accuracies = [], [], [], []
        for trial in trials:
            params = trial.params or trial.system_attrs.get(FIXED, {})
            chosen = options.read(params)
            if chosen is None or trial.user_attrs.get(REASON) == DRAWN_TWICE:
                continue
            tried[tuple(chosen)] = cost = options.fixed + options.table.cost(chosen)
            if trial.state == TrialState.COMPLETE and cost <= options.budget:
                accuracy, result = trial.values[0], trial.system_attrs.get(RESULT)
                loss = -accuracy if result is None else float(result["loss"])
                if math.isfinite(loss):
                    completed.append(chosen)
                    costs.append(cost)
                    accuracies.append(accuracy)
                    losses.append(loss)
        found = np.array(completed, dtype=np.intp).reshape(-1, len(options.table.names))
        return Experience(options, tried, found, np.array(costs), np.array(losses), np.array(accuracies))

    def learned(self, exponent: float, layer_spread: float, scheme_spread: float) -> LogWeights:
        """What the trials say about the weights of errors to a power."""
        table, rows = self.options.table, np.arange(len(self.options.table.names))
        terms, kinds = table.errors[rows, self.chosen] ** exponent, self.options.schemes[rows, self.chosen]
        useful = terms.any(1)  # the dense network teaches nothing
        spreads = np.concatenate([np.full(len(rows), layer_spread), np.full(len(SCHEMES), scheme_spread)])
        return learn(terms[useful], kinds[useful], self.losses[useful], spreads)

    def points(self) -> list[Point]:
        """Logarithm of the cost, and accuracy, of the trials that no other beats in both, by rising cost."""
        points = list(zip(np.log(self.costs).tolist(), self.accuracies.tolist(), strict=True))
        return [points[place] for place in undominated(points)]

    def next_budget(self, number: int, generator: np.random.Generator) -> float:
        """A budget in the front's widest gap, or at one of its ends.

        An end has a gap on one side only and would never be tried again, and the upper one is what the constraint asks
        for. Trials that still run, or have no place on the front, stand on the line between the points around them: a
        gap where trials bring nothing is worth less the more there were.

        Args:
            number: of the trial that is proposed.
            generator: of the place within a gap.
        """
        lowest, highest = self.options.space.lowest_budget(self.options.budget), self.options.budget
        if number % ENDS_EVERY == ENDS_EVERY - 1:
            # Two at one end, then two at the other, so that each has an even number and an odd one.
            return lowest if number // ENDS_EVERY % 4 < 2 else highest
        tried = [math.log(cost) for cost in self.tried.values()]
        low, high = widest_gap(self.points(), tried, math.log(lowest), math.log(highest))
        return min(max(math.exp(generator.uniform(low, high)), lowest), highest)


def widest_gap(points: Sequence[Point], tried: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """The two neighbours on a front, as places of costs, with the largest area between them.

    Args:
        points: cost and accuracy, both rising.
        tried: costs of other trials, which halve the gaps that they lie in.
        lowest: cost from which on the front is looked for.
        highest: cost up to which it is.
    """
    if not points:
        return lowest, highest
    first, last = points[0], points[-1]
    height = max(last[1] - first[1], 1e-6)
    corners = list(points)
    if first[0] > lowest + LEAST_GAP:
        corners.insert(0, (lowest, first[1] - height))
    if last[0] < highest - LEAST_GAP:
        corners.append((highest, last[1] + height / 10))  # a front is flat where it ends
    costs, accuracies = zip(*corners, strict=True)
    between = [cost for cost in tried if costs[0] < cost < costs[-1]]
    corners += [(cost, float(np.interp(cost, costs, accuracies))) for cost in between]
    corners.sort()
    if len(corners) == 1:
        return lowest, highest
    low, high = max(pairwise(corners), key=lambda pair: (pair[1][0] - pair[0][0]) * (pair[1][1] - pair[0][1]))
    return low[0], high[0]
