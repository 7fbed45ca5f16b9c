"""A plan evaluated from start to score: factorized, fine-tuned, and measured on the validation split."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ranksearch.cost.macs import count_params
from ranksearch.plan import RankPlan
from ranksearch.results.trials import TrialResult
from ranksearch.study.context import SearchContext
from ranksearch.training.checkpoint import Checkpoint
from ranksearch.training.loop import evaluate
from ranksearch.training.recipe import FineTuner


class Stopwatch:
    """Seconds spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the block to a stage, except for what nested stages take."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            nested = sum(self.seconds.values()) - before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start - nested


def evaluate_plan(
    context: SearchContext,
    plan: RankPlan,
    fine_tuner: FineTuner,
    *,
    rungs: Collection[int] = (),
    on_rung: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[nn.Module, TrialResult]:
    """Build a plan's network, fine-tune it and score it on the validation split.

    Args:
        context: left unchanged.
        plan: layers, their schemes and their latent sizes.
        fine_tuner: fine-tunes the network.
        rungs: steps before the last after which the network is evaluated.
        on_rung: called with such a step and the accuracy after it; an exception from it ends the trial.
        checkpoint: where the fine-tuning continues from, and where its state is saved.
        on_step: called with each step and its loss.

    Returns:
        The network, in eval mode, and its result.

    Raises:
        DivergedError: the loss is not finite.
    """
    watch = Stopwatch()
    with watch.stage("factorize"):
        network = context.build(plan)
    with watch.stage("evaluate"):
        before = after = evaluate(network, context.validation())
    if fine_tuner.steps:
        if on_rung is not None and 0 in rungs:
            on_rung(0, before.accuracy)

        def after_step(step: int, loss: float) -> None:
            if on_step is not None:
                on_step(step, loss)
            if on_rung is not None and step in rungs and step < fine_tuner.steps:
                # With random numbers of its own, so that an evaluation changes nothing.
                with watch.stage("evaluate"), torch.random.fork_rng(devices=[]):
                    accuracy = evaluate(network, context.validation()).accuracy
                network.train()
                on_rung(step, accuracy)

        with watch.stage("fine_tune"):
            torch.manual_seed(context.seed)
            data = context.training_batches(fine_tuner.batch_size)
            fine_tuner.fine_tune(network, data, teacher=context.model, on_step=after_step, checkpoint=checkpoint)
        with watch.stage("evaluate"):
            after = evaluate(network, context.validation())
    cost, macs, params = context.space.cost.total(plan), context.macs.total(plan), count_params(network)
    expected = {name: context.errors[name][choice.scheme][choice.latent_size] for name, choice in plan}
    errors = {name: float(f"{error:.4g}") for name, error in expected.items()}
    speedup, accuracies = context.speedup(cost), (before.accuracy, after.accuracy)
    return network, TrialResult(plan, cost, speedup, macs, params, *accuracies, after.loss, watch.seconds, errors)
