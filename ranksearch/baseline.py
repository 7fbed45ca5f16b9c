"""The dense model that everything is compared with: trained once, then read from the cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save
from torch import nn

from ranksearch.datasets import Splits, endless_batches
from ranksearch.errors import SettingError
from ranksearch.files import write_bytes
from ranksearch.training import Recipe, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaselineSettings(Recipe):
    """How the dense model is trained, and whether.

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
        splits: the data; only the training split is read.
        recipe: the training.
        made_from: all that the weights depend on, as plain JSON values; the cache is keyed by it.
        cache: the folder of baselines.
        seed: of the batches.
        device: where the model is.
        on_step: is told the step, from 1, and its loss.
    """
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"baseline-{key}.safetensors"
    if path.exists():
        try:
            load_model(model, path, strict=True, device=str(device))
        except (SafetensorError, RuntimeError) as error:
            log.warning(
                "the cached baseline %s cannot be read (%s): training it again",
                path,
                " ".join(str(error).split())[:200],
            )
        else:
            log.info("baseline: read from %s", path)
            model.eval()
            return
    log.info("baseline: training the dense model for %d steps of %d images", recipe.steps, recipe.batch_size)
    data = endless_batches(splits.train, recipe.batch_size, device, seed, splits.workers)
    train(model, data, recipe, on_step=on_step)
    state = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_bytes(path, save(state))
    log.info("baseline: written to %s", path)
