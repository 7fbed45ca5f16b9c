"""Networks for other tasks than classification are compressed as they are, at the MACs that their plans say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

import ranksearch
from ranksearch.cost.macs import count_macs
from ranksearch.factorize.surgery import factorized_like

pytestmark = pytest.mark.slow


def images(size: int, count: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def of_any_size() -> list[Tensor]:
    return [torch.rand(3, 100 + 7 * (index % 3), 120) for index in range(8)]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "lraspp": (lambda: models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None), lambda: images(64)),
    "deeplabv3": (lambda: models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None), lambda: images(64)),
    "ssdlite": (lambda: models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None), of_any_size),
    "faster r-cnn": (
        lambda: models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights_backbone=None),
        of_any_size,
    ),
    "raft": (lambda: models.optical_flow.raft_small(), lambda: (images(128), images(128))),
    "r3d": (lambda: models.video.r3d_18(), lambda: torch.rand(8, 3, 4, 32, 32)),
    "nfnet": (lambda: timm.create_model("nfnet_l0", num_classes=10), lambda: images(96)),
    "efficientnet": (lambda: timm.create_model("tf_efficientnetv2_b0", num_classes=10), lambda: images(96)),
    "ghostnet": (lambda: timm.create_model("ghostnet_050", num_classes=10), lambda: images(96)),
    "mobilenet": (lambda: timm.create_model("mobilenetv3_small_100", num_classes=10), lambda: images(96)),
    "mobilevit": (lambda: timm.create_model("mobilevit_xxs", num_classes=10), lambda: images(64)),
}
# Lowest speedup of a network of which little can be factorized.
SPEEDUPS = {"ghostnet": 1.2, "mobilenet": 1.2, "mobilevit": 1.2}


@pytest.mark.filterwarnings("ignore")  # of the networks themselves
@pytest.mark.parametrize("name", CASES)
def test_a_network_is_compressed_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    build, given = CASES[name]
    model, batch, speedup = build().eval(), given(), SPEEDUPS.get(name, 1.5)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    result = ranksearch.compress(model, [batch], speedup, effort="fast", progress=False)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    # Of detectors, proposals vary with the weights: MACs are compared on the example that the plan was made with.
    example = (
        batch[:1] if isinstance(batch, list) else tuple(part[:1] for part in batch) if name == "raft" else batch[:1]
    )
    assert result.plan.details is not None
    assert result.plan.details.macs * speedup <= result.plan.details.dense_macs
    if name != "faster r-cnn":
        assert count_macs(result.network, example) == result.plan.details.macs
    again = factorized_like(model, result.plan)
    again.load_state_dict(result.network.state_dict())
