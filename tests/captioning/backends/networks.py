"""Small networks for the back ends: CNNs by name, and unusual ways to connect layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.models.encoders import EncoderSettings, GridEncoder

SIZE = 64


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    return ((images.float() - 127) / 64).permute(0, 3, 1, 2)


class Cnn:
    """An encoder of random weights, with random batch-norm statistics."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.encoder = GridEncoder(EncoderSettings(name=name, weights="random"), pretrained=True).eval()
        randomise_norms(self.encoder)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        grid = self.encoder(normalised(images))
        return grid, grid.mean(1)


class Odd(nn.Module):
    """Layers connected in a way that must not be mistaken for another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.way = way
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.third = nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.plain_norm = nn.BatchNorm2d(16, affine=False)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.linear = nn.Linear(16, 24)
        randomise_norms(self.eval())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = getattr(self, self.way)(self.first(normalised(images)))
        return result

    def sum_read_later(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.second(x) + x
        return (self.third(y) * x,)

    def sum_returned(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.second(x) + x, x

    def view_read_later(self, x: Tensor) -> tuple[Tensor, ...]:
        view = x.flatten(2)
        y = self.third(self.second(x) + x)
        return y.flatten(2) * view, y

    def sum_with_itself(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.second(x)
        return (y + y,)

    def sum_with_later(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.second(x)) + self.third(x),)

    def sum_of_shapes(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.second(x) + x.mean((2, 3), keepdim=True),)

    def scaled_sum(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.add(x, self.second(x), alpha=0.5),)

    def sum_then_clipped(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.relu6(self.second(x) + x),)

    def sum_then_relu(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.relu(self.plain_norm(self.second(x)) + functional.silu(x)),)

    def activation_in_place(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.second(x)
        # The mean must be of the clipped values.
        functional.relu_(y)
        return y, y.mean(1)

    def result_read_twice(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.second(x)
        return functional.relu(y), y

    def norm_alone(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.hardswish(self.norm(functional.avg_pool2d(x, 2))),)

    def transposed(self, x: Tensor) -> tuple[Tensor, ...]:
        return (functional.leaky_relu(self.norm(self.up(x))),)

    def weight_of_input(self, x: Tensor) -> tuple[Tensor, ...]:
        weight = x.mean((0, 2, 3)).expand(8, 16)[:, :, None, None]
        return (functional.conv2d(x, weight),)

    def activations(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            functional.leaky_relu(self.second(x)),
            functional.leaky_relu(self.third(x), 0.3),
            functional.gelu(self.second(x)),
            functional.gelu(self.third(x), approximate="tanh"),
            functional.hardtanh(self.norm(self.second(x))),
            torch.sigmoid(self.third(x)),
            functional.hardsigmoid(self.third(x)),
            torch.tanh(self.second(x)),
        )

    def linears(self, x: Tensor) -> tuple[Tensor, ...]:
        states = x.flatten(2).transpose(1, 2)
        linear = self.linear(states)
        return (
            functional.gelu(linear),
            functional.relu(self.linear(states)),
            functional.gelu(self.linear(states[:, 0]), approximate="tanh"),
            functional.linear(states, self.linear.weight).tanh(),
            functional.silu(self.linear(states)),
            linear + 1,
        )

    def padded(self, x: Tensor) -> tuple[Tensor, ...]:
        single = self.second.weight[:, :1]
        sides = ((0, 1, 0, 1), (2, 0, 1, 3), (1, 1, 2, 2), (-1, 1, 0, 0))
        alone = [functional.conv2d(functional.pad(x, side), single, stride=2, groups=16) for side in sides]
        odd = functional.pad(x, (0, 1, 0, 1), value=0.5)
        wide = functional.pad(x, (1, 2, 0, 2))
        return (
            *alone,
            functional.conv2d(odd, single, groups=16),
            functional.conv2d(odd, single, groups=16, padding=1),
            functional.conv2d(wide, single, groups=16, dilation=2),
            functional.conv2d(wide, self.second.weight, stride=2),
            self.norm(functional.conv2d(functional.pad(x, (2, 2, 1, 1)), self.second.weight)),
        )

    def attention(self, x: Tensor) -> tuple[Tensor, ...]:
        states = x.flatten(2).transpose(1, 2)[:, :64].unflatten(2, (2, 8)).transpose(1, 2)
        return (functional.scaled_dot_product_attention(states, states, states).transpose(1, 2).flatten(2),)


ODD = [
    "sum_read_later",
    "sum_returned",
    "view_read_later",
    "sum_with_itself",
    "sum_with_later",
    "sum_of_shapes",
    "scaled_sum",
    "sum_then_clipped",
    "sum_then_relu",
    "activation_in_place",
    "result_read_twice",
    "norm_alone",
    "transposed",
    "weight_of_input",
    "activations",
    "linears",
    "padded",
    "attention",
]


@torch.no_grad()
def randomise_norms(module: nn.Module) -> None:
    """Give batch norms statistics and weights other than the initial ones."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)
