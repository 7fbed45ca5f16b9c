"""Trial history of a study: the options that its trials chose, and their costs and scores."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from ranksearch.allocation.lagrangian import Indices, RankAllocator, layer_options
from ranksearch.plan import SCHEMES
from ranksearch.results.attributes import DRAWN_TWICE, FIXED, REASON, RESULT
from ranksearch.results.pareto import non_dominated
from ranksearch.samplers.posterior import WeightPosterior, learn
from ranksearch.search_space.space import Errors, SearchSpace, Value

Array = NDArray[np.float64]
Point = tuple[float, float]

# Smallest width of a gap at either end of the Pareto front, in log cost.
LEAST_GAP = 0.05
# Every n-th trial is at the lowest or the highest budget.
ENDS_EVERY = 5


@dataclass(frozen=True)
class OptionGrid:
    """The options that trials choose from, with their errors and costs.

    Attributes:
        space: the search space.
        budget: highest allowed cost of the network.
        table: errors and costs of all layers' options.
        fixed: cost of the parts of the network that no plan can change.
        schemes: one-hot scheme of every option, `[layers, options, schemes]`; all zeros for dense.
        readers: per layer, its scheme parameter, its name, and (scheme, size) -> option.
    """

    space: SearchSpace
    budget: int
    table: RankAllocator
    fixed: int
    schemes: Array
    readers: tuple[tuple[str, str, Mapping[tuple[Value | None, Value], int]], ...]

    @staticmethod
    def from_space(space: SearchSpace, errors: Errors, budget: int) -> OptionGrid:
        """Compute errors and costs of every option of a space.

        Args:
            space: the search space.
            errors: layer name -> scheme -> expected error at rank 0, 1, ...
            budget: highest allowed cost of the network.
        """
        table = RankAllocator.from_options(layer_options(space, errors))
        schemes = np.zeros((*table.costs.shape, len(SCHEMES)))
        readers = []
        for row, (layer, choices) in enumerate(zip(space.layers, table.choices, strict=True)):
            places = {choice: place for place, choice in enumerate(choices)}
            for choice, place in places.items():
                if choice is not None:
                    schemes[row, place, SCHEMES.index(choice.scheme)] = 1
            options: dict[tuple[Value | None, Value], int] = {}
            for scheme in layer.schemes:
                for size in range(layer.low, layer.largest_value + 1, layer.step):
                    values: dict[str, Value] = {layer.spec.name: size, layer.scheme_parameter: scheme}
                    written = scheme if len(layer.schemes) > 1 else None
                    options[written, size] = places[layer.choice(values)]
            readers.append((layer.scheme_parameter, layer.spec.name, options))
        return OptionGrid(space, budget, table, space.fixed_cost, schemes, tuple(readers))

    def rest(self, budget: float) -> float:
        """Return the part of a budget that is left for the searched layers."""
        return budget - self.fixed

    def read(self, params: Mapping[str, Value]) -> Indices | None:
        """Return the options that a trial's values encode, `[layers]`; None if they do not belong to this space."""
        try:
            chosen = [options[params.get(scheme), params[name]] for scheme, name, options in self.readers]
        except KeyError:
            return None
        return np.array(chosen, dtype=np.intp)

    def weighed(self, weights: Array, exponent: float) -> Array:
        """Return the weighted errors of all options, `[layers, options]`; weights are logs, layers then schemes."""
        layers = len(self.table.names)
        by_scheme = self.schemes @ weights[layers:]
        weighed: Array = self.table.errors**exponent * np.exp(weights[:layers, None] + by_scheme)
        return weighed

    def around(self, start: Indices, generator: np.random.Generator) -> Iterator[Indices]:
        """Yield all plans within the budget reachable from a start, breadth-first by single-layer changes."""
        seen, queue = {tuple(start)}, deque([start])
        while queue:
            for near in self._neighbours(queue.popleft(), generator):
                if tuple(near) not in seen:
                    seen.add(tuple(near))
                    queue.append(near)
                    yield near

    def _neighbours(self, chosen: Indices, generator: np.random.Generator) -> Iterator[Indices]:
        """Yield the plans within the budget that differ in at most one layer, in random order."""
        rows = np.arange(len(chosen))
        costs = self.table.costs - self.table.costs[rows, chosen][:, None] + self.table.cost(chosen)
        fits = np.argwhere(np.isfinite(self.table.errors) & (costs <= self.rest(self.budget)))
        for row, option in generator.permutation(fits):
            near = chosen.copy()
            near[row] = option
            yield near


@dataclass(frozen=True)
class TrialHistory:
    """The trials of a study as arrays.

    Attributes:
        options: options that the trials chose from.
        tried: chosen options of all trials in any state -> cost of the network.
        chosen: chosen options of the trials that completed within the budget, `[trials, layers]`.
        costs: costs of these trials, `[trials]`.
        losses: losses of these trials, `[trials]`.
        accuracies: accuracies of these trials, or whatever the study maximizes, `[trials]`.
    """

    options: OptionGrid
    tried: Mapping[tuple[int, ...], float]
    chosen: Indices
    costs: Array
    losses: Array
    accuracies: Array

    @staticmethod
    def from_trials(trials: Iterable[FrozenTrial], options: OptionGrid) -> TrialHistory:
        """Build the history from all trials of a study."""
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
        option_array = np.array(completed, dtype=np.intp).reshape(-1, len(options.table.names))
        return TrialHistory(options, tried, option_array, np.array(costs), np.array(losses), np.array(accuracies))

    def learned(self, exponent: float, layer_spread: float, scheme_spread: float) -> WeightPosterior:
        """Return the posterior of the weights of the errors raised to an exponent."""
        table, rows = self.options.table, np.arange(len(self.options.table.names))
        terms, kinds = table.errors[rows, self.chosen] ** exponent, self.options.schemes[rows, self.chosen]
        useful = terms.any(1)  # plans without expected error carry no information
        spreads = np.concatenate([np.full(len(rows), layer_spread), np.full(len(SCHEMES), scheme_spread)])
        return learn(terms[useful], kinds[useful], self.losses[useful], spreads)

    def points(self) -> list[Point]:
        """Return log cost and accuracy of the trials on the Pareto front, by rising cost."""
        points = list(zip(np.log(self.costs).tolist(), self.accuracies.tolist(), strict=True))
        return [points[place] for place in non_dominated(points)]

    def next_budget(self, number: int, generator: np.random.Generator) -> float:
        """Return a budget in the widest gap of the Pareto front, or at one of its ends.

        The ends are revisited on a schedule, since their gaps are one-sided and gap selection alone would not return to
        them; the upper end is the constraint's budget. Trials that are running or dominated are interpolated on the
        front, so that a gap counts less the more unsuccessful trials it contains.

        Args:
            number: number of the proposed trial.
            generator: random generator for the position within a gap.
        """
        lowest, highest = self.options.space.lowest_budget(self.options.budget), self.options.budget
        if number % ENDS_EVERY == ENDS_EVERY - 1:
            # Two trials at one end, then two at the other, so that each end gets an even and an odd trial number.
            return lowest if number // ENDS_EVERY % 4 < 2 else highest
        tried = [math.log(cost) for cost in self.tried.values()]
        low, high = widest_gap(self.points(), tried, math.log(lowest), math.log(highest))
        return min(max(math.exp(generator.uniform(low, high)), lowest), highest)


def widest_gap(points: Sequence[Point], tried: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """Return the costs of the two neighboring points of a Pareto front with the largest rectangle between them.

    Args:
        points: cost and accuracy of the front's points, both rising.
        tried: costs of all trials, which split the gaps that they lie in.
        lowest: lower end of the cost range.
        highest: upper end of the cost range.
    """
    if not points:
        return lowest, highest
    first, last = points[0], points[-1]
    height = max(last[1] - first[1], 1e-6)
    corners = list(points)
    if first[0] > lowest + LEAST_GAP:
        corners.insert(0, (lowest, first[1] - height))
    if last[0] < highest - LEAST_GAP:
        corners.append((highest, last[1] + height / 10))  # a front flattens toward its upper end
    costs, accuracies = zip(*corners, strict=True)
    between = [cost for cost in tried if costs[0] < cost < costs[-1]]
    corners += [(cost, float(np.interp(cost, costs, accuracies))) for cost in between]
    corners.sort()
    if len(corners) == 1:
        return lowest, highest
    low, high = max(pairwise(corners), key=lambda pair: (pair[1][0] - pair[0][0]) * (pair[1][1] - pair[0][1]))
    return low[0], high[0]
