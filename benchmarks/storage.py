"""How busy many workers of one study keep: trials are replaced by a sleep, all else is what a search does.

`python benchmarks/storage.py --storage journal --workers 8 --trials 160 --seconds 10` forks the workers, lets them
search the layers of a ResNet-56 with `sampler=guided`, and prints what share of their time went into trials, into the
sampler and into everything else, which is the storage. A PostgreSQL server is given by its URL in RANKSEARCH_STORAGE.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, whose threads would not survive a fork

import optuna
import torch

from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.factorize import profile_layers
from ranksearch.models.cifar import cifar_resnet
from ranksearch.plan import RankPlan
from ranksearch.results.trials import TrialResult
from ranksearch.samplers.thompson import ThompsonSampler
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import SpaceSettings, build_space
from ranksearch.storage import journal, rdb, sqlite
from ranksearch.study import loop
from ranksearch.study.context import SearchContext
from ranksearch.study.create import open_study
from ranksearch.study.loop import run_trials
from ranksearch.study.settings import StudySettings
from ranksearch.training.recipe import Recipe

SHAPE = (3, 32, 32)
SPREAD = 0.15  # of the logarithm of a trial's seconds


def describe(depth: int) -> SearchContext:
    """A search over a ResNet's layers, with errors that fall exponentially with the rank."""
    model = cifar_resnet(depth, 10)
    profile = profile_layers(model, torch.empty(1, *SHAPE))
    cost = NetworkCost(MacsCost(), MacsCost().network(model, SHAPE), {spec.name: spec for spec in profile.layers})
    space = build_space(SpaceSettings(), profile, cost)
    draw = random.Random(0)
    errors = {
        layer.spec.name: {
            scheme: [math.exp(-rank / rate) for rank in range(layer.spec.break_even_rank(scheme) + 1)]
            for scheme in layer.schemes
            for rate in [draw.uniform(4, 30)]
        }
        for layer in space.layers
    }
    budget = Constraint(1.5).budget(space)
    return cast(
        SearchContext,
        SimpleNamespace(space=space, weighted_errors=errors, errors=errors, budget=budget, fine_tuner=Recipe(60)),
    )


def work(problem: SearchContext, options: argparse.Namespace, folder: Path, number: int) -> None:
    """One worker: a search whose trials sleep."""
    spent, draw = {"trials": 0.0, "sampler": 0.0}, random.Random(number)

    def sleep(
        problem: SearchContext, plan: RankPlan, recipe: Recipe, *, rungs: Any, on_rung: Any
    ) -> tuple[None, TrialResult]:
        errors = [problem.errors[name][choice.scheme][choice.latent_size] for name, choice in plan]
        accuracy = 0.93 - 0.1 * sum(errors) / len(errors) + draw.gauss(0, 0.002)
        seconds = options.seconds * math.exp(draw.gauss(0, SPREAD))
        for share, step in ((0.1, 0), (0.7, 45), (0.2, None)):
            start = time.perf_counter()
            time.sleep(share * seconds)
            spent["trials"] += time.perf_counter() - start
            if step is not None:
                on_rung(step, accuracy)
        cost = problem.space.cost.total(plan)
        speedup = problem.space.cost.dense / cost
        return None, TrialResult(plan, cost, speedup, cost, 1, accuracy, accuracy, 1 - accuracy, {"fine_tune": seconds})

    propose = ThompsonSampler.propose

    def timed(self: ThompsonSampler, *known: Any) -> Any:
        start = time.perf_counter()
        found = propose(self, *known)
        spent["sampler"] += time.perf_counter() - start
        return found

    vars(loop)["evaluate_plan"] = sleep
    ThompsonSampler.propose = timed
    build = {"sqlite": sqlite, "journal": journal}.get(options.storage)
    storage = build(str(folder / "studies")) if build else rdb(os.environ["RANKSEARCH_STORAGE"])
    study = open_study(options.name, storage, {})
    start, cpu = time.perf_counter(), time.process_time()
    run_trials(study, problem, StudySettings(options.name, options.trials), ThompsonSampler(), lambda record: None)
    figures = {**spent, "all": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    (folder / f"{number}.json").write_text(json.dumps(figures))


def main() -> None:
    """Fork the workers, wait for them, and print what their time went into."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options = parser.parse_args()
    problem = describe(options.depth)
    options.name = f"{options.workers}-{options.trials}-{time.time()}"
    with tempfile.TemporaryDirectory() as temporary:
        folder, children, start = Path(temporary), [], time.perf_counter()
        for number in range(options.workers):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    work(problem, options, folder, number)
                    code = 0
                except BaseException as error:
                    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                finally:
                    os._exit(code)
            children.append(child)
        failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
        wall = time.perf_counter() - start
        figures = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    total = {key: sum(entry[key] for entry in figures) for key in ("trials", "sampler", "all", "cpu")}
    busy, sampler = total["trials"] / total["all"], total["sampler"] / total["all"]
    found = {
        "storage": options.storage,
        "layers": len(problem.space.layers),
        "workers": options.workers,
        "trials": options.trials,
        "seconds_of_a_trial": options.seconds,
        "failed_workers": failed,
        "wall_seconds": round(wall, 1),
        "busy": round(busy, 4),
        "sampler_share": round(sampler, 4),
        "storage_share": round(1 - busy - sampler, 4),
        "cpu_seconds_of_a_trial": round(total["cpu"] / options.trials, 3),
    }
    print(json.dumps(found))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--storage", choices=["sqlite", "journal", "rdb"], default="journal")
parser.add_argument("--workers", type=int, default=8)
parser.add_argument("--trials", type=int, default=160)
parser.add_argument("--seconds", type=float, default=10.0, help="of a trial, the median")
parser.add_argument("--depth", type=int, default=56, help="of the ResNet")

if __name__ == "__main__":
    main()
