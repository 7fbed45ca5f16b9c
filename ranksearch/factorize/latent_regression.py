"""Factors of a layer that has few rows: ridge regression of its outputs on latent values.

The covariance of whole patches needs several rows for each entry of a patch. That of a piece needs fewer, and gives
first factors of more ranks than asked for. They run on the layer's inputs, and the second factor is a regression on
patches of their latent values, with far fewer unknowns for each output than the layer itself has.

The target is what the layer computes for these inputs, not what it computed in the dense network: few rows are fitted
too well by making up for the errors of earlier layers, which were solved on the same examples.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from ranksearch.factorize.als import (
    LEAST_RIDGE,
    AlternatingLeastSquares,
    Fold,
    LatentMoments,
    chosen_ridge,
    first_factors,
    rows_to_combine,
)
from ranksearch.factorize.base import Factors, grouped_weight, square_roots
from ranksearch.factorize.calibration import observe_inputs
from ranksearch.factorize.layers.base import FactorizedLayer
from ranksearch.factorize.patch_moments import Taps, at_least_float32
from ranksearch.factorize.separable import pieces
from ranksearch.factorize.statistics import Layer, groups_of
from ranksearch.factorize.thinning import Thinning, as_rows

# The ridge of larger patches is chosen on a single fold.
LARGEST_TO_VALIDATE_TWICE = 1024


def regress_on_latent_values(
    layer: Layer,
    twin: FactorizedLayer,
    inputs: Tensor,
    mean: Tensor,
    sensitivity: Tensor | None = None,
) -> Factors:
    """Return the factors of a layer that reproduce its outputs for some inputs best.

    Args:
        layer: the dense layer, which is followed where the inputs determine little.
        twin: factorized layer of the scheme and latent size to solve for; left unchanged.
        inputs: inputs of at least two examples, `[B, in, H, W]` or `[B, ..., in]`.
        mean: mean outputs wanted for them, `[out]`.
        sensitivity: error weights; see `decompose`.
    """
    groups, rank = groups_of(layer), twin.latent_size // groups_of(layer)
    weight, root, inverse = grouped_weight(layer, groups), None, None
    rows_of_outputs = as_rows(at_least_float32(layer(inputs)), layer).to(weight.device)
    outputs = rows_of_outputs.reshape(len(inputs), -1, groups, weight.shape[1])
    inputs = at_least_float32(inputs).to(weight.device)
    if sensitivity is not None:
        root, inverse = square_roots(sensitivity, weight)
        weight, outputs = root @ weight, torch.einsum("gop,bngp->bngo", root.to(outputs), outputs)
    whole = not isinstance(layer, nn.Conv2d) or twin.scheme == "full"
    order = torch.arange(weight.shape[2])[None] if whole else pieces(layer, twin.scheme)  # type: ignore[arg-type]  # a convolution
    weight = weight[:, :, order].to(inputs)
    level = as_rows(inputs, layer).var(0, correction=0).reshape(groups, -1).mean(1)
    rows = _candidates(twin, weight, inputs, outputs, level, rank)
    # Split by example, since positions of an image are correlated.
    even, odd = (_moments(twin, rows, inputs[half::2], outputs[half::2]) for half in range(2))
    white_cross = torch.einsum("grp,gokp->grko", rows, weight)
    white = rows @ rows.mT, white_cross, weight.square().sum((1, 2, 3))
    problem = AlternatingLeastSquares(even + odd, *white, level)
    folds = [Fold(replace(problem, moments=seen), unseen) for seen, unseen in ((even, odd), (odd, even))]
    entries = weight[0, 0].numel()
    ridge = chosen_ridge(folds[: 1 if entries > LARGEST_TO_VALIDATE_TWICE else 2], rank, entries)
    combination, second = problem.ridged(ridge).solve(rank)
    moments = problem.moments
    latent = (combination @ moments.mean.flatten(2)).reshape(groups, rank, -1)
    explained = torch.einsum("grk,grko->go", latent, second).double()
    up = second.double().permute(0, 3, 1, 2).flatten(2)
    if inverse is not None:
        up, explained = inverse @ up, (inverse @ explained[..., None])[..., 0]
    bias = mean.to(explained) - explained.flatten()
    like, first = layer.weight.detach(), combination.double() @ rows.double()
    down, up = first.reshape(twin.module0.weight.shape), up.reshape(twin.module1.weight.shape)
    return Factors(down.to(like), up.to(like), bias.to(like))


def _with_rows(first: Layer, rows: Tensor) -> Layer:
    """Return a layer like a first factor, of other rows, `[groups, ranks, piece]`."""
    other = copy.copy(first)
    weight = rows.reshape(-1, *first.weight.shape[1:])
    other._parameters = {"weight": nn.Parameter(weight, requires_grad=False), "bias": None}
    return other


def _candidates(
    twin: FactorizedLayer, weight: Tensor, inputs: Tensor, outputs: Tensor, level: Tensor, rank: int
) -> Tensor:
    """Return more first factors than the rank, the leading one first, `[groups, ranks, piece]`.

    Args:
        twin: the factorized layer.
        weight: weight of the dense layer, `[groups, out / groups, offsets, piece]`.
        inputs: inputs of the layer.
        outputs: its outputs for them, `[B, positions, groups, out / groups]`.
        level: mean variance of the inputs, `[groups]`.
        rank: rank of one group.
    """
    _, out, offsets, piece = weight.shape
    ranks = min(piece, out * offsets, max(rank, rows_to_combine(rank)))
    if offsets == 1:
        # The covariance of whole patches matters through the outputs alone.
        seen = outputs.flatten(0, 1).transpose(0, 1)
        seen = seen - seen.mean(1, keepdim=True)
        values, vectors = torch.linalg.eigh((seen.mT @ seen / seen.shape[1]).double())
        values, vectors = values[:, -ranks:].flip(-1), vectors[..., -ranks:].flip(-1)
        largest = torch.where(values[:, :1] > 0, values[:, :1], 1.0)
        scales = values.clamp_min(LEAST_RIDGE * largest).rsqrt()
        rows: Tensor = (vectors * scales[:, None]).mT @ weight[:, :, 0].double()
        return rows.to(weight)
    assert isinstance(twin.module0, nn.Conv2d)
    thinning = Thinning(1, Taps.from_layer(twin.module0))
    covariance = observe_inputs(twin.module0, [inputs], thinning).all.covariance.clone()
    ridge = torch.where(level > 0, LEAST_RIDGE * level, torch.ones_like(level))
    covariance.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    return first_factors(weight, covariance, ranks)[0].to(weight)


def _moments(twin: FactorizedLayer, rows: Tensor, inputs: Tensor, outputs: Tensor) -> LatentMoments:
    """Return the moments of latent values and outputs.

    Args:
        twin: the factorized layer.
        rows: first factors, `[groups, ranks, piece]`.
        inputs: inputs of some examples.
        outputs: outputs for them, `[B, positions, groups, out / groups]`.
    """
    groups, ranks = rows.shape[:2]
    latent = _with_rows(twin.module0, rows)(inputs)
    patches = as_rows(latent, twin.module0)[..., None]
    if isinstance(twin.module1, nn.Conv2d):
        unfolded = torch.cat(list(Taps.from_layer(twin.module1).unfolded(latent)))
        patches = unfolded.permute(0, 3, 1, 2).flatten(0, 1)
    patches = patches.reshape(len(patches), groups, ranks, -1).transpose(0, 1)
    return LatentMoments.from_rows(patches, outputs.flatten(0, 1).transpose(0, 1))
