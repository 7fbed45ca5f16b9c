"""Which score of a trial predicts the accuracy after long fine-tuning. Run: python benchmarks/search_scores.py.

Plans of one budget, an eighth of the MACs, drawn around the closed form's; networks, data and splits as in
`search_quality.py`. Every score and the accuracy after long fine-tuning are those of the 3,000 validation images; what
is printed is their rank correlation (Spearman) over the plans. Finished plans are kept under --outputs and read again.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import schemes
import search_quality
import torch

from ranksearch.allocation import OptionTable
from ranksearch.closed_form import divergence, predict
from ranksearch.plan import RankPlan
from ranksearch.problem import Problem
from ranksearch.training import evaluate
from ranksearch.trial import evaluate_plan


def drawn(problem: Problem, count: int, share: float, seed: int) -> list[RankPlan]:
    """Plans of least weighted error, for weights drawn around one; each once, the unweighted first."""
    generator, table = np.random.default_rng(seed), OptionTable.of(problem.space.options(problem.errors))
    budget = share * problem.space.cost.dense - problem.space.fixed_cost
    plans: dict[RankPlan, None] = {}
    for spread in (0.0, *np.linspace(0.3, 1.2, 10 * count)):
        weights = np.exp(spread * generator.standard_normal((len(table.names), 1)))
        plans[table.plan(table.best(budget, table.errors * weights))] = None
        if len(plans) == count:
            break
    return list(plans)


def scores(problem: Problem, plan: RankPlan, lengths: list[int]) -> dict[str, float]:
    """Every score of a plan; higher is better."""
    found: dict[str, float] = {
        "expected error": -sum(problem.errors[name][choice.scheme][choice.latent_size] for name, choice in plan)
    }
    dense = predict(problem.model, problem.comparison)
    for solved, base in (("each by itself", replace(problem, sequential=None)), ("in turn", problem)):
        network = base.build(plan)
        found[f"{solved}: accuracy"] = evaluate(network, problem.validation()).accuracy
        found[f"{solved}: divergence"] = -divergence(predict(network, problem.comparison), dense)
    for length in lengths:
        start = time.perf_counter()
        _, result = evaluate_plan(problem, plan, replace(problem.recipe, steps=length))
        found[f"{length} steps: accuracy"], found[f"{length} steps: loss"] = result.accuracy, -result.loss
        found[f"{length} steps: seconds"] = time.perf_counter() - start
    return found


def correlation(first: list[float], second: list[float]) -> float:
    """Spearman's, with ties ranked alike."""
    ranks = []
    for values in (first, second):
        array = np.array(values)
        ranks.append([(np.sum(array < value) + np.sum(array <= value) - 1) / 2 for value in array])
    return float(np.corrcoef(ranks)[0, 1])


def main() -> None:
    """Score the plans, fine-tune them for long, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmarks/search_quality"))
    parser.add_argument("--network", default="resnet", choices=schemes.NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--plans", type=int, default=14)
    parser.add_argument("--share", type=float, default=0.125)
    parser.add_argument("--steps", nargs="+", type=int, default=[30, 50, 400], help="the last is the long one")
    options = parser.parse_args()
    logging.getLogger("ranksearch").setLevel(logging.WARNING)
    options.outputs.mkdir(parents=True, exist_ok=True)
    file = options.outputs / "scores.jsonl"
    known = {line["key"]: line for line in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    images, results = schemes.read(options.data), {}
    data = search_quality.splits(images, options.data)
    for seed in options.seeds:
        model = schemes.trained(options.network, seed, 1500, images, options.outputs)
        problem = search_quality.problem_of(model, data, "all four", seed, options.steps[0])
        rows = []
        for plan in drawn(problem, options.plans, options.share, seed):
            key = json.dumps([options.network, seed, options.steps, plan.to_json()])
            if key not in known:
                known[key] = {"key": key, **scores(problem, plan, options.steps)}
                with file.open("a") as log:
                    log.write(json.dumps(known[key]) + "\n")
            rows.append(known[key])
        final = f"{options.steps[-1]} steps: accuracy"
        last = [row[final] for row in rows]
        macs = f"{options.share:.1%} of the MACs"
        print(
            f"\n{options.network}, seed {seed}, {len(rows)} plans of {macs}, {options.steps[-1]} steps: "
            f"{100 * min(last):.1f} to {100 * max(last):.1f} %"
        )
        for name in rows[0]:
            if name not in ("key", final) and not name.endswith("seconds"):
                found = correlation([row[name] for row in rows], last)
                results[f"{options.network},{seed},{name}"] = round(found, 3)
                print(f"{name:32}{found:>7.2f}")
    print(json.dumps({"torch": torch.__version__, **results}))


if __name__ == "__main__":
    main()
