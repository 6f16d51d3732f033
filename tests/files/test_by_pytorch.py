"""Imported weights give PyTorch's outputs: hand-written modules with the published names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.files import flattened, mlp_names, resnet_names, vgg_names
from wsa_jax.files.name_map import Entry, NameMap
from wsa_jax.models import MLP, VGG, ImageNetResNet, ResNet

torch = pytest.importorskip("torch")


class Block(torch.nn.Module):
    def __init__(self, before, after, stride, shortcut):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(after)
        self.conv2 = torch.nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(after)
        self.stride, self.more = stride, after - before
        if shortcut and (stride > 1 or self.more):
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(before, after, shortcut, stride, shortcut // 2, bias=False),
                torch.nn.BatchNorm2d(after),
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "downsample"):
            return torch.relu(y + self.downsample(x))
        sides = (self.more // 2, self.more - self.more // 2)
        kept = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + torch.nn.functional.pad(kept, (0, 0, 0, 0, *sides)))


class Network(torch.nn.Module):
    def __init__(self, stem, widths, shortcut):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(stem)
        for index, (before, after) in enumerate(zip((stem, *widths), widths, strict=False), 1):
            block = Block(before, after, 2 if index > 1 else 1, shortcut)
            setattr(self, f"layer{index}", torch.nn.Sequential(block))
        self.fc = torch.nn.Linear(widths[-1], 3)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class LargeBlock(torch.nn.Module):
    """Torchvision's basic block or bottleneck, whose names it has."""

    def __init__(self, before, width, stride, bottleneck):
        super().__init__()
        sizes = [(3, width, stride), (3, width, 1)]
        if bottleneck:
            sizes = [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
        channels, self.count = before, len(sizes)
        for index, (size, after, step) in enumerate(sizes, 1):
            conv = torch.nn.Conv2d(channels, after, size, step, size // 2, bias=False)
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", torch.nn.BatchNorm2d(after))
            channels = after
        if stride > 1 or before != channels:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(before, channels, 1, stride, bias=False),
                torch.nn.BatchNorm2d(channels),
            )
        self.after = channels

    def forward(self, x):
        y = x
        for index in range(1, self.count + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = torch.relu(y) if index < self.count else y
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class LargeNetwork(torch.nn.Module):
    def __init__(self, stem, widths, counts, bottleneck):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(stem)
        self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
        before = stem
        for stage, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
            blocks = []
            for position in range(count):
                stride = 2 if stage > 1 and not position else 1
                blocks.append(LargeBlock(before, width, stride, bottleneck))
                before = blocks[-1].after
            setattr(self, f"layer{stage}", torch.nn.Sequential(*blocks))
        self.stages, self.fc = len(widths), torch.nn.Linear(before, 3)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def vgg(norm, dense):
    def convolution(before, after):
        bn = [torch.nn.BatchNorm2d(after)] if norm == "batch" else []
        return [torch.nn.Conv2d(before, after, 3, padding=1), *bn, torch.nn.ReLU()]

    module = torch.nn.Module()
    pool = torch.nn.MaxPool2d(2)
    module.features = torch.nn.Sequential(*convolution(3, 4), pool, *convolution(4, 5))
    head = torch.nn.Linear(80, 3)
    if dense:
        between = [torch.nn.Linear(80, 6), torch.nn.ReLU(), torch.nn.Dropout()]
        head = torch.nn.Sequential(*between, torch.nn.Linear(6, 3))
    module.classifier = head
    module.forward = lambda x: module.classifier(module.features(x).flatten(1))
    return module


def resnet(shortcut):
    module = ResNet(1, 4, (4, 6, 9), 3, norm="batch", shortcut=shortcut, padding="symmetric")
    size = 0 if shortcut == "pad" else shortcut
    return module, resnet_names(module), Network(4, (4, 6, 9), size)


def large_resnet(bottleneck, widths, counts):
    module = ImageNetResNet(counts, 3, bottleneck=bottleneck, widths=widths, stem=4)
    return module, resnet_names(module), LargeNetwork(4, widths, counts, bottleneck)


def vgg_pair(norm, dense):
    module = VGG(features=(4, "M", 5), dense=dense, num_classes=3, norm=norm)
    return module, vgg_names(module, side=8), vgg(norm, dense)


def mlp():
    module = MLP(features=(6, 3))
    first, *others = mlp_names(module).entries
    # Images of three channels: the first entry of the table is replaced.
    names = NameMap("mlp", (Entry(first.theirs, first.ours, flattened(3, 8, 8)), *others))
    layers = [torch.nn.Flatten(), torch.nn.Linear(192, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)]
    foreign = torch.nn.Sequential(*layers[1:])
    inner = foreign.forward
    foreign.forward = lambda x: inner(x.flatten(1))
    return module, names, foreign


PAIRS = {
    "resnet option A": lambda: resnet("pad"),
    "resnet option B": lambda: resnet(1),
    "imagenet resnet": lambda: large_resnet(False, (4, 5), (2, 1)),
    "imagenet resnet, bottlenecks": lambda: large_resnet(True, (1, 2), (1, 2)),
    "vgg": lambda: vgg_pair("none", (6,)),
    "vgg-bn": lambda: vgg_pair("batch", ()),
    "mlp": mlp,
}


@pytest.mark.parametrize("pair", PAIRS)
def test_outputs_are_pytorch_s(pair):
    torch.manual_seed(0)
    module, names, foreign = PAIRS[pair]()
    # An odd side tells paddings apart; the others say how many pixels they flatten.
    side = 27 if pair.startswith("imagenet") else 8
    images = np.random.default_rng(0).standard_normal((4, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        for leaf in foreign.parameters():
            leaf += 0.1 * torch.randn(leaf.shape)
        foreign.train()
        foreign(torch.tensor(images))  # statistics away from 0 and 1
        foreign.eval()
        expected = foreign(torch.tensor(images)).numpy()
    theirs = {name: leaf.numpy() for name, leaf in foreign.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, names.to_ours(theirs))
    outputs = jax.jit(module.apply)(variables, jnp.asarray(images.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    back = names.to_theirs(variables)
    assert set(theirs) - set(back) == {name for name in theirs if name.endswith("_tracked")}
    assert all(back[name].tobytes() == theirs[name].tobytes() for name in back)
