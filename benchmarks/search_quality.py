"""How good plans are after so many trials, by search and by rule. Run: python benchmarks/search_quality.py [--quick].

Fashion-MNIST and the networks of `schemes.py`. Trials are scored on 3,000 held-out training images; what is reported is
the accuracy on the test images, which nothing is chosen by, after several lengths of fine-tuning. All contestants have
the same factors, recalibration, fine-tuning and batches; a search is a study of ranksearch's own, from half the MACs
down to an eighth.

Everything is kept under --outputs, studies in one database and figures in one file, so a run that was stopped goes on.
Parts can be given to several runs: --seeds, --schemes, --contestants, --report. A table is printed, search_quality.csv
and search_quality.svg are written, and the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import schemes
import search_report
import search_rivals
import torch
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from torch import nn
from torch.utils.data import TensorDataset

from ranksearch.allocation.closed_form import closed_form
from ranksearch.allocation.lagrangian import allocate
from ranksearch.allocation.sensitivity import Fisher, Mixture, Probes, Proxy, Relative
from ranksearch.cost.macs import MacsCost
from ranksearch.data.splits import Splits
from ranksearch.plan import RankPlan
from ranksearch.results.trials import TrialRecord, read_trials
from ranksearch.samplers.thompson import ThompsonSampler
from ranksearch.search_space.rules import Rule, SpaceSettings
from ranksearch.storage import sqlite
from ranksearch.study.context import SearchContext, SearchInputs, build_context, build_search_space
from ranksearch.study.create import open_study
from ranksearch.study.evaluate import evaluate_plan
from ranksearch.study.loop import enqueue_closed_form, run_trials
from ranksearch.study.settings import CalibrationSettings, StudySettings
from ranksearch.training.loop import evaluate
from ranksearch.training.recipe import Recipe

CPU = torch.device("cpu")
BUDGETS = (0.5, 0.3, 0.2, 0.125)
VALIDATION = 3000
LONG = 100  # steps
KINDS = {"full only": ["full"], "all four": ["full", "vertical", "horizontal", "pointwise"]}
# Sampler, and how many of its trials are closed-form plans.
SEARCHES: dict[str, tuple[Callable[[int], BaseSampler], int]] = {
    "random": (lambda seed: RandomSampler(seed=seed), 0),
    "TPE": (lambda seed: TPESampler(seed=seed), 0),
    "TPE from the closed form": (lambda seed: TPESampler(seed=seed), 8),
    "NSGA-II": (lambda seed: NSGAIISampler(seed=seed, population_size=20), 0),
    "GP": (lambda seed: GPSampler(seed=seed), 0),
    "guided": (lambda seed: ThompsonSampler(seed), 8),
}
RULES = ("one ratio", "energy threshold", "ALDS-like", "AIMET-like")
# The plan of least total error, errors weighed by every proxy; the closed form compares a few more by the first.
PROXIES: dict[str, Proxy] = {
    "BALF-like": Relative(),
    "Fisher": Fisher(),
    "root of Fisher": Fisher(power=0.5),
    "probes": Probes(),
    "root of probes": Probes(power=0.5),
    "Fisher and probes": Mixture([Fisher(power=0.5), Probes(power=0.5)]),
}
CONTESTANTS = [*RULES, *PROXIES, "closed form", *SEARCHES]


def splits(data: schemes.Data, folder: Path) -> Splits:
    """Training images but the held-out ones, some of these to choose on, and the test images to report on."""
    test, labels = schemes.decode(folder, "t10k")
    end = len(data.images) - schemes.HELD_OUT
    return Splits(
        TensorDataset(data.images[:end], data.labels[:end]),
        TensorDataset(data.images[end : end + VALIDATION], data.labels[end : end + VALIDATION]),
        TensorDataset(test.contiguous(memory_format=torch.channels_last), labels),
        10,
    )


def problem_of(model: nn.Module, data: Splits, kinds: str, seed: int, steps: int) -> SearchContext:
    """The search from half the MACs down."""
    settings = SpaceSettings(default=Rule(schemes=KINDS[kinds]))
    space = build_search_space(model, data, settings, MacsCost(), CPU)
    budget = int(BUDGETS[0] * space.cost.dense)
    return build_context(SearchInputs(model, data, space, budget, recipe(steps), seed, CPU), CalibrationSettings())


def recipe(steps: int) -> Recipe:
    """A fine-tuning of so many steps: the product's brief one, or its long one, which bears a higher rate."""
    return Recipe(steps=steps, learning_rate=0.005 if steps < LONG else 0.02, distillation=0.7)


class Figures:
    """What plans reach after fine-tuning; each is measured once and kept."""

    def __init__(self, file: Path) -> None:
        self.file = file
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self.known = {row.pop("key"): row for row in rows}

    def of(self, problem: SearchContext, plan: RankPlan, seed: int, steps: int) -> dict[str, float]:
        """Accuracy on the test images and loss on the validation images after so many steps."""
        key = json.dumps([seed, steps, plan.to_json()], sort_keys=True)
        if key not in self.known:
            network, result = evaluate_plan(problem, plan, recipe(steps))
            self.known[key] = {"accuracy": evaluate(network, problem.test()).accuracy, "loss": result.loss}
            with self.file.open("a") as file:
                file.write(json.dumps({"key": key, **self.known[key]}) + "\n")
        return dict(self.known[key])


def hypervolume(records: Sequence[TrialRecord], dense: int) -> float:
    """The area under the front of validation accuracy over the logarithm of MACs, from an eighth to half, 0 to 1."""
    low, high = math.log(BUDGETS[-1] * dense), math.log(BUDGETS[0] * dense)
    points = sorted((math.log(r.result.macs), r.result.accuracy) for r in records if r.result is not None)
    area, best, at = 0.0, 0.0, low
    for place, accuracy in points:
        if accuracy > best:
            place = min(max(place, low), high)
            area, at, best = area + best * (place - at), place, accuracy
    return (area + best * (high - at)) / (high - low)


def best_within(records: Sequence[TrialRecord], budget: float) -> dict[str, Any]:
    """The plan that validation would pick, and the least loss that any trial had on the validation images."""
    fitting = [r.result for r in records if r.result is not None and r.result.macs <= budget]
    if not fitting:
        return {"plan": None}
    picked = max(fitting, key=lambda result: (result.accuracy, -result.macs))
    return {"plan": picked.plan, "least_loss": min(result.loss for result in fitting)}


def contest(
    name: str, kinds: str, seed: int, problem: SearchContext, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Plans of every budget after every number of trials, and hypervolumes."""
    dense = problem.space.cost.dense
    found: list[dict[str, Any]] = []
    if name in SEARCHES:
        sampler, first = SEARCHES[name]
        storage = sqlite(str(options.outputs / "studies.db"))
        study = open_study(f"{seed} {kinds} {name} {options.steps}", storage, {"seed": seed})
        counts = [count for count in options.trials if count > 0]
        start, before = time.perf_counter(), len(study.trials)
        settings = StudySettings(study.study_name, max(counts), first)
        enqueue_closed_form(study, storage, problem, settings)
        run_trials(study, problem, settings, sampler(1000 * seed + before), lambda record: None)
        seconds = time.perf_counter() - start
        if before < max(counts):
            print(f"{study.study_name}: {max(counts) - before} trials in {seconds:.0f} s", flush=True)
        records = read_trials(study)
        for count in counts:
            for share in BUDGETS:
                found.append({"trials": count, "share": share, **best_within(records[:count], share * dense)})
            found.append({"trials": count, "hypervolume": hypervolume(records[:count], dense)})
        return found
    trials, budgets = 0, [int(share * dense) for share in BUDGETS]
    if name in PROXIES:
        weighted = problem.weighted(PROXIES[name].weights(problem))
        plans = [allocate(problem.space, weighted.weighted_errors, budget) for budget in budgets]
    elif name == "closed form":
        plans = closed_form(problem, budgets)
    elif name == "AIMET-like":
        losses, trials = search_rivals.alone(problem)
        plans = [search_rivals.equal_loss(problem, losses, budget) for budget in budgets]
    else:
        rule = search_rivals.allocators(problem)[name]
        plans = [rule(budget) for budget in budgets]
    return [{"trials": trials, "share": share, "plan": plan} for share, plan in zip(BUDGETS, plans, strict=True)]


def main() -> None:
    """Run what was asked for, and print what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a short training, one seed, three contestants: five minutes"
    )
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmarks/search_quality"))
    parser.add_argument("--network", default="resnet", choices=schemes.NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--schemes", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--trials", nargs="+", type=int, default=[8, 32, 100])
    parser.add_argument("--steps", type=int, default=30, help="of a trial's fine-tuning")
    parser.add_argument("--report", nargs="*", type=int, default=[0, 50, 150, 400], help="steps before the test")
    options = parser.parse_args()
    training = 1500
    if options.quick:
        options.network, options.seeds, options.schemes, options.trials, training = (
            "vgg",
            [0],
            ["all four"],
            [8, 16],
            300,
        )
        options.steps, options.report = 0, [0]
        options.contestants = ["one ratio", "ALDS-like", "BALF-like", "closed form", "random", "TPE", "guided"]
    logging.getLogger("ranksearch").setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options.outputs /= f"{options.network}-{training}"  # what is kept depends on both
    options.outputs.mkdir(parents=True, exist_ok=True)
    images = schemes.read(options.data)
    data, figures, rows = splits(images, options.data), Figures(options.outputs / "figures.jsonl"), []
    for seed in options.seeds:
        model = schemes.trained(options.network, seed, training, images, options.outputs)
        for kinds in options.schemes:
            problem = problem_of(model, data, kinds, seed, options.steps)
            for name in options.contestants:
                for entry in contest(name, kinds, seed, problem, options):
                    facts = {"name": name, "kinds": kinds, "seed": seed, "trial_steps": options.steps, **entry}
                    plan, least = facts.pop("plan", None), facts.pop("least_loss", None)
                    if "hypervolume" in facts:
                        rows.append(facts)
                        continue
                    for steps in options.report:
                        found = {} if plan is None else figures.of(problem, plan, seed, steps)
                        if steps == options.steps and least is not None:
                            found["least_loss"] = least  # trials had as many steps
                        rows.append({**facts, "steps": steps, **found})
    means = search_report.table(rows)
    for trials in options.trials:
        search_report.compare(rows, ("guided", trials), ("BALF-like", 0))
    search_report.write_csv(rows, options.outputs / "search_quality.csv")
    search_report.picture(rows, options.outputs / "search_quality.svg")
    print(json.dumps({"quick": options.quick, "torch": torch.__version__, **means}))


if __name__ == "__main__":
    main()
