"""Residual networks for small images (He et al., 2015, section 4.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import SettingError

# Maximum depth; He et al. (2015) went up to 1,202.
DEEPEST = 1400


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut (He et al., 2015, option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """Residual network for small images (He et al., 2015, section 4.2).

    Maps `[B, 3, H, W]` to `[B, num_classes]`.

    Args:
        depth: number of layers, 6n + 2: 20, 32, 44, 56, ...
        num_classes: number of outputs.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise SettingError("depth", depth, "is not 6n + 2 with an n of 1 or more: use 8, 14, 20, 32, 44, 56, ...")
        if depth > DEEPEST:
            raise SettingError("depth", depth, f"exceeds {DEEPEST}: lower it")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = _BasicBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(_BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, 3, H, W]` to logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any


def cifar_resnet(depth: int, num_classes: int) -> nn.Module:
    """Build a `CifarResNet` with random weights."""
    return CifarResNet(depth, num_classes)
