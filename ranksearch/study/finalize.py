"""The picked plan, fine-tuned for longer, from several seeds if asked for, and measured on the test split."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ranksearch.cost.latency import Latency, time_side_by_side
from ranksearch.errors import DamagedError, PlanError
from ranksearch.factorize.surgery import factorized_like
from ranksearch.files import remove_files
from ranksearch.formats.export import EXPORTED
from ranksearch.formats.serialization import save_network
from ranksearch.results.final import FinalResult, SeedResult, WallClock
from ranksearch.results.study_files import WEIGHTS_FILE, read_plan_file, settings_hash
from ranksearch.results.trials import Evaluation, FeasibleTrial, TrialResult
from ranksearch.runtimes.base import Runtime
from ranksearch.study.context import SearchContext
from ranksearch.study.evaluate import evaluate_plan
from ranksearch.study.settings import FinalizeSettings
from ranksearch.tensor_files import read_weights
from ranksearch.training.checkpoint import Checkpoint
from ranksearch.training.loop import evaluate

log = logging.getLogger(__name__)
UNFINISHED = "unfinished"
EXPORTS = "export"
OnStep = Callable[[int, float], None]


def finalize(
    context: SearchContext,
    picked: FeasibleTrial,
    settings: FinalizeSettings,
    folder: Path,
    *,
    study: str,
    runtime: Runtime,
    builder: Mapping[str, Any],
    compared: Mapping[str, Any],
    on_step: OnStep = lambda step, loss: None,
) -> FinalResult:
    """Fine-tune the picked plan, read the test split, and write the network; continue an interrupted fine-tuning.

    A folder that already holds this trial is read instead, so that running again reads no test image.

    Args:
        context: what was searched.
        picked: the picked trial.
        settings: settings of the fine-tuning.
        folder: folder to write to.
        study: name of the study.
        runtime: executes the networks that are timed.
        builder: of the dense network: ``_target_`` and its arguments.
        compared: settings of the study, plain JSON values.
        on_step: called with the number of steps that are done, over all fine-tunings, and the loss.

    Raises:
        DivergedError: the loss of a fine-tuning is not finite.
    """
    seeds, plan = [context.seed + index for index in range(settings.seeds)], picked.result.plan
    fine_tuner = context.fine_tuner.lengthened(settings.steps, settings.learning_rate)
    rate = getattr(fine_tuner, "learning_rate", None)  # a custom fine-tuner may have none
    made_from: dict[str, Any] = {"study": study, "settings_hash": settings_hash(compared), "trial": picked.number}
    made_from |= {"fine_tune_steps": settings.steps, "learning_rate": rate, "fine_tune_seeds": seeds}
    existing = _existing(folder, made_from, picked, context.model)
    if existing is not None:
        log.info("finalize: %s already holds trial %d", folder, picked.number)
        return existing
    seed_results: list[SeedResult] = []
    best: tuple[nn.Module, TrialResult] | None = None
    for index, seed in enumerate(seeds):
        log.info("finalize: fine-tuning trial %d for %d steps, seed %d", picked.number, settings.steps, seed)
        of_seed = {"fine_tune_seeds": seed, "asked_rate": settings.learning_rate, "plan": plan.to_json()}
        key = json.dumps({**made_from, **of_seed}, sort_keys=True)
        checkpoint = Checkpoint(folder / UNFINISHED / f"seed-{seed}.checkpoint", key, settings.checkpoint_every)

        def report(step: int, loss: float, done: int = index * settings.steps) -> None:
            on_step(done + step, loss)

        own = replace(context, seed=seed)
        network, result = evaluate_plan(own, plan, fine_tuner, checkpoint=checkpoint, on_step=report)
        validation = Evaluation(result.accuracy, result.loss)
        seed_results.append(SeedResult(seed, validation, evaluate(network, context.test())))
        if best is None or result.accuracy > best[1].accuracy:
            best = network, result
    assert best is not None
    before, dense = evaluate(context.build(plan), context.test()), evaluate(context.model, context.test())
    timed, timed_on = _time(context, best[0], settings, runtime), runtime.describe(context.device)
    final = FinalResult(picked, settings.steps, dense, before, tuple(seed_results), tuple(timed), timed_on)
    remove_files(folder / EXPORTS, EXPORTED)  # of another network
    save_network(folder, best[0], plan, builder, {**made_from, **_entries(context, best[1], final)})
    remove_files(folder / UNFINISHED, ["seed-*.checkpoint"])
    return final


def _time(context: SearchContext, network: nn.Module, settings: FinalizeSettings, runtime: Runtime) -> list[WallClock]:
    clocks = []
    for size in settings.time_batches:
        latency, shape = Latency(runtime, size, settings.repeats), context.splits.input_shape
        clocks.append(time_side_by_side(context.model, network, shape, context.device, latency))
        log.info("finalize: wall-clock time, %s", clocks[-1].format())
    return clocks


def _entries(context: SearchContext, result: TrialResult, final: FinalResult) -> dict[str, Any]:
    """Return the entries of ``plan.json`` beside what it was made from."""
    saved, cost, shape = final.saved, context.space.cost, list(context.splits.input_shape)
    costs = {"cost": result.cost, "dense_cost": cost.dense, "cost_unit": cost.model.unit, "speedup": result.speedup}
    sizes = {"macs": result.macs, "dense_macs": context.macs.dense}
    sizes |= {"params": result.params, "dense_params": context.params}
    scores = {"dense": vars(context.baseline), "factorized": vars(saved.validation)}
    return {"seed": saved.seed, "input_shape": shape, **costs, **sizes, "validation": scores, **final.to_json()}


def _existing(
    folder: Path, made_from: Mapping[str, Any], picked: FeasibleTrial, dense: nn.Module
) -> FinalResult | None:
    """Read the result that a folder holds of this trial, made in the same way; None if there is none."""
    plan = picked.result.plan
    try:
        entries = read_plan_file(folder)
        if any(entries.get(key) != value for key, value in made_from.items()) or entries["layers"] != plan.to_json():
            return None
        read_weights(folder / WEIGHTS_FILE, factorized_like(dense, plan))  # raises if damaged
        return FinalResult.from_json(entries, picked)
    except (PlanError, DamagedError):
        return None
