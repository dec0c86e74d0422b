"""Video memory: a recurrent bird's-eye view that moves with the ego."""

import torch
from torch import Tensor, nn

from fsdtrain.data.geometry import BevGrid
from fsdtrain.ops.table import WarpBev


class BevMemory(nn.Module):
    """A convolutional GRU whose state is warped into each new ego frame before it is read.

    z, r = sigmoid(input + state), candidate = tanh(input + r * state),
    state' = (1 - z) * state + z * candidate. Source: ConvGRU, arXiv 1511.06432.
    The input's share of all gates and all frames is one convolution.
    """

    def __init__(self, *, grid: BevGrid, channels: int, kernel: int, warp_bev: WarpBev) -> None:
        super().__init__()
        self.warp_bev = warp_bev
        self.min_corner_m = (grid.x_min_m, grid.y_min_m)
        self.cell_m = grid.cell_m
        padding = kernel // 2
        self.from_input = nn.Conv2d(channels, 3 * channels, 3, padding=1)
        self.gates_from_state = nn.Conv2d(
            channels, 2 * channels, kernel, padding=padding, bias=False
        )
        self.candidate_from_state = nn.Conv2d(
            channels, channels, kernel, padding=padding, bias=False
        )

    def forward(
        self, bev_BTCXY: Tensor, previous_to_current_BT44: Tensor, reset_BT: Tensor
    ) -> Tensor:
        """[B, T, C, X, Y]: the state after each frame. The first frame always starts afresh."""
        B, T, C, X, Y = bev_BTCXY.shape
        inputs = self.from_input(bev_BTCXY.flatten(0, 1))
        # Frames are cut apart and stacked with the channels last, the order they lie in memory:
        # any other order costs a transposition each way.
        inputs_BTXYC = inputs.permute(0, 2, 3, 1).unflatten(0, (B, T))
        states: list[Tensor] = []
        for frame, inputs_BXYC in enumerate(inputs_BTXYC.unbind(1)):
            keep, read, candidate = inputs_BXYC.permute(0, 3, 1, 2).split(C, dim=1)
            if not states:
                states.append(torch.sigmoid(keep) * torch.tanh(candidate))
                continue
            state = self.warp_bev(
                states[-1], previous_to_current_BT44[:, frame], self.min_corner_m, self.cell_m
            )
            # where(), not a product: a state that went to NaN must not survive the reset.
            state = torch.where(reset_BT[:, frame, None, None, None], 0.0, state)
            keep_state, read_state = self.gates_from_state(state).split(C, dim=1)
            update = torch.sigmoid(keep + keep_state)
            read = torch.sigmoid(read + read_state)
            candidate = torch.tanh(candidate + self.candidate_from_state(read * state))
            states.append(state + update * (candidate - state))
        states_BTXYC = torch.stack([state.permute(0, 2, 3, 1) for state in states], 1)
        return states_BTXYC.permute(0, 1, 4, 2, 3)
