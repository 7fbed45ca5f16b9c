"""One plan from start to score: factorize, fine-tune, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ranksearch.checkpoint import Checkpoint
from ranksearch.cost import count_params
from ranksearch.datasets import endless_batches
from ranksearch.errors import DamagedError, PlanError, first_line
from ranksearch.fine_tuning import FineTuning
from ranksearch.plan import RankPlan
from ranksearch.problem import Problem
from ranksearch.training import evaluate
from ranksearch.values import from_record

STAGES = ("factorize", "fine_tune", "evaluate")


@dataclass(frozen=True)
class TrialResult:
    """What became of a plan.

    Attributes:
        plan: as it was built.
        cost: of the factorized network, in the unit of the space's cost.
        speedup: dense cost over ``cost``.
        macs: multiply-accumulates of one example.
        params: of the factorized network.
        accuracy_before: on the validation split, before fine-tuning.
        accuracy: on the validation split, after fine-tuning.
        loss: cross-entropy on the validation split, after fine-tuning.
        seconds: of each of `STAGES`.
        errors: layer -> the expected error of its choice, a share of its output's variance.
    """

    plan: RankPlan
    cost: int
    speedup: float
    macs: int
    params: int
    accuracy_before: float
    accuracy: float
    loss: float
    seconds: Mapping[str, float] = field(hash=False)
    errors: Mapping[str, float] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {**vars(self), "plan": self.plan.to_json(), "seconds": dict(self.seconds), "errors": dict(self.errors)}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> TrialResult:
        """Read what `to_json` wrote.

        Raises:
            DamagedError: it is something else.
        """
        if not isinstance(stored, Mapping):
            raise DamagedError(f"TrialResult is a {type(stored).__name__}")
        try:
            plan = RankPlan.from_json(stored.get("plan", {}))
        except PlanError as error:
            raise DamagedError(first_line(error)) from None
        result = from_record(TrialResult, {**stored, "plan": plan})
        if min(result.cost, result.macs, result.params) < 1 or not result.speedup > 0:
            raise DamagedError("TrialResult has a network that costs nothing")
        return result


class Stopwatch:
    """Seconds spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the block to a stage, but for what other stages inside it take."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start - inner


def evaluate_plan(
    problem: Problem,
    plan: RankPlan,
    fine_tuning: FineTuning,
    rungs: Collection[int] = (),
    on_rung: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[nn.Module, TrialResult]:
    """Build a plan's network, fine-tune it and score it on the validation split.

    Args:
        problem: is not changed.
        plan: layers, their schemes and their latent sizes.
        fine_tuning: of the network.
        rungs: numbers of its steps, before the last, after which the network is evaluated.
        on_rung: is told the step and the accuracy then; what it raises ends the trial.
        checkpoint: where the fine-tuning goes on from, and is kept.
        on_step: is told the number of each of its steps and the loss.

    Returns:
        The network, in eval mode, and its result.

    Raises:
        DivergedError: the loss is not finite.
    """
    watch = Stopwatch()
    with watch.stage("factorize"):
        network = problem.build(plan)
    with watch.stage("evaluate"):
        before = evaluate(network, problem.validation())
    after = before
    if fine_tuning.steps:
        if on_rung is not None and 0 in rungs:
            on_rung(0, before.accuracy)

        def look(step: int, loss: float) -> None:
            if on_step is not None:
                on_step(step, loss)
            if on_rung is not None and step in rungs and step < fine_tuning.steps:
                # Of its own randomness, so that a look changes nothing.
                with watch.stage("evaluate"), torch.random.fork_rng(devices=[]):
                    found = evaluate(network, problem.validation()).accuracy
                network.train()
                on_rung(step, found)

        with watch.stage("fine_tune"):
            torch.manual_seed(problem.seed)
            splits = problem.splits
            data = endless_batches(
                splits.train, fine_tuning.batch_size, problem.device, problem.seed, splits.workers, splits.augment
            )
            fine_tuning.fine_tune(network, data, teacher=problem.model, on_step=look, checkpoint=checkpoint)
        with watch.stage("evaluate"):
            after = evaluate(network, problem.validation())
    cost = problem.space.cost.of(plan)
    result = TrialResult(
        plan=plan,
        cost=cost,
        speedup=problem.speedup(cost),
        macs=problem.macs.of(plan),
        params=count_params(network),
        accuracy_before=before.accuracy,
        accuracy=after.accuracy,
        loss=after.loss,
        seconds=watch.seconds,
        errors={name: float(f"{problem.errors[name][c.scheme][c.latent_size]:.4g}") for name, c in plan},
    )
    return network, result
