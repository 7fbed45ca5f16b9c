"""The dense network that everything is compared with: trained once, then read from the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.datasets import Splits, batches, endless_batches, length
from ranksearch.errors import PlanError, SettingError
from ranksearch.files import read_weights, write_weights
from ranksearch.locks import alone
from ranksearch.training import Recipe, evaluate, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaselineSettings(Recipe):
    """How the dense network is trained, and whether.

    Attributes:
        train: ``"always"``; ``"never"``, for a model that comes with its weights; or ``"auto"``: unless the model
            comes with weights for the data set's classes.
    """

    train: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in ("auto", "always", "never"):
            raise SettingError("train", self.train, "is unknown: use auto, always or never")


def train_or_read(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    made_from: Mapping[str, Any],
    cache: Path,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, float], None],
) -> None:
    """Give the model its trained weights, in place, and leave it in eval mode.

    Args:
        model: with its initial weights, on ``device``.
        splits: the data; only the training split is trained on.
        recipe: the training.
        made_from: what the weights depend on besides the recipe, the seed, the initial weights and the number of
            examples, as plain JSON values; the cache is keyed by all of it.
        cache: the folder of baselines.
        seed: of the batches.
        device: where the model is.
        on_step: is told the step, from 1, and its loss.

    Raises:
        DivergedError: the loss is not finite; nothing is cached then.
    """
    known = {**made_from, "recipe": vars(recipe), "seed": seed, "examples": length(splits.train)}
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for tensor in model.state_dict().values():
        key.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    path = cache / f"baseline-{key.hexdigest()[:16]}.safetensors"
    with alone(path.with_suffix(".lock"), "trains the dense network"):
        _train_or_read(model, splits, recipe, path, seed, device, on_step)


def _train_or_read(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    path: Path,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, float], None],
) -> None:
    if path.exists():
        try:
            read_weights(path, model)
        except PlanError as error:
            log.warning("baseline: %s", error)
        else:
            log.info("baseline: read from %s", path)
            model.eval()
            return
    log.info("baseline: training the dense network for %d steps of %d images", recipe.steps, recipe.batch_size)
    train(
        model,
        endless_batches(splits.train, recipe.batch_size, device, seed, splits.workers, splits.augment),
        recipe,
        on_step=on_step,
    )
    evaluate(model, batches(splits.train, recipe.batch_size, device, splits.workers, limit=recipe.batch_size))
    write_weights(path, model)
    log.info("baseline: written to %s", path)
