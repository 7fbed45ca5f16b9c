"""Which score of a trial predicts the accuracy after long fine-tuning. Run: python benchmarks/search_scores.py.

Plans of one budget, an eighth of the MACs: `near` ones drawn around the closed form's, and `far` ones that rules of
others and random draws give, as a search meets both. Networks, data and splits are those of `search_quality.py`. Scores
are made on the 3,000 validation images, or without labels on the training images that closed-form plans are compared
on; the accuracy at the end is that of all 5,000 held-out training images. What is printed is their rank correlation
(Spearman) over the plans, beside the training steps that a score costs for each plan. Finished plans are kept under
--outputs and read again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import schemes
import search_elastic
import search_quality
import search_rivals
import torch
from torch import nn

from ranksearch.allocation.lagrangian import RankAllocator, allocate, layer_options
from ranksearch.data.loaders import batches, endless_batches
from ranksearch.factorize import FactorizedConv2d, FactorizedLinear
from ranksearch.plan import SCHEMES, RankPlan
from ranksearch.predictions import divergence, predict
from ranksearch.samplers.history import OptionGrid
from ranksearch.study.context import SearchContext
from ranksearch.training.loop import evaluate, train

Row = dict[str, Any]
# Steps and learning rates of fine-tunings that a trial could afford.
SHORT = ((10, 0.02), (30, 0.02), (50, 0.02), (15, 0.005), (30, 0.005), (30, 0.01))
RATE = 0.02  # of all others
WARM = 10  # steps of a trial that starts from a finished one


def drawn(
    problem: SearchContext, share: float, spreads: Iterator[float], generator: np.random.Generator
) -> Iterator[RankPlan]:
    """Plans of least weighted error, for weights of layers and schemes drawn around one."""
    options = OptionGrid.from_space(problem.space, problem.errors, problem.budget)
    for spread in spreads:
        weights = spread * generator.standard_normal(len(options.table.names) + len(SCHEMES))
        budget = options.rest(share * problem.space.cost.dense)
        yield options.table.plan(options.table.best(budget, options.weighed(weights, 1.0)))


def near(problem: SearchContext, share: float, count: int, seed: int) -> list[RankPlan]:
    """So many plans around the closed form's, which is the first."""
    spreads = itertools.chain([0.0], np.linspace(0.3, 1.2, 10 * count))
    plans = drawn(problem, share, spreads, np.random.default_rng(seed))
    return list(itertools.islice(dict.fromkeys(plans), count))


def far(problem: SearchContext, share: float, count: int, seed: int) -> list[RankPlan]:
    """The rules' plans, those of fewer schemes, and random ones brought down to the budget."""
    space, budget = problem.space, int(share * problem.space.cost.dense)
    plans = [rule(budget) for rule in search_rivals.allocators(problem).values()]
    plans.append(allocate(space, problem.errors, budget))
    plans += [allocate(space.restricted([scheme]), problem.errors, budget) for scheme in SCHEMES]
    generator, table = np.random.default_rng(seed), RankAllocator.from_options(layer_options(space, problem.errors))
    sizes = np.isfinite(table.errors).sum(1)
    while len(dict.fromkeys(plans)) < count:
        random = table.plan(generator.integers(sizes))
        plans.append(space.plan(space.shrink(space.values(random), budget)))
    return list(dict.fromkeys(plans))[:count]


class Judge:
    """Scores networks of one problem; higher is better."""

    def __init__(self, problem: SearchContext, data: schemes.Data) -> None:
        self.problem = problem
        end = len(data.images) - schemes.HELD_OUT
        held_out = torch.utils.data.TensorDataset(data.images[end:], data.labels[end:])
        self.held_out = list(batches(held_out, 500, problem.device))
        self.choosing = [images for images, _ in problem.validation()]
        self.dense = {name: predict(problem.model, images) for name, images in self._unlabelled()}

    def _unlabelled(self) -> list[tuple[str, Any]]:
        return [("divergence", self.choosing), ("divergence in calibration", self.problem.comparison)]

    def scores(self, label: str, network: nn.Module) -> Row:
        """By the labels, and by the dense network's predictions."""
        found = evaluate(network, self.problem.validation())
        row = {f"{label}: accuracy": found.accuracy, f"{label}: loss": -found.loss}
        for name, images in self._unlabelled():
            row[f"{label}: {name}"] = -divergence(predict(network, images), self.dense[name])
        return row

    def end(self, network: nn.Module) -> Row:
        """What is to be predicted."""
        found = evaluate(network, self.held_out)
        return {"end: accuracy": found.accuracy, "end: loss": -found.loss}


def fine_tune(problem: SearchContext, network: nn.Module, steps: int, rate: float = RATE) -> nn.Module:
    """Train a network as a trial does, in place."""
    torch.manual_seed(problem.seed)
    recipe = replace(problem.fine_tuner, steps=steps, learning_rate=rate)
    data = endless_batches(problem.splits.train, recipe.batch_size, problem.device, problem.seed)
    train(network, data, recipe, teacher=problem.model)
    return network


def transplant(source: nn.Module, target: nn.Module) -> None:
    """Give layers of one scheme and no larger size the strongest factors that another network learned."""
    for name, layer in target.named_modules():
        try:
            other = source.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(layer, FactorizedConv2d | FactorizedLinear):
            if type(other) is type(layer) and other.scheme == layer.scheme and other.latent_size >= layer.latent_size:
                first, second = other.module0.weight, other.module1.weight
                strength = first.flatten(1).norm(dim=1) * second.transpose(0, 1).flatten(1).norm(dim=1)
                kept = strength.topk(layer.latent_size).indices.sort().values
                layer.module0.weight.data.copy_(first[kept])
                layer.module1.weight.data.copy_(second[:, kept])
                layer.module1.bias.data.copy_(other.module1.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.load_state_dict(other.state_dict())


def distance(first: RankPlan, second: RankPlan) -> float:
    """How far two plans are: layers of another scheme, and logarithms of latent sizes."""
    total = 0.0
    for name in {**first.layers, **second.layers}:
        one, other = first.layers.get(name), second.layers.get(name)
        if one is None or other is None or one.scheme != other.scheme:
            total += 1
        else:
            total += abs(float(np.log(one.latent_size / other.latent_size)))
    return total


def own_scores(problem: SearchContext, judge: Judge, plan: RankPlan, long: int) -> Row:
    """What a plan's own network says, without and with fine-tuning, and how it ends."""
    row: Row = {
        "expected error": -sum(problem.errors[name][choice.scheme][choice.latent_size] for name, choice in plan)
    }
    row |= judge.scores("each by itself", replace(problem, sequential=None).build(plan))
    row |= judge.scores("0 steps", problem.build(plan))
    for steps, rate in SHORT:
        row |= judge.scores(f"{steps} steps at {rate}", fine_tune(problem, problem.build(plan), steps, rate))
    return row | judge.end(fine_tune(problem, problem.build(plan), long))


def warm_scores(problem: SearchContext, judge: Judge, plans: list[RankPlan]) -> list[Row]:
    """Every trial starts from the most similar finished one, the first from its own factors."""
    finished: dict[RankPlan, nn.Module] = {}
    rows = []
    for plan in plans:
        network = problem.build(plan)
        if finished:
            transplant(finished[min(finished, key=lambda other: distance(plan, other))], network)
        finished[plan] = fine_tune(problem, network, WARM)
        rows.append(judge.scores(f"warm start, {WARM} steps", finished[plan]))
    return rows


def elastic_scores(problem: SearchContext, judge: Judge, plans: list[RankPlan], steps: int, seed: int) -> list[Row]:
    """One network fine-tuned for all, scored without a step of the plan's own and after a few."""
    generator = np.random.default_rng((seed, 1))

    def endless() -> Iterator[RankPlan]:
        low, high = np.log(search_quality.BUDGETS[-1]), np.log(search_quality.BUDGETS[0])
        while True:
            share = float(np.exp(generator.uniform(low, high)))
            yield from drawn(problem, share, [float(generator.uniform(0, 1.2))], generator)

    elastic = search_elastic.fine_tuned(
        problem, endless(), replace(problem.fine_tuner, steps=steps, learning_rate=RATE)
    )
    rows = []
    for plan in plans:
        row = judge.scores(f"elastic, {steps} steps for all", elastic.network(plan))
        own = fine_tune(problem, elastic.network(plan), WARM)
        rows.append(row | judge.scores(f"elastic, {steps} steps for all, then {WARM}", own))
    return rows


def correlation(first: list[float], second: list[float]) -> float:
    """Spearman's, with ties ranked alike."""
    ranks = []
    for values in (first, second):
        array = np.array(values)
        ranks.append([(np.sum(array < value) + np.sum(array <= value) - 1) / 2 for value in array])
    return float(np.corrcoef(ranks)[0, 1])


class Kept:
    """Rows in a file, by key."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.rows: dict[str, Any] = {entry["key"]: entry["rows"] for entry in map(json.loads, lines)}

    def of(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """The rows of a key, made where they are missing."""
        name = json.dumps(key)
        if name not in self.rows:
            start = time.perf_counter()
            self.rows[name] = make()
            with self.file.open("a") as log:
                log.write(json.dumps({"key": name, "rows": self.rows[name]}) + "\n")
            print(f"{name[:60]}: {time.perf_counter() - start:.0f} s", flush=True)
        return self.rows[name]


def report(found: dict[tuple[str, str], list[float]]) -> dict[str, float]:
    """Print every score's correlation with the end, means over networks and their spread."""
    sorts = list(dict.fromkeys(sort for sort, _ in found))
    print(f"\nSpearman with the accuracy in the end{'':8}" + "".join(f"{sort:>18}" for sort in sorts))
    for name in dict.fromkeys(name for _, name in found):
        cells = (found.get((sort, name), []) for sort in sorts)
        print(f"{name:45}" + "".join(f"{mean(cell):>9.2f} +-{pstdev(cell):.2f} ({len(cell)})" for cell in cells))
    return {f"{sort}: {name}": round(mean(values), 3) for (sort, name), values in found.items()}


def measured(
    problem: SearchContext, judge: Judge, kept: Kept, options: argparse.Namespace, seed: int
) -> dict[tuple[str, str], float]:
    """The correlation of every score with the end, over the plans of one network."""
    what = [options.network, seed, options.share]
    sorts = {"near": near(problem, options.share, options.near, seed)}
    sorts["far"] = far(problem, options.share, options.far, seed)
    plans = list(dict.fromkeys(plan for sort in sorts.values() for plan in sort))
    counts = [options.near, options.far]

    def own(plan: RankPlan) -> Row:
        key = [*what, options.long, plan.to_json()]
        found: Row = kept.of(key, lambda: own_scores(problem, judge, plan, options.long))
        return found

    def elastic(steps: int) -> list[Row]:
        key = ["elastic", *what, *counts, steps]
        found: list[Row] = kept.of(key, lambda: elastic_scores(problem, judge, plans, steps, seed))
        return found

    groups = [kept.of(["warm", *what, *counts], lambda: warm_scores(problem, judge, plans))]
    groups += [elastic(steps) for steps in options.elastic]
    groups.append([own(plan) for plan in plans])
    rows = {plan: dict(ChainMap(*of_plan)) for plan, *of_plan in zip(plans, *groups, strict=True)}
    found = {}
    for sort, of_sort in {**sorts, "both": plans}.items():
        last = [rows[plan]["end: accuracy"] for plan in of_sort]
        print(f"seed {seed}, {sort}: {len(of_sort)} plans, {100 * min(last):.1f} to {100 * max(last):.1f} % in the end")
        for name in rows[plans[0]]:
            if name != "end: accuracy":
                found[sort, name] = correlation([rows[plan][name] for plan in of_sort], last)
    return found


def main() -> None:
    """Score the plans, fine-tune them for long, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmarks/search_quality"))
    parser.add_argument("--network", default="resnet", choices=schemes.NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--near", type=int, default=12, help="plans around the closed form's")
    parser.add_argument("--far", type=int, default=10, help="plans of rules and at random")
    parser.add_argument("--share", type=float, default=0.125)
    parser.add_argument("--elastic", nargs="*", type=int, default=[400, 1600], help="steps of the elastic network")
    parser.add_argument("--long", type=int, default=400, help="steps to the end")
    options = parser.parse_args()
    logging.getLogger("ranksearch").setLevel(logging.WARNING)
    options.outputs.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], list[float]] = {}
    kept, images = Kept(options.outputs / "scores.jsonl"), schemes.read(options.data)
    data = search_quality.splits(images, options.data)
    for seed in options.seeds:
        model = schemes.trained(options.network, seed, 1500, images, options.outputs)
        problem = search_quality.problem_of(model, data, "all four", seed, options.long)
        judge = Judge(problem, images)
        for key, value in measured(problem, judge, kept, options, seed).items():
            found.setdefault(key, []).append(value)
    print(json.dumps({"torch": torch.__version__, **report(found)}))


if __name__ == "__main__":
    main()
