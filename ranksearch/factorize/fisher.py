"""Fisher information at layers' outputs: second moments of the gradient of the loss."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.batches import read_batches
from ranksearch.factorize.calibration import layer_of
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.source_model import hooked, untouched
from ranksearch.factorize.statistics import Layer, groups_of
from ranksearch.factorize.thinning import as_rows
from ranksearch.predictions import predict_batch


def collect_sensitivities(
    model: nn.Module, batches: Iterable[Any], layers: Iterable[str], seed: int = 0
) -> dict[str, Tensor]:
    """Accumulate the second moment of the loss's gradient at the named layers' outputs.

    Labels of the cross-entropy loss are sampled from the model's own predictions, so the expected increase of the loss
    is quadratic in a small output error (the Fisher information; Martens, 2020).

    Args:
        model: network that maps `[B, ...]` to logits `[B, classes]`; it runs in eval mode and is left unchanged.
        batches: batches of examples; see `read_batch`.
        layers: dotted names of convolutions and linear layers.
        seed: seed of the labels.

    Returns:
        Layer name -> sensitivity, `[groups, out / groups, out / groups]`, float64, for `decompose`.
    """
    rows = dict.fromkeys(layers, 0)
    model, sums = exposed(model, rows), dict[str, Tensor]()

    def observe(name: str, layer: Layer, _: object, output: Tensor) -> None:
        def take(gradient: Tensor) -> None:
            flat = as_rows(gradient.detach(), layer)
            grouped = flat.reshape(len(flat), groups_of(layer), -1).transpose(0, 1).float()
            rows[name] += len(flat)
            sums[name] = sums.get(name, torch.zeros(())) + (grouped.mT @ grouped).cpu().double()

        if output.requires_grad:
            output.register_hook(take)  # type: ignore[no-untyped-call]  # as torch declares it

    handles = [layer_of(model, name).register_forward_hook(partial(observe, name)) for name in rows]
    generator = torch.Generator().manual_seed(seed)
    with hooked(handles), untouched(model), torch.enable_grad():
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(True)
        for batch in read_batches(model, batches):
            logits = predict_batch(model, batch)
            labels = torch.multinomial(logits.detach().float().softmax(1).cpu(), 1, generator=generator)[:, 0]
            F.cross_entropy(logits, labels.to(logits.device), reduction="sum").backward()  # type: ignore[no-untyped-call]  # as torch declares it
    return {name: total / rows[name] for name, total in sums.items()}
