"""Models that do something out of the ordinary: each is captured, exact, and rounded everywhere."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.dojo.oracle import watch
from tests.backends.dojo.running import CFP8, IDENTITY, emulate, relative_error, run_step

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
QUICK = {"Buffers", "FrozenStem", "Experts"}


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = (
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 1),
            nn.Conv2d(4, 4, 1, groups=4),
        )  # fmt: skip
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.view(-1, 2, 3, 8).contiguous(memory_format=torch.channels_last)
        return self.network(maps).square().mean()


class FrozenStem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(6, 4, 3), nn.Conv1d(4, 2, 3)
        self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu()).square().mean()


class Buffers(nn.Module):
    """Keeps a moving average and a count of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.count += 1
        self.average.mul_(0.9).add_(y.detach().mean((0, 1)), alpha=0.1)
        return (y - self.average).square().mean()


class Parametrized(nn.Module):
    """Weights that are computed, and a penalty on one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
        self.second = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        return y.square().mean() + 1e-3 * self.first.weight.square().sum()


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, self.encoder(x)).square().mean()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 4, 2, bidirectional=True, dropout=0.3)
        self.rnn = nn.RNN(8, 4)
        self.lstm = nn.LSTM(4, 6, 2, proj_size=3, dropout=0.3, bidirectional=True)
        self.lstm_cell, self.gru_cell = nn.LSTMCell(6, 4), nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lstm(self.rnn(self.gru(x)[0])[0])[0]
        hidden, cell = self.lstm_cell(y[0])
        return self.gru_cell(hidden, cell).square().mean()


class OtherDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.transposed = nn.Conv1d(6, 8, 3), nn.ConvTranspose1d(8, 6, 3)
        self.norm, self.prelu = nn.InstanceNorm1d(6, affine=True), nn.PReLU()
        self.volume = nn.Conv3d(1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.transposed(self.prelu(self.conv(x))))
        return self.volume(y[:, None, :, :, None].expand(-1, -1, -1, -1, 3)).square().mean()


class Experts(nn.Module):
    """Weights picked by index, a loss of more than the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.Parameter(0.3 * torch.randn(3, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        chances = self.gate(x[:, 0]).softmax(-1)
        values, chosen = chances.topk(2, -1)
        y = torch.einsum("nk,nkij,ni->nj", values, self.experts[chosen], x[:, 0])
        return y.square().mean() + chances.mean(0).var()


class RotaryAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        angle = torch.arange(x.shape[1])[:, None] * 0.3 ** torch.arange(4)

        def turn(z: Tensor) -> Tensor:
            a, b = z[..., ::2], z[..., 1::2]
            turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
            return torch.stack(turned, -1).flatten(-2)

        return F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True).square().mean()


class Deformable(nn.Module):
    """Sampling places that the network predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.conv = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.view(-1, 2, 3, 8)
        places = torch.eye(2, 3).expand(len(maps), 2, 3)
        grid = F.affine_grid(places, list(maps.shape), align_corners=False)
        grid = grid + 0.1 * self.offset(maps).permute(0, 2, 3, 1).tanh()
        return self.conv(F.grid_sample(maps, grid, align_corners=False)).square().mean()


MODELS: list[Callable[[], nn.Module]] = [
    ChannelsLast, FrozenStem, Buffers, Parametrized, Transformer, Recurrent, OtherDimensions,
    Experts, RotaryAttention, Deformable,
]  # fmt: skip
EACH_MODEL = pytest.mark.parametrize(
    "build",
    [
        pytest.param(m, id=m.__name__, marks=() if m.__name__ in QUICK else pytest.mark.slow)
        for m in MODELS
    ],
)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def make_model(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return build(), torch.randn(3, 6, 8)


@EACH_MODEL
def test_identity_recipe_gives_eagers_steps(build: Callable[[], nn.Module]) -> None:
    eager, x = make_model(build)
    captured, _ = make_model(build)
    emulate(captured, IDENTITY)
    for seed in range(2):
        wanted, found = run_step(eager, x, seed=seed), run_step(captured, x, seed=seed)
        assert relative_error(found.loss, wanted.loss) <= 1e-6
        assert found.gradients.keys() == wanted.gradients.keys()
        for name, gradient in wanted.gradients.items():
            assert relative_error(found.gradients[name], gradient) <= 2e-6, name
        for name, value in wanted.buffers.items():
            assert relative_error(found.buffers[name], value) <= 2e-6, name


@EACH_MODEL
def test_nothing_is_read_unrounded(build: Callable[[], nn.Module]) -> None:
    model, x = make_model(build)
    emulate(model, CFP8)
    run_step(model, x)
    assert not watch(model, x, {role: rule["format"] for role, rule in CFP8.items()}).faults
