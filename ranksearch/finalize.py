"""The picked plan, fine-tuned for longer, from several seeds if asked for, and measured on the test split."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ranksearch.checkpoint import Checkpoint
from ranksearch.errors import DamagedError, PlanError, SettingError
from ranksearch.export import EXPORTED
from ranksearch.factorize import factorized_like
from ranksearch.files import read_weights, remove_files
from ranksearch.finalized import Finalized, FineTuned
from ranksearch.fine_tuning import FineTuning
from ranksearch.front import FrontPoint
from ranksearch.latency import MeasuredLatency
from ranksearch.loading import WEIGHTS_FILE, read_plan_file, save_network
from ranksearch.problem import Problem
from ranksearch.provenance import settings_hash
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
        learning_rate: of the same; None for that of the trials, or four times as much where theirs are briefer, which
            a longer fine-tuning bears, or for what a recipe of one's own makes of it.
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
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise SettingError("learning_rate", self.learning_rate, "is out of range: use a finite number above 0")

    @property
    def all_steps(self) -> int:
        """Of all fine-tunings together."""
        return self.steps * self.seeds


def finalize(
    problem: Problem,
    study: str,
    picked: FrontPoint,
    settings: FinalizeSettings,
    latency: MeasuredLatency,
    builder: Mapping[str, Any],
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
        builder: of the dense network: ``_target_`` and its arguments.
        compared: the settings of the study, plain JSON values.
        folder: to write to.
        on_step: is told how many steps of all fine-tunings are over, and the loss.

    Raises:
        DivergedError: the fine-tuning's loss is not finite.
    """
    seeds = [problem.seed + index for index in range(settings.seeds)]
    long = problem.fine_tuning.lengthened(settings.steps, settings.learning_rate)
    made_from = {
        "study": study,
        "settings_hash": settings_hash(compared),
        "trial": picked.number,
        "fine_tune_steps": settings.steps,
        "learning_rate": getattr(long, "learning_rate", None),  # a recipe of one's own may have none
        "fine_tune_seeds": seeds,
    }
    known = _read_own(folder, made_from, picked, problem.model)
    if known is not None:
        log.info("finalize: %s already holds trial %d", folder, picked.number)
        return known
    fine_tuned, best, best_result = [], None, None
    for index, seed in enumerate(seeds):
        log.info("finalize: fine-tuning trial %d for %d steps, seed %d", picked.number, settings.steps, seed)
        done = index * settings.steps

        def tell(step: int, loss: float, done: int = done) -> None:
            on_step(done + step, loss)

        network, result = _fine_tune(problem, picked, long, settings, seed, made_from, folder, tell)
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
    remove_files(folder / EXPORTS, EXPORTED)  # of another network
    save_network(folder, best, picked.result.plan, builder, {**made_from, **_figures(problem, best_result, finalized)})
    remove_files(folder / UNFINISHED, ["seed-*.checkpoint"])
    return finalized


def _fine_tune(
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
    reseeded = replace(problem, seed=seed)
    return evaluate_plan(reseeded, picked.result.plan, long, checkpoint=checkpoint, on_step=on_step)


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


def _figures(problem: Problem, result: TrialResult, finalized: Finalized) -> dict[str, Any]:
    """What ``plan.json`` says of the written network beside its end."""
    return {
        "seed": finalized.saved.seed,
        "input_shape": list(problem.splits.input_shape),
        "cost": result.cost,
        "dense_cost": problem.space.cost.dense,
        "cost_unit": problem.space.cost.model.unit,
        "speedup": result.speedup,
        "macs": result.macs,
        "dense_macs": problem.macs.dense,
        "params": result.params,
        "dense_params": problem.params,
        "validation": {"dense": vars(problem.baseline), "factorized": vars(finalized.saved.validation)},
        **finalized.to_json(),
    }


def _read_own(folder: Path, made_from: Mapping[str, Any], picked: FrontPoint, dense: nn.Module) -> Finalized | None:
    try:
        entries = read_plan_file(folder)
        same = {key: entries.get(key) for key in made_from} == dict(made_from)
        if not same or entries["layers"] != picked.result.plan.to_json():
            return None
        read_weights(folder / WEIGHTS_FILE, factorized_like(dense, picked.result.plan))  # which must not be damaged
        return Finalized.from_json(entries, picked)
    except (PlanError, DamagedError):
        return None
