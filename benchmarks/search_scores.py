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
from typing import Any

import numpy as np
import schemes
import search_elastic
import search_quality
import search_rivals
import torch
from torch import nn

from ranksearch.allocation import OptionTable
from ranksearch.closed_form import divergence, predict
from ranksearch.datasets import batches, endless_batches
from ranksearch.experience import Options
from ranksearch.factorize import FactorizedConv2d, FactorizedLinear
from ranksearch.plan import SCHEMES, RankPlan
from ranksearch.problem import Problem
from ranksearch.training import evaluate, train

Row = dict[str, Any]
SHORT = (10, 30, 50)  # lengths of fine-tuning that a trial could afford
WARM = 10  # steps of a trial that starts from a finished one


def drawn(
    problem: Problem, share: float, spreads: Iterator[float], generator: np.random.Generator
) -> Iterator[RankPlan]:
    """Plans of least weighted error, for weights of layers and schemes drawn around one."""
    options = Options.of(problem.space, problem.errors, problem.budget)
    for spread in spreads:
        weights = spread * generator.standard_normal(len(options.table.names) + len(SCHEMES))
        budget = options.rest(share * problem.space.cost.dense)
        yield options.table.plan(options.table.best(budget, options.weighed(weights, 1.0)))


def near(problem: Problem, share: float, count: int, seed: int) -> list[RankPlan]:
    """So many plans around the closed form's, which is the first."""
    spreads = itertools.chain([0.0], np.linspace(0.3, 1.2, 10 * count))
    plans = drawn(problem, share, spreads, np.random.default_rng(seed))
    return list(itertools.islice(dict.fromkeys(plans), count))


def far(problem: Problem, share: float, count: int, seed: int) -> list[RankPlan]:
    """The rules' plans, those of fewer schemes, and random ones brought down to the budget."""
    space, budget = problem.space, int(share * problem.space.cost.dense)
    plans = [allocate(budget) for allocate in search_rivals.allocators(problem).values()]
    plans += [space.restricted([scheme]).allocate(problem.errors, budget) for scheme in SCHEMES]
    generator, table = np.random.default_rng(seed), OptionTable.of(space.options(problem.errors))
    sizes = np.isfinite(table.errors).sum(1)
    while len(dict.fromkeys(plans)) < count:
        random = table.plan(generator.integers(sizes))
        plans.append(space.plan(space.shrink(space.values(random), budget)))
    return list(dict.fromkeys(plans))[:count]


class Judge:
    """Scores networks of one problem; higher is better."""

    def __init__(self, problem: Problem, data: schemes.Data) -> None:
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


def fine_tune(problem: Problem, network: nn.Module, steps: int) -> nn.Module:
    """Train a network as a trial does, in place."""
    torch.manual_seed(problem.seed)
    recipe = replace(problem.recipe, steps=steps)
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


def own_scores(problem: Problem, judge: Judge, plan: RankPlan, long: int) -> Row:
    """What a plan's own network says, without and with fine-tuning, and how it ends."""
    row: Row = {
        "expected error": -sum(problem.errors[name][choice.scheme][choice.latent_size] for name, choice in plan)
    }
    row |= judge.scores("each by itself", replace(problem, sequential=None).build(plan))
    row |= judge.scores("0 steps", problem.build(plan))
    for steps in SHORT:
        row |= judge.scores(f"{steps} steps", fine_tune(problem, problem.build(plan), steps))
    return row | judge.end(fine_tune(problem, problem.build(plan), long))


def warm_scores(problem: Problem, judge: Judge, plans: list[RankPlan]) -> list[Row]:
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


def elastic_scores(problem: Problem, judge: Judge, plans: list[RankPlan], steps: int, seed: int) -> list[Row]:
    """One network fine-tuned for all, scored without a step of the plan's own and after a few."""
    generator = np.random.default_rng((seed, 1))

    def endless() -> Iterator[RankPlan]:
        low, high = np.log(search_quality.BUDGETS[-1]), np.log(search_quality.BUDGETS[0])
        while True:
            share = float(np.exp(generator.uniform(low, high)))
            yield from drawn(problem, share, [float(generator.uniform(0, 1.2))], generator)

    elastic = search_elastic.fine_tuned(problem, endless(), replace(problem.recipe, steps=steps))
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


def report(title: str, rows: list[Row]) -> dict[str, float]:
    """Print every score's correlation with the end."""
    last = [100 * row["end: accuracy"] for row in rows]
    print(f"\n{title}: {len(rows)} plans, {min(last):.1f} to {max(last):.1f} % in the end")
    print(f"{'':44}{'with the accuracy':>20}{'with the loss':>16}")
    found = {}
    for name in rows[0]:
        if name != "end: accuracy":
            both = [
                correlation([row[name] for row in rows], [row[end] for row in rows])
                for end in ("end: accuracy", "end: loss")
            ]
            found[f"{title}: {name}"] = round(both[0], 3)
            print(f"{name:44}{both[0]:>20.2f}{both[1]:>16.2f}")
    return found


def measured(problem: Problem, judge: Judge, kept: Kept, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """All scores of all plans of one network; reported."""
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
    results = {}
    for sort, of_sort in {**sorts, "near and far": plans}.items():
        title = f"{options.network}, seed {seed}, {options.share:.1%} of the MACs, {sort}"
        results |= report(title, [rows[plan] for plan in of_sort])
    return results


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
    kept, images, results = Kept(options.outputs / "scores.jsonl"), schemes.read(options.data), {}
    data = search_quality.splits(images, options.data)
    for seed in options.seeds:
        model = schemes.trained(options.network, seed, 1500, images, options.outputs)
        problem = search_quality.problem_of(model, data, "all four", seed, SHORT[0])
        judge = Judge(problem, images)
        results |= measured(problem, judge, kept, options, seed)
    print(json.dumps({"torch": torch.__version__, **results}))


if __name__ == "__main__":
    main()
