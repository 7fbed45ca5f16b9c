"""Worker processes of one study that are killed at random moments; started by the tests as a process of its own.

`python tests/support/faults.py STORAGE FOLDER KILLS SEED` prints a line of JSON: the invariants of a study.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, whose threads would not survive a fork
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import optuna
import torch
from leftovers import left_over
from optuna import Study
from optuna.storages import BaseStorage

from ranksearch.cost.macs import MacsCost
from ranksearch.data.builtin import digits
from ranksearch.files import write_json
from ranksearch.locks import exclusive
from ranksearch.models.cifar import cifar_resnet
from ranksearch.report.artifacts import front_content, write_trials
from ranksearch.results.pareto import pareto_front
from ranksearch.results.trials import TrialRecord, count_finished, read_trials
from ranksearch.samplers.thompson import ThompsonSampler
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import SpaceSettings
from ranksearch.storage import journal, rdb, sqlite
from ranksearch.storage.stale_trials import wait_for_running_trials
from ranksearch.study.context import SearchContext, SearchInputs, build_context, build_search_space
from ranksearch.study.create import open_study
from ranksearch.study.loop import enqueue_closed_form, run_trials
from ranksearch.study.settings import CalibrationSettings, StudySettings
from ranksearch.training.baseline import ensure_baseline
from ranksearch.training.recipe import BaselineSettings, Recipe

CPU = torch.device("cpu")
WORKERS = 4
HEARTBEAT = 1  # seconds


def open_storage(where: str, folder: Path) -> BaseStorage:
    if where == "sqlite":
        return sqlite(str(folder / "studies.db"), HEARTBEAT)
    if where == "journal":
        return journal(str(folder / "studies.journal"), HEARTBEAT)
    return rdb(where, HEARTBEAT)


def make_context() -> SearchContext:
    splits = digits(image_size=8, validation_share=0.2, test_share=0.2, split_seed=0)
    torch.manual_seed(0)
    model = cifar_resnet(8, 10).eval()
    space = build_search_space(model, splits, SpaceSettings(), MacsCost(), CPU)
    budget = Constraint(1.5).budget(space)
    settings = CalibrationSettings(64, 32, comparison_images=32, sequential_images=32)
    return build_context(SearchInputs(model, splits, space, budget, Recipe(1, learning_rate=0.01), 0, CPU), settings)


def work(context: SearchContext, where: str, folder: Path, number: int, n_trials: int) -> None:
    """What a process of a search does: baseline, queue, trials, artifacts."""
    torch.manual_seed(number % 3)
    fresh = cifar_resnet(8, 10)
    made_from, nothing = {"model": "resnet8"}, lambda step, loss: None
    kept = {"made_from": made_from, "seed": number % 3, "device": CPU, "on_step": nothing}
    ensure_baseline(fresh, context.splits, BaselineSettings(4), folder / "cache", **kept)
    storage = open_storage(where, folder)
    study = open_study("s", storage, {"seed": 0})
    settings = StudySettings("s", n_trials, closed_form_trials=4)
    with exclusive(folder / "closed_form.lock", "queues plans"):
        enqueue_closed_form(study, storage, context, settings)
    told = (folder / f"told-{os.getpid()}").open("a")

    def on_trial(record: TrialRecord) -> None:
        value = None if record.result is None else record.result.accuracy
        told.write(json.dumps([record.number, record.state, value]) + "\n")
        told.flush()
        write(context, study, folder)

    run_trials(study, context, settings, ThompsonSampler(0), on_trial)
    wait_for_running_trials(study, storage)


def write(context: SearchContext, study: Study, folder: Path) -> None:
    records = read_trials(study)
    metadata = context.describe(command="", model="resnet8", dataset="digits", speedup=1.5, trials=0)
    write_trials(folder / "trials.csv", metadata, records)
    write_json(folder / "front.json", front_content("s", metadata, pareto_front(records)))


def start(*arguments: Any) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return pid


def main(where: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    generator, context, started = random.Random(seed), make_context(), 0
    folder.mkdir(parents=True, exist_ok=True)
    living: list[int] = []
    for kill in range(kills):
        while len(living) < WORKERS:
            living.append(start(context, where, folder, started, 10**6))
            started += 1
        time.sleep(generator.uniform(0.0, 2.0))
        victims = living if kill % 10 == 9 else [generator.choice(living)]
        for pid in list(victims):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            living.remove(pid)
    for pid in living:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    time.sleep(3 * HEARTBEAT)  # until the trials of the killed are stale, and are queued again before others
    study = open_study("s", open_storage(where, folder), {"seed": 0})
    n_trials = count_finished(study.trials) + 2 * WORKERS
    last = [start(context, where, folder, started + index, n_trials) for index in range(WORKERS)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in last]
    return {"kills": kills, "failed": sum(code != 0 for code in codes), **invariants(folder, study, n_trials)}


def invariants(folder: Path, study: Study, n_trials: int) -> dict[str, Any]:
    records = {record.number: record for record in read_trials(study)}
    told = [json.loads(line) for file in folder.glob("told-*") for line in file.read_text().splitlines()]
    lost = 0
    for number, state, value in told:
        found = records.get(number)
        kept = None if found is None or found.result is None else found.result.accuracy
        lost += found is None or found.state != state or kept != value
    ended = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]
    plans = Counter(json.dumps(trial.params, sort_keys=True) for trial in ended)
    halves = left_over(folder)
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    front_of_file = json.loads((folder / "front.json").read_text())["points"]
    whole = all(None not in row.values() for row in rows) and len(front_of_file) == len(
        pareto_front(list(records.values()))
    )
    return {
        "finished": count_finished(study.trials),
        "told": len(told),
        "lost": lost,
        "told_twice": len(told) - len({number for number, *_ in told}),
        "duplicates": sum(count - 1 for count in plans.values()),
        "halves": halves,
        "whole": whole,
        "running": sum(record.state == "RUNNING" for record in records.values()),
        "overshoot": count_finished(study.trials) - n_trials,
        "closed_form": sum(record.closed_form and record.state == "COMPLETE" for record in records.values()),
        "queued": len({json.dumps(t.params, sort_keys=True) for t in study.trials if t.user_attrs.get("closed_form")}),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
