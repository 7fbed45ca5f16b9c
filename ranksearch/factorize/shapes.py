"""Shapes of layers, and the split of a convolution's settings between two factors."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ranksearch.factorize.layers.padded import NO_PADDING, AxisPadding, PaddedConv2d
from ranksearch.factorize.statistics import Layer
from ranksearch.plan import FIRST_AXES, LayerSpec

KernelSize = int | Sequence[int]


def pair(kernel_size: KernelSize) -> tuple[int, int]:
    """Return the height and width of a kernel."""
    if isinstance(kernel_size, int):
        return kernel_size, kernel_size
    height, width = kernel_size
    return int(height), int(width)


def describe(
    layer: Layer, name: str | None = None, positions: int = 1, latent_positions: Mapping[str, int] | None = None
) -> LayerSpec:
    """Return the shape of a layer, by default for a single position on its maps.

    Args:
        layer: a convolution or a linear layer.
        name: name of the layer in the model; None for the name of its type.
        positions: number of output positions for one example.
        latent_positions: scheme -> number of positions of the map between the two factors.
    """
    label = type(layer).__name__ if name is None else name
    if isinstance(layer, nn.Linear):
        return LayerSpec(label, "linear", layer.in_features, layer.out_features, positions)
    sizes, kernel = (layer.in_channels, layer.out_channels), pair(layer.kernel_size)
    return LayerSpec(label, "conv2d", *sizes, positions, kernel, layer.groups, dict(latent_positions or {}))


def settings_of(convolution: nn.Conv2d) -> dict[str, Any]:
    """Return the settings of a convolution other than its channels and weights."""
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    settings = {name: getattr(convolution, name) for name in names}
    if paddings_of(convolution) is not None:
        settings |= {"padding": (0, 0), "paddings": paddings_of(convolution)}
    return settings


def paddings_of(convolution: nn.Module) -> Sequence[AxisPadding] | None:
    """Return the paddings of a convolution that `PaddedConv2d` stands for, factorized or not; None for any other."""
    paddings: Sequence[AxisPadding] | None = getattr(convolution, "paddings", None)
    return paddings


def convolution(in_channels: int, out_channels: int, **settings: Any) -> nn.Conv2d:
    """Return a convolution of given settings; see `settings_of`."""
    if "paddings" not in settings:
        return nn.Conv2d(in_channels, out_channels, **settings)
    rest = {name: value for name, value in settings.items() if name not in ("padding", "padding_mode")}
    return PaddedConv2d(in_channels, out_channels, **rest)


# Settings of a factor along an axis that belongs to the other factor.
NEUTRAL: Mapping[str, Any] = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}


def split_settings(settings: Mapping[str, Any], scheme: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the settings of a convolution between its two factors, axis by axis.

    Both factors together pad as the convolution does, in any padding mode: as the first factor has no bias, it commutes
    with the padding along the second factor's axes.
    """
    factors = []
    for first in (True, False):
        owned = [rows_or_columns == first for rows_or_columns in FIRST_AXES[scheme]]
        factor = {name: value for name, value in settings.items() if name not in (*NEUTRAL, "padding_mode", "paddings")}
        if not any(owned):
            factors.append({**factor, "kernel_size": 1})
            continue
        for name, neutral in NEUTRAL.items():
            if name in settings:
                value = settings[name]
                whole = all(owned) or isinstance(value, str)
                factor[name] = value if whole else _by_axis(value, owned, neutral)
        if "paddings" in settings:
            axes = zip(settings["paddings"], owned, strict=True)
            factor["paddings"] = [padding if is_own else NO_PADDING for padding, is_own in axes]
        factors.append({**factor, **{name: settings[name] for name in ("padding_mode",) if name in settings}})
    return factors[0], factors[1]


def _by_axis(value: KernelSize, owned: Sequence[bool], neutral: int) -> tuple[int, ...]:
    return tuple(setting if is_own else neutral for setting, is_own in zip(pair(value), owned, strict=True))


def joined_settings(first: nn.Conv2d, second: nn.Conv2d, scheme: str) -> dict[str, Any]:
    """Return the settings of the convolution that two factors were split from."""
    owners = [first if first_owns else second for first_owns in FIRST_AXES[scheme]]
    joined: dict[str, Any] = {"groups": first.groups, "padding_mode": owners[0].padding_mode}
    for name in NEUTRAL:
        values = [getattr(owner, name) for owner in owners]
        joined[name] = values[0] if isinstance(values[0], str) else (values[0][0], values[1][1])
    paddings = [paddings_of(owner) for owner in owners]
    if any(paddings):
        joined["paddings"] = [axes[axis] if axes else NO_PADDING for axis, axes in enumerate(paddings)]
    return joined
