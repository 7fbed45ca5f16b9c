"""Dry run of the end of a search: an untrained network is written, rebuilt and loaded."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import UserError, first_line, shorten
from ranksearch.factorize.source_model import clone
from ranksearch.factorize.surgery import factorized_like, require_called
from ranksearch.formats.serialization import load, save_network
from ranksearch.plan import RankPlan
from ranksearch.predictions import predict
from ranksearch.tensor_files import checksum


def check_round_trip(model: nn.Module, plan: RankPlan, builder: Mapping[str, Any], example: Tensor) -> None:
    """Raise unless the factorized network of a plan runs, and can be written and loaded unchanged.

    Args:
        model: the dense network, untrained or not; left unchanged.
        plan: plan with the largest number of factorized layers that a trial may have.
        builder: builder of the dense network: ``_target_`` and its arguments.
        example: a batch of inputs; only its shape and dtype matter.

    Raises:
        UserError: a factorized layer does not run, or the network cannot be written, rebuilt or loaded.
    """
    network = factorized_like(model, plan).cpu()
    with torch.no_grad():
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.01)  # uninitialized memory may hold NaN
    require_called(network, plan, example, model)
    two = torch.zeros(2, *example.shape[1:], dtype=example.dtype)
    for training in (False, True):
        try:
            with torch.random.fork_rng(devices=[]):
                predict(clone(network).train(training), [two])
        except UserError:
            raise
        except Exception as error:  # a custom forward may raise anything
            mode, reason = "train" if training else "eval", shorten(first_line(error), 160)
            message = f"the model cannot run on two images in {mode} mode ({reason}): fix its forward method"
            raise UserError(message) from error
    with TemporaryDirectory(prefix="ranksearch-") as folder, torch.random.fork_rng(devices=[]):
        try:
            save_network(Path(folder), network, plan, builder, {})
            same = checksum(load(folder, trust=True)) == checksum(network)
            reason = "its weights differ"
        except Exception as error:  # a custom network may fail in any way
            same, reason = False, shorten(first_line(error), 200).replace(folder, "best")
    if not same:
        raise UserError(
            f"the final network of this search cannot be saved and loaded again ({reason}): let model "
            "build the same network each time, with plain parameters and buffers"
        )
