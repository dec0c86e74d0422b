"""Which kernels pools become."""

from fsdtrain_dojo.lowering.describe.average_pooling import (
    describe_adaptive_average,
    describe_adaptive_average_backward,
    describe_average_pool,
    describe_average_pool_backward,
)
from fsdtrain_dojo.lowering.describe.max_pooling import (
    describe_adaptive_max_pool,
    describe_adaptive_max_pool_backward,
    describe_max_pool,
    describe_max_pool_backward,
    describe_unpool,
)
from fsdtrain_dojo.lowering.op_call import Describe

RULES: dict[str, Describe] = {
    "aten.max_pool1d": describe_max_pool,
    "aten.max_pool2d_with_indices": describe_max_pool,
    "aten.max_pool3d_with_indices": describe_max_pool,
    "aten.max_pool2d_with_indices_backward": describe_max_pool_backward,
    "aten.max_pool3d_with_indices_backward": describe_max_pool_backward,
    "aten.adaptive_max_pool2d": describe_adaptive_max_pool,
    "aten.adaptive_max_pool3d": describe_adaptive_max_pool,
    "aten.adaptive_max_pool2d_backward": describe_adaptive_max_pool_backward,
    "aten.adaptive_max_pool3d_backward": describe_adaptive_max_pool_backward,
    "aten.max_unpool2d": describe_unpool,
    "aten.avg_pool1d": describe_average_pool,
    "aten.avg_pool2d": describe_average_pool,
    "aten.avg_pool3d": describe_average_pool,
    "aten.avg_pool2d_backward": describe_average_pool_backward,
    "aten.avg_pool3d_backward": describe_average_pool_backward,
    "aten._adaptive_avg_pool2d": describe_adaptive_average,
    "aten._adaptive_avg_pool3d": describe_adaptive_average,
    "aten._adaptive_avg_pool2d_backward": describe_adaptive_average_backward,
    "aten._adaptive_avg_pool3d_backward": describe_adaptive_average_backward,
}
