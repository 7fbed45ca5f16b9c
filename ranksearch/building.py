"""Objects from settings: every ``_target_`` called, and seen to give what its group is for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra.errors import InstantiationException
from optuna.samplers import BaseSampler
from torch import nn

from ranksearch.config import NOT_OF_THE_BUILDER, RunConfig
from ranksearch.datasets import Splits
from ranksearch.errors import SettingError, UserError
from ranksearch.fine_tuning import FineTuning
from ranksearch.guided import GuidedSampler
from ranksearch.labels import checked
from ranksearch.models import is_published, published
from ranksearch.pretrained import Pretrained
from ranksearch.rules import SpaceSettings
from ranksearch.schema import freeze
from ranksearch.training import Recipe
from ranksearch.values import check_arguments
from ranksearch.weights_file import read_checkpoint

log = logging.getLogger(__name__)


def build(group: str, settings: Any, kind: type[Any] | tuple[type[Any], ...], **extra: Any) -> Any:
    """Call the ``_target_`` of a group, and see that it gives what the group is for.

    Args:
        group: its name, for errors.
        settings: ``_target_`` and its arguments, plain values.
        kind: what it must give, one of several if there are several; errors name the first.
        **extra: further arguments.

    Raises:
        UserError: there is no such callable, it refuses its arguments or fails, or it gives something else.
    """
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise UserError(f"{group} has no _target_: give it the dotted name of the callable that builds it")
    target = settings["_target_"]
    unknown = {"_args_", "_partial_", "_recursive_"} & set(settings)
    if unknown:
        raise SettingError(
            f"{group}.{min(unknown)}", settings[min(unknown)], "is not supported: take it out, and name every argument"
        )
    located = _locate(target)
    if located is not None:
        check_arguments(group, located, {**settings, **extra})
    try:
        built = hydra.utils.instantiate({"_convert_": "all", **settings}, **extra)
    except SystemExit as error:
        raise SettingError(f"{group}._target_", target, f"ended the process ({error}): let it raise instead") from error
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, SettingError):
            raise cause.inside(group) from None
        if isinstance(cause, UserError):
            raise cause from None
        if str(error).startswith("Error locating"):
            advice = "cannot be imported: check the spelling, and that it is on the Python path"
            raise SettingError(f"{group}._target_", target, advice) from None
        reason = f"{type(cause).__name__}: {cause}" if cause else str(error)
        raise SettingError(f"{group}._target_", target, f"failed ({reason}): check its settings") from error
    if not isinstance(built, kind):
        first = kind[0] if isinstance(kind, tuple) else kind
        returned = f"gives a {type(built).__name__}, which is no {first.__name__}: name a callable that gives one"
        raise SettingError(f"{group}._target_", target, returned)
    return built


def _locate(target: object) -> Any:
    """What a dotted name stands for; None where it cannot be imported: the call raises the error."""
    if not isinstance(target, str):
        return None
    try:
        return hydra.utils.get_object(target)
    except Exception:  # whatever a module of one's own raises
        return None


def rules_of(config: RunConfig) -> SpaceSettings:
    """The rules of a space: the person's own, then those of the model's file.

    Raises:
        UserError: one of the latter is no rule.
    """
    return replace(config.space, rules=[*config.space.rules, *(config.of_model().rules or [])])


def build_fine_tuning(settings: Mapping[str, Any]) -> FineTuning:
    """The trials' fine-tuning: a recipe, or one's own.

    Raises:
        UserError: a setting is out of its range.
    """
    if "_target_" in settings:
        return cast(FineTuning, build("fine_tune", settings, FineTuning))
    try:
        return cast(FineTuning, freeze(Recipe, settings))
    except SettingError as error:
        raise error.inside("fine_tune") from None


def build_sampler(config: RunConfig, trials: int) -> BaseSampler:
    """The sampler, seeded for this run.

    Args:
        config: of the run.
        trials: that the study has so far.

    Raises:
        UserError: a setting is out of its range.
    """
    seed = config.seed if config.sampler.get("seed") is None else config.sampler["seed"]
    # Another seed for every run, or it would draw the same plans again.
    sampler = build("sampler", config.sampler, BaseSampler, seed=seed + trials)
    if isinstance(sampler, GuidedSampler):  # which tells its draws apart by the numbers of trials
        sampler = build("sampler", config.sampler, GuidedSampler, seed=seed)
    return cast(BaseSampler, sampler)


def build_data(config: RunConfig) -> Splits:
    """The splits; what the data set leaves open is as the model wants its images.

    Raises:
        UserError: the data set lacks files, or does not fit the model.
    """
    settings = {key: value for key, value in config.dataset.items() if key != "name"}
    weights, own = published(config.model), config.of_model()
    if (size := own.input_size) is not None:
        if "image_size" not in settings:
            raise SettingError("model.input_size", size, "needs a data set with an image_size: leave it null")
        settings["image_size"] = size
    for key, value in (weights.images if weights else {}).items():
        if key in settings and settings[key] is None:
            settings[key] = value
    smallest, size = own.smallest_input, settings.get("image_size")
    if own.input_size is None and smallest and isinstance(size, int) and size < smallest:
        log.info("dataset: images enlarged from %d to %d pixels for the model", size, smallest)
        settings["image_size"] = smallest
    splits = checked(cast(Splits, build("dataset", settings, Splits)))
    classes = own.num_classes
    if classes is not None and classes < splits.num_classes:
        limit = f"is below the {splits.num_classes} classes of the data set: raise it, or leave it null"
        raise SettingError("model.num_classes", classes, limit)
    return splits if classes is None else replace(splits, num_classes=classes)


def build_model(config: RunConfig, splits: Splits) -> tuple[nn.Module, dict[str, Any], Pretrained]:
    """The dense network, how to build it again without its weights, and what weights it came with.

    Raises:
        UserError: there is no such model, or its weights cannot be had or do not fit.
    """
    arguments = {key: value for key, value in config.model.items() if key not in NOT_OF_THE_BUILDER}
    checkpoint, weights = config.of_model().checkpoint, published(config.model)
    if checkpoint is not None and weights is not None:
        advice = "stands beside model.weights: a network has one set of weights, so take one of them out"
        raise SettingError("model.checkpoint", checkpoint, advice)
    torch.manual_seed(config.seed)
    model = build("model", arguments, nn.Module, num_classes=splits.num_classes)
    builder = {**arguments, "num_classes": splits.num_classes}
    if is_published(builder):
        builder["weights"] = None
    if checkpoint is not None:
        new = read_checkpoint(checkpoint, model)
        return model, builder, Pretrained(str(checkpoint), not new, sha256(Path(checkpoint).read_bytes()).hexdigest())
    if weights is not None:
        return model, builder, Pretrained(config.model["weights"], weights.num_classes == splits.num_classes)
    return model, builder, Pretrained()
