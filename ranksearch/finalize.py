"""The picked plan, fine-tuned longer and measured on the test split, once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ranksearch.errors import PlanError, SettingError
from ranksearch.loading import WEIGHTS_FILE, read_plan_file, save_network
from ranksearch.problem import Problem
from ranksearch.records import FrontPoint
from ranksearch.training import Evaluation, evaluate
from ranksearch.trial import evaluate_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalizeSettings:
    """How the picked plan is finished.

    Attributes:
        steps: of its fine-tuning, with the recipe of the trials otherwise.
    """

    steps: int = 200

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise SettingError("steps", self.steps, "is negative: use 0 or more")


@dataclass(frozen=True)
class Finalized:
    """The end of a search, on the test split.

    Attributes:
        trial: number of the picked trial.
        dense: the dense model.
        factorized: the picked plan after the longer fine-tuning.
    """

    trial: int
    dense: Evaluation
    factorized: Evaluation


def finalize(
    problem: Problem,
    study: str,
    picked: FrontPoint,
    settings: FinalizeSettings,
    recipe: Mapping[str, Any],
    compared: Mapping[str, Any],
    folder: Path,
) -> Finalized:
    """Fine-tune the picked plan, read the test split, and write the network.

    A folder that already holds this very pick is read instead, so that running again reads no test image.

    Args:
        problem: that was searched.
        study: its name.
        picked: the plan.
        settings: the fine-tuning.
        recipe: how to build the dense network: ``_target_`` and its arguments.
        compared: the settings of the study, plain JSON values.
        folder: to write to.

    Raises:
        DivergedError: the fine-tuning's loss is not finite.
    """
    settings_hash = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]
    made_from = {
        "study": study,
        "settings": settings_hash,
        "trial": picked.number,
        "fine_tune_steps": settings.steps,
    }
    known = _read(folder, made_from, picked)
    if known is not None:
        log.info("finalize: %s already holds trial %d", folder, picked.number)
        return known
    log.info("finalize: fine-tuning trial %d for %d steps", picked.number, settings.steps)
    network, result = evaluate_plan(problem, picked.result.plan, replace(problem.recipe, steps=settings.steps))
    finalized = Finalized(picked.number, evaluate(problem.model, problem.test()), evaluate(network, problem.test()))
    facts = {
        **made_from,
        "input_shape": list(problem.splits.input_shape),
        "macs": result.macs,
        "dense_macs": problem.space.cost.dense,
        "params": result.params,
        "dense_params": problem.params,
        "speedup": result.speedup,
        "validation": {
            "dense": vars(problem.baseline),
            "factorized": {"accuracy": result.accuracy, "loss": result.loss},
        },
        "test": {"dense": vars(finalized.dense), "factorized": vars(finalized.factorized)},
    }
    save_network(folder, network, picked.result.plan, recipe, facts)
    return finalized


def _read(folder: Path, made_from: Mapping[str, Any], picked: FrontPoint) -> Finalized | None:
    try:
        entries = read_plan_file(folder)
        same = {key: entries[key] for key in made_from} == dict(made_from)
        if not same or not (folder / WEIGHTS_FILE).exists() or entries["layers"] != picked.result.plan.to_json():
            return None
        test = entries["test"]
        return Finalized(picked.number, Evaluation(**test["dense"]), Evaluation(**test["factorized"]))
    except (PlanError, KeyError, TypeError):
        return None
