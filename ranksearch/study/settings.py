"""Settings of a study, as a configuration or a caller writes them; Hydra composes these classes as they stand.

A value out of range raises SettingError.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ranksearch.errors import SettingError

# Objective -> what is optimized: accuracy and cost, or accuracy at the constraint's speedup alone.
OBJECTIVES = {"front": ("accuracy", "cost"), "accuracy": ("accuracy",)}
LONGEST = 180  # bytes of a folder's name, which file systems bound at 255


@dataclass
class StudySettings:
    """Name, objective and length of a study.

    Attributes:
        name: name of the study; the same name continues it. A list of names compares several studies.
        n_trials: finished trials in total, over all runs of the study.
        closed_form_trials: how many of these are closed-form plans, log-spaced from the constraint's budget down.
        objective: one of `OBJECTIVES`.
    """

    name: Any
    n_trials: int = 24
    closed_form_trials: int = 8
    objective: str = "front"

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, list | tuple):
            self.name = str(self.name)
        for name in self.names or [""]:
            if not name or not name.isprintable() or {"/", "\\"} & set(name) or name in (".", ".."):
                raise SettingError("name", name, "cannot name a folder: use a name without slashes, not . or ..")
            if len(name.encode()) > LONGEST:
                raise SettingError("name", name, f"is too long for a folder's: use at most {LONGEST} bytes")
        if self.objective not in OBJECTIVES:
            raise SettingError("objective", self.objective, f"is unknown: use {', '.join(OBJECTIVES)}")
        _require_at_least(self, n_trials=1, closed_form_trials=0)

    @property
    def names(self) -> list[str]:
        """All names, each once."""
        return [self.name] if isinstance(self.name, str) else list(dict.fromkeys(map(str, self.name or [])))


@dataclass
class CalibrationSettings:
    """The training images from which layer statistics are estimated.

    Attributes:
        images: number of images.
        batch_size: images of a batch.
        loss_aware: weight output errors by the loss's sensitivity to them; costs a backward pass over the images.
        comparison_images: number of further images to compare plans on, at most a quarter of the training split.
        sequential_images: maximum number of images for sequential factorization, fewer if maps are large; 0 for none.
    """

    images: int = 512
    batch_size: int = 64
    loss_aware: bool = False
    comparison_images: int = 512
    sequential_images: int = 256

    def __post_init__(self) -> None:
        if self.sequential_images < 0 or self.sequential_images == 1:
            advice = "is too few: use 2 or more, or 0 to solve every layer independently"
            raise SettingError("sequential_images", self.sequential_images, advice)
        for name in ("images", "comparison_images", "batch_size"):
            if getattr(self, name) < 2:
                raise SettingError(name, getattr(self, name), "is too few: use 2 or more")


@dataclass
class PruningSettings:
    """When a trial is pruned: others that cost no more are well ahead of it after as many steps.

    Attributes:
        rungs: shares of the fine-tuning after which a trial is compared, 0 to below 1; an empty list prunes nothing.
        lead: lead in accuracy of others before any fine-tuning, 0 to 1; it shrinks with the steps that are left.
        rivals: number of others that must be ahead.
        optuna: an Optuna pruner that is asked as well, by its ``_target_`` and arguments; for one objective.
    """

    rungs: list[float] = field(default_factory=lambda: [0.0, 0.75])
    lead: float = 0.06
    rivals: int = 2
    optuna: Any = None

    def __post_init__(self) -> None:
        if not all(0 <= rung < 1 for rung in self.rungs):
            raise SettingError("rungs", self.rungs, "are out of range: use shares from 0 to below 1")
        if not 0 <= self.lead <= 1:
            raise SettingError("lead", self.lead, "is out of range: use 0 to 1")
        _require_at_least(self, rivals=1)

    def rung_steps(self, steps: int) -> set[int]:
        """Return the steps after which a trial is compared, for a fine-tuning of ``steps`` steps."""
        return {min(round(rung * steps), steps - 1) for rung in self.rungs} if steps else set()


@dataclass
class PickSettings:
    """How the trial to finalize is picked, by at most one of these; by default the most accurate feasible one.

    Attributes:
        speedup: the most accurate trial with at least this speedup.
        max_accuracy_drop: the fastest trial of validation accuracy at most this far below the dense one, 0 to 1.
        trial: the trial of this number.
    """

    speedup: float | None = None
    max_accuracy_drop: float | None = None
    trial: int | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise SettingError(given[1], vars(self)[given[1]], f"cannot be combined with {given[0]}: give one of them")
        if self.speedup is not None and not self.speedup >= 1:
            raise SettingError("speedup", self.speedup, "is below 1, the dense network's: use 1 or more")
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop <= 1:
            raise SettingError("max_accuracy_drop", self.max_accuracy_drop, "is out of range: use 0 to 1, such as 0.01")


@dataclass
class FinalizeSettings:
    """How the picked plan is fine-tuned and timed.

    Attributes:
        steps: steps of the fine-tuning, which otherwise follows the trials' recipe.
        learning_rate: its highest rate. None keeps that of the trials, or takes four times as much if they are
            briefer; a custom fine-tuner decides for itself.
        seeds: number of fine-tunings, each with its own batches; their spread shows what a difference is worth.
        checkpoint_every: steps between checkpoints, from which an interrupted fine-tuning continues.
        time_batches: batch sizes at which the network is timed beside the dense one.
        repeats: timings of each, of which the median counts.
    """

    steps: int = 200
    learning_rate: float | None = None
    seeds: int = 1
    checkpoint_every: int = 100
    time_batches: list[int] = field(default_factory=lambda: [1, 64])
    repeats: int = 9

    def __post_init__(self) -> None:
        _require_at_least(self, steps=0, seeds=1, checkpoint_every=1, repeats=2)
        if any(size < 1 for size in self.time_batches):
            raise SettingError("time_batches", self.time_batches, "are out of range: use 1 or more")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise SettingError("learning_rate", self.learning_rate, "is out of range: use a finite number above 0")

    @property
    def total_steps(self) -> int:
        """Steps of all fine-tunings together."""
        return self.steps * self.seeds


@dataclass
class ProfileSettings:
    """How layers are timed for a profile.

    Attributes:
        batch_size: examples of the batch that is timed.
        repeats: timings of each layer at each latent size, of which the median counts.
        cache: folder of tables of times; None keeps none.
    """

    batch_size: int = 1
    repeats: int = 9
    cache: str | None = None

    def __post_init__(self) -> None:
        _require_at_least(self, batch_size=1, repeats=2)


def _require_at_least(settings: object, **limits: int) -> None:
    for name, limit in limits.items():
        if getattr(settings, name) < limit:
            raise SettingError(name, getattr(settings, name), f"is out of range: use {limit} or more")


def study_folder(name: object) -> str:
    """Return the folder of a study, or of several that are compared, below that of all outputs."""
    if isinstance(name, str) or not isinstance(name, Sequence):
        return str(name)
    whole = "+".join(map(str, name))
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}~{sha256(whole.encode()).hexdigest()[:8]}"
