"""The end of a search tried before its beginning: a network that is written, built anew and read, untrained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.batches import predict
from ranksearch.errors import UserError, first_line, shorten
from ranksearch.factorize import clone, factorized_like, require_called
from ranksearch.files import checksum
from ranksearch.loading import load, save_network
from ranksearch.plan import RankPlan


def rehearse(model: nn.Module, plan: RankPlan, builder: Mapping[str, Any], example: Tensor) -> None:
    """Write the network of a plan as a search would end with it, load it, and compare the two.

    Args:
        model: the dense network, untrained or not; is not touched.
        plan: of as many layers as any trial may factorize.
        builder: of the dense network: ``_target_`` and its arguments.
        example: a batch of inputs; only its shape and dtype matter.

    Raises:
        UserError: a factorized layer would not run, or the network cannot be written, built anew or read.
    """
    network = factorized_like(model, plan).cpu()
    with torch.no_grad():
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.01)  # what new memory holds may be no number
    require_called(network, plan, example, model)
    two = torch.zeros(2, *example.shape[1:], dtype=example.dtype)
    for training in (False, True):
        try:
            with torch.random.fork_rng(devices=[]):
                predict(clone(network).train(training), [two])
        except UserError:
            raise
        except Exception as error:  # whatever someone's own forward raises
            mode, reason = "train" if training else "eval", shorten(first_line(error), 160)
            raise UserError(
                f"the model cannot run on two images in {mode} mode ({reason}): mend its forward"
            ) from error
    with TemporaryDirectory(prefix="ranksearch-") as folder, torch.random.fork_rng(devices=[]):
        try:
            save_network(Path(folder), network, plan, builder, {})
            same = checksum(load(folder, trust=True)) == checksum(network)
            reason = "it comes back with other numbers"
        except Exception as error:  # whatever a network of one's own cannot do
            same, reason = False, shorten(first_line(error), 200).replace(folder, "best")
    if not same:
        raise UserError(
            f"the network that this search would end with cannot be written and loaded again ({reason}): let model "
            "build it the same each time, of plain parameters and buffers"
        )
