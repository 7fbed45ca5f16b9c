"""What a run is made of before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.config import RunConfig
from ranksearch.datasets import Splits
from ranksearch.fine_tuning import FineTuning
from ranksearch.pretrained import Pretrained
from ranksearch.proxies import Proxy
from ranksearch.space import SearchSpace


@dataclass(frozen=True)
class Job:
    """Everything that is known before anything is trained.

    Attributes:
        config: of the run.
        settings: the same as plain JSON values, with interpolations left as they were written.
        compared: of these, resolved, what makes two trials comparable.
        device: where it runs.
        splits: the data.
        model: the dense network, on ``device``, not yet trained unless its builder did.
        builder: what builds it again without its weights: ``_target_`` and its arguments.
        pretrained: the weights that it came with.
        space: what a trial may choose.
        budget: the highest cost of a feasible plan.
        proxy: what errors are feared to do.
        fine_tuning: of a trial.
        command: that this run was started with.
    """

    config: RunConfig
    settings: dict[str, Any]
    compared: dict[str, Any]
    device: torch.device
    splits: Splits
    model: nn.Module
    builder: dict[str, Any]
    pretrained: Pretrained
    space: SearchSpace
    budget: int
    proxy: Proxy
    fine_tuning: FineTuning
    command: str

    @property
    def folder(self) -> Path:
        """Where the artifacts go."""
        return Path(self.config.outputs) / str(self.config.study.name)
