"""The picked plan, fine-fine_tuned longer, from several seeds if asked for, and measured on the test split."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from torch import nn

from ranksearch.checkpoint import Checkpoint
from ranksearch.errors import PlanError, SettingError
from ranksearch.factorize import factorized_like
from ranksearch.files import read_weights
from ranksearch.fine_tuning import FineTuning
from ranksearch.latency import MeasuredLatency
from ranksearch.loading import WEIGHTS_FILE, read_plan_file, save_network
from ranksearch.problem import Problem
from ranksearch.provenance import settings_hash
from ranksearch.records import FrontPoint, TrialRecord
from ranksearch.training import Evaluation, evaluate
from ranksearch.trial import TrialResult, evaluate_plan
from ranksearch.wall_clock import WallClock, measured_on, time_side_by_side

log = logging.getLogger(__name__)
UNFINISHED = "unfinished"
EXPORTS = "export"
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class FinalizeSettings:
    """How the picked plan is finished.

    Attributes:
        steps: of its fine-tuning, with the recipe of the trials otherwise.
        learning_rate: of the same; None for four times that of the trials, which a longer fine-tuning bears, or for
            what a recipe of one's own makes of it.
        seeds: how many fine-tunings, each with batches of its own; the spread between them says what a difference is
            worth.
        checkpoint_every: steps after which the fine-tuning is kept, to go on from after an interruption.
        time_batches: sizes of the batches on which the network is timed beside the dense one.
    """

    steps: int = 200
    learning_rate: float | None = None
    seeds: int = 1
    checkpoint_every: int = 100
    time_batches: list[int] = field(default_factory=lambda: [1, 64])

    def __post_init__(self) -> None:
        for what, least in (("steps", 0), ("seeds", 1), ("checkpoint_every", 1)):
            if getattr(self, what) < least:
                raise SettingError(what, getattr(self, what), f"is out of range: use {least} or more")
        if any(size < 1 for size in self.time_batches):
            raise SettingError("time_batches", self.time_batches, "are out of range: use 1 or more")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise SettingError("learning_rate", self.learning_rate, "is out of range: use above 0")


@dataclass(frozen=True)
class FineTuned:
    """One long fine-tuning.

    Attributes:
        seed: of its batches.
        validation: the network on the validation split.
        test: on the test split.
    """

    seed: int
    validation: Evaluation
    test: Evaluation


@dataclass(frozen=True)
class Finalized:
    """The end of a search, on the test split.

    Attributes:
        point: the picked trial.
        steps: of every fine-tuning.
        dense: the dense network.
        before: the picked plan before any fine-tuning.
        fine_tuned: after the longer fine-tuning, one for each seed.
        timed: the dense network and the written one side by side, on batches of several sizes.
        timed_on: the device, the numbers' type and the memory format of that, plain JSON values.
    """

    point: FrontPoint
    steps: int
    dense: Evaluation
    before: Evaluation
    fine_tuned: tuple[FineTuned, ...]
    timed: tuple[WallClock, ...]
    timed_on: Mapping[str, Any]

    @property
    def saved(self) -> FineTuned:
        """The one whose network is written: the most accurate on the validation split."""
        return max(self.fine_tuned, key=lambda fine_tuned: fine_tuned.validation.accuracy)

    @property
    def accuracy(self) -> float:
        """On the test split, the mean over seeds."""
        return mean(fine_tuned.test.accuracy for fine_tuned in self.fine_tuned)

    @property
    def spread(self) -> float:
        """Standard deviation of the same over seeds."""
        return pstdev(fine_tuned.test.accuracy for fine_tuned in self.fine_tuned)

    def said(self) -> str:
        """The accuracy on the test split as text, with its spread where there are several seeds."""
        several = f" +- {100 * self.spread:.2f} over {len(self.fine_tuned)} seeds" if len(self.fine_tuned) > 1 else ""
        return f"{self.accuracy:.2%}{several}"


def finalize(
    problem: Problem,
    study: str,
    picked: FrontPoint,
    settings: FinalizeSettings,
    latency: MeasuredLatency,
    recipe: Mapping[str, Any],
    compared: Mapping[str, Any],
    folder: Path,
    on_step: OnStep = lambda step, loss: None,
) -> Finalized:
    """Fine-tune the picked plan, read the test split, and write the network.

    A folder that already holds this very pick is read instead, so that running again reads no test image. What an
    interruption leaves is taken up again.

    Args:
        problem: that was searched.
        study: its name.
        picked: the plan.
        settings: the fine-tuning.
        latency: how networks are timed.
        recipe: how to build the dense network: ``_target_`` and its arguments.
        compared: the settings of the study, plain JSON values.
        folder: to write to.
        on_step: is told how many steps of all fine-tunings are over, and the loss.

    Raises:
        DivergedError: the fine-tuning's loss is not finite.
    """
    seeds = [problem.seed + index for index in range(settings.seeds)]
    long = problem.recipe.lengthened(settings.steps, settings.learning_rate)
    made_from = {
        "study": study,
        "settings": settings_hash(compared),
        "trial": picked.number,
        "fine_tune_steps": settings.steps,
        "learning_rate": getattr(long, "learning_rate", None),  # a recipe of one's own may have none
        "fine_tune_seeds": seeds,
    }
    known = _read(folder, made_from, picked, problem.model)
    if known is not None:
        log.info("finalize: %s already holds trial %d", folder, picked.number)
        return known
    fine_tuned, best, best_result = [], None, None
    for index, seed in enumerate(seeds):
        log.info("finalize: fine-tuning trial %d for %d steps, seed %d", picked.number, settings.steps, seed)
        before = index * settings.steps

        def tell(step: int, loss: float, before: int = before) -> None:
            on_step(before + step, loss)

        network, result = _tune(problem, picked, long, settings, seed, made_from, folder, tell)
        found = Evaluation(result.accuracy, result.loss)
        fine_tuned.append(FineTuned(seed, found, evaluate(network, problem.test())))
        if best_result is None or result.accuracy > best_result.accuracy:
            best, best_result = network, result
    assert best is not None
    assert best_result is not None
    before = evaluate(problem.build(picked.result.plan), problem.test())
    timed = _timed(problem, best, settings.time_batches, latency)
    dense, where = evaluate(problem.model, problem.test()), measured_on(problem.device, latency)
    finalized = Finalized(picked, settings.steps, dense, before, tuple(fine_tuned), timed, where)
    shutil.rmtree(folder / EXPORTS, ignore_errors=True)  # of another network
    save_network(folder, best, picked.result.plan, recipe, {**made_from, **_facts(problem, best_result, finalized)})
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return finalized


def _tune(
    problem: Problem,
    picked: FrontPoint,
    long: FineTuning,
    settings: FinalizeSettings,
    seed: int,
    made_from: Mapping[str, Any],
    folder: Path,
    on_step: OnStep,
) -> tuple[nn.Module, TrialResult]:
    """One long fine-tuning, from where it was interrupted."""
    of = {"fine_tune_seeds": seed, "asked_rate": settings.learning_rate, "plan": picked.result.plan.to_json()}
    known = json.dumps({**made_from, **of}, sort_keys=True)
    checkpoint = Checkpoint(folder / UNFINISHED / f"seed-{seed}.checkpoint", known, settings.checkpoint_every)
    fine_tuned = replace(problem, seed=seed)
    return evaluate_plan(fine_tuned, picked.result.plan, long, checkpoint=checkpoint, on_step=on_step)


def _timed(
    problem: Problem, network: nn.Module, batch_sizes: Sequence[int], latency: MeasuredLatency
) -> tuple[WallClock, ...]:
    found = []
    for size in batch_sizes:
        settings = replace(latency, batch_size=size)
        timed = time_side_by_side(problem.model, network, problem.splits.input_shape, problem.device, settings)
        log.info("finalize: by the clock, %s", timed.said())
        found.append(timed)
    return tuple(found)


def _facts(problem: Problem, result: TrialResult, finalized: Finalized) -> dict[str, Any]:
    saved = finalized.saved
    return {
        "seed": saved.seed,
        "input_shape": list(problem.splits.input_shape),
        "cost": result.cost,
        "dense_cost": problem.space.cost.dense,
        "cost_unit": problem.space.cost.model.unit,
        "speedup": result.speedup,
        "macs": result.macs,
        "dense_macs": problem.macs.dense,
        "params": result.params,
        "dense_params": problem.params,
        "wall_clock": {**finalized.timed_on, "batches": [asdict(timed) for timed in finalized.timed]},
        "validation": {"dense": vars(problem.baseline), "factorized": vars(saved.validation)},
        "test": {
            "dense": vars(finalized.dense),
            "before_fine_tuning": vars(finalized.before),
            "factorized": vars(saved.test),
        },
        "seeds": [
            {"seed": fine_tuned.seed, "validation": vars(fine_tuned.validation), "test": vars(fine_tuned.test)}
            for fine_tuned in finalized.fine_tuned
        ],
    }


def read_finalized(folder: Path, study: str, records: Sequence[TrialRecord]) -> Finalized | None:
    """What a folder says of the picked plan's end; None where it holds none of this study.

    Args:
        folder: that `finalize` wrote.
        study: its name.
        records: all its trials.
    """
    try:
        entries = read_plan_file(folder)
        if entries["study"] != study:
            return None
        known = {record.number: record for record in records}
        record = known[entries["trial"]]
        if record.result is None or entries["layers"] != record.result.plan.to_json():
            return None
        return _told(entries, FrontPoint(record.number, record.closed_form, record.result))
    except (PlanError, KeyError, TypeError):
        return None


def _read(folder: Path, made_from: Mapping[str, Any], picked: FrontPoint, dense: nn.Module) -> Finalized | None:
    try:
        entries = read_plan_file(folder)
        same = {key: entries[key] for key in made_from} == dict(made_from)
        if not same or entries["layers"] != picked.result.plan.to_json():
            return None
        read_weights(folder / WEIGHTS_FILE, factorized_like(dense, picked.result.plan))  # which must not be damaged
        return _told(entries, picked)
    except (PlanError, KeyError, TypeError):
        return None


def _told(entries: Mapping[str, Any], point: FrontPoint) -> Finalized:
    """Read what `_facts` says."""
    test = entries["test"]
    fine_tuned = tuple(
        FineTuned(entry["seed"], Evaluation(**entry["validation"]), Evaluation(**entry["test"]))
        for entry in entries["seeds"]
    )
    dense, before = Evaluation(**test["dense"]), Evaluation(**test["before_fine_tuning"])
    where = dict(entries["wall_clock"])
    timed = tuple(WallClock(**entry) for entry in where.pop("batches"))
    return Finalized(point, entries["fine_tune_steps"], dense, before, fine_tuned, timed, where)
