"""The dense network that every plan is compared with: trained once, then read from the cache."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.data.loaders import batches, endless_batches
from ranksearch.data.splits import Splits, length
from ranksearch.errors import PlanError
from ranksearch.locks import exclusive
from ranksearch.tensor_files import read_weights, write_weights
from ranksearch.training.loop import evaluate, train
from ranksearch.training.recipe import Recipe

log = logging.getLogger(__name__)


def ensure_baseline(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    cache: Path,
    *,
    made_from: Mapping[str, Any],
    seed: int,
    device: torch.device,
    on_step: Callable[[int, float], None],
) -> None:
    """Train the dense network in place, or read its weights from the cache, and leave it in eval mode.

    Args:
        model: the network with its initial weights, on ``device``.
        splits: the data; only the training split is trained on.
        recipe: hyperparameters of the training.
        cache: folder of baselines.
        made_from: everything else that the weights depend on beside the recipe, the seed, the initial weights and the
            number of examples, as plain JSON values; the cache is keyed by all of it.
        seed: seed of the batches.
        device: device of the model.
        on_step: called with the step, from 1, and its loss.

    Raises:
        DivergedError: the loss is not finite; nothing is cached.
    """
    path = _path(cache, model, splits, recipe, made_from, seed)
    with exclusive(path.with_suffix(".lock"), "trains the dense network"):
        if _read(path, model):
            return
        log.info("baseline: training the dense network for %d steps of %d images", recipe.steps, recipe.batch_size)
        endless = endless_batches(splits.train, recipe.batch_size, device, seed, splits.workers, splits.augment)
        train(model, endless, recipe, on_step=on_step)
        evaluate(model, batches(splits.train, recipe.batch_size, device, splits.workers, limit=recipe.batch_size))
        write_weights(path, model)
        log.info("baseline: written to %s", path)


def read_baseline(
    model: nn.Module, splits: Splits, recipe: Recipe, cache: Path, *, made_from: Mapping[str, Any], seed: int
) -> bool:
    """Read the dense network's weights from the cache, as `ensure_baseline` does; False if it was not trained yet."""
    return _read(_path(cache, model, splits, recipe, made_from, seed), model)


def _path(
    cache: Path, model: nn.Module, splits: Splits, recipe: Recipe, made_from: Mapping[str, Any], seed: int
) -> Path:
    """Return the file of the weights of a baseline, named after all that they depend on."""
    content = {**made_from, "recipe": vars(recipe), "seed": seed, "examples": length(splits.train)}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for tensor in model.state_dict().values():
        key.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return cache / f"baseline-{key.hexdigest()[:16]}.safetensors"


def _read(path: Path, model: nn.Module) -> bool:
    """Read cached weights; False if there are none, or they are damaged."""
    if not path.exists():
        return False
    try:
        read_weights(path, model)
    except PlanError as error:
        log.warning("baseline: %s", error)
        return False
    log.info("baseline: read from %s", path)
    model.eval()
    return True
