"""The two factorized layers: a narrow layer into the latent space, a pointwise layer out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ranksearch.errors import PlanError
from ranksearch.plan import LayerSpec, resolve_latent_size


def _rank(size: float, spec: LayerSpec) -> int:
    return spec.require_saving(resolve_latent_size(size, spec.in_size, spec.out_size))


class FactorizedConv2d(nn.Module):
    """A convolution as two: the layer's own kernel into the latent channels, then a 1x1 to the outputs.

    Maps `[B, in_channels, H, W]` to `[B, out_channels, H', W']`, as ``nn.Conv2d`` of the same settings does.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: one int for both axes, or height and width.
        latent_channels: an int of at least 1, or a fraction in (0, 1) of ``min(in_channels, out_channels)``.
        **kwargs: what ``nn.Conv2d`` takes besides; ``bias`` goes to the second factor, the rest to the first,
            ``device`` and ``dtype`` to both. ``groups`` other than 1 is refused.

    Raises:
        PlanError: the latent size saves no multiply-adds, or the convolution is grouped.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        latent_channels: float = 0.25,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs.get("groups", 1) != 1:
            raise PlanError(f"groups={kwargs['groups']} cannot be factorized: leave grouped convolutions dense")
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        spec = LayerSpec("convolution", "conv2d", in_channels, out_channels, 1, (height, width))
        latent = _rank(latent_channels, spec)
        bias = kwargs.pop("bias", True)
        tensor_options = {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}
        self.module0 = nn.Conv2d(in_channels, latent, (height, width), bias=False, **kwargs)
        self.module1 = nn.Conv2d(latent, out_channels, 1, bias=bias, **tensor_options)

    @property
    def in_channels(self) -> int:
        """Input channels."""
        return self.module0.in_channels

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return self.module1.out_channels

    @property
    def latent_channels(self) -> int:
        """Channels between the two factors."""
        return self.module0.out_channels

    @property
    def latent_size(self) -> int:
        """The same as `latent_channels`."""
        return self.latent_channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply both factors to `[B, in_channels, H, W]`."""
        return self.module1(self.module0(x))  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any


class FactorizedLinear(nn.Module):
    """A linear layer as two, through fewer features. Maps `[..., in_features]` to `[..., out_features]`.

    Args:
        in_features: input features.
        out_features: output features.
        bias: whether the second factor has a bias.
        latent_features: an int of at least 1, or a fraction in (0, 1) of ``min(in_features, out_features)``.
        **kwargs: ``device`` and ``dtype``.

    Raises:
        PlanError: the latent size saves no multiply-adds.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        latent_features: float = 0.25,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        spec = LayerSpec("linear layer", "linear", in_features, out_features, 1)
        latent = _rank(latent_features, spec)
        self.module0 = nn.Linear(in_features, latent, bias=False, **kwargs)
        self.module1 = nn.Linear(latent, out_features, bias=bias, **kwargs)

    @property
    def in_features(self) -> int:
        """Input features."""
        return self.module0.in_features

    @property
    def out_features(self) -> int:
        """Output features."""
        return self.module1.out_features

    @property
    def latent_features(self) -> int:
        """Features between the two factors."""
        return self.module0.out_features

    @property
    def latent_size(self) -> int:
        """The same as `latent_features`."""
        return self.latent_features

    def forward(self, x: Tensor) -> Tensor:
        """Apply both factors to `[..., in_features]`."""
        return self.module1(self.module0(x))  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any
