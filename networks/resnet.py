"""ResNet-18 without its classifier: one picture -> one 512-vector.

The parameters carry the names of every public ResNet-18 checkpoint (conv1, bn1,
layer{1..4}.{0,1}.*), so the authors' files load without a table of renames.
"""

from torch import Tensor, nn
from torch.nn.functional import conv2d

NUM_FEATURES = 512


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip branch.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's residual to `x`, (N, C, H, W) float."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu(self.downsample(x) + residual)


class ResNet18(nn.Module):
    """The stem and four stages of ResNet-18, globally average-pooled.

    Source: He et al., CVPR 2016, table 1, 18 layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Embed (N, 3 or 1, H, W) float into (N, 512) float."""
        return self.stages(x).mean((2, 3))

    def stages(self, x: Tensor) -> Tensor:
        """Turn (N, 3 or 1, H, W) float into the last stage's map, (N, 512, H/32, W/32) float.

        One channel stands for three equal ones.
        """
        x = self.maxpool(self.relu(self.bn1(self.stem(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def stem(self, x: Tensor) -> Tensor:
        """Convolve (N, 3 or 1, H, W): on one channel for a third of the work."""
        if x.shape[1] == self.conv1.in_channels:
            return self.conv1(x)
        return conv2d(
            x, self.narrow_weight(), self.conv1.bias, self.conv1.stride, self.conv1.padding
        )

    def narrow_weight(self) -> Tensor:
        """Make of conv1's weight one for a single channel: (64, 1, 7, 7)."""
        return self.conv1.weight.sum(1, keepdim=True)
