"""A module of Lightning is compressed bare or wrapped, and trained further by its Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ranksearch

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4


def test_a_plan_from_inside_a_module_is_trained_by_its_trainer() -> None:
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]  # untyped
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()]
    module = Module(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)))
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16)
    trainer = lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, loader)
    plan = ranksearch.find_plan(module, loader, 1.4, progress=False)
    assert all(name.startswith("net.") for name in plan.layers)
    bare = ranksearch.apply_plan(plan, module.net, loader, progress=False)
    before = [parameter.clone() for parameter in bare.parameters()]
    trainer = lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Module(bare), loader)
    assert any(not torch.equal(old, new) for old, new in zip(before, bare.parameters(), strict=True))
