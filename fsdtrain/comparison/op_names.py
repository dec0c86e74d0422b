"""One name for one op, whatever a side's libraries call it, so that two profiles can be matched.

It does not know times. PyTorch calls a convolution by up to five names on its way to a kernel, and
each of them is an event of its own with the time that it took itself.
"""

NAMESPACES = ("aten::", "aten.", "prims::", "prims.", "fsdtrain::", "fsdtrain.")

# Name on the way to a kernel -> the op that it is part of.
SYNONYMS = {
    **dict.fromkeys(
        (
            "conv2d", "_convolution", "mkldnn_convolution", "cudnn_convolution", "thnn_conv2d",
            "_slow_conv2d_forward", "_nnpack_available",
        ),
        "convolution",
    ),
    "_slow_conv2d_backward": "convolution_backward",
    "cudnn_convolution_backward": "convolution_backward",
    **dict.fromkeys(
        (
            "batch_norm", "_batch_norm_impl_index", "cudnn_batch_norm",
            "_native_batch_norm_legit_functional", "_native_batch_norm_legit",
        ),
        "native_batch_norm",
    ),
    "cudnn_batch_norm_backward": "native_batch_norm_backward",
    "layer_norm": "native_layer_norm",
    "group_norm": "native_group_norm",
    "grid_sampler": "grid_sampler_2d",
    "softmax": "_softmax",
    "log_softmax": "_log_softmax",
    "clamp_min": "relu",  # what relu calls
    "linear": "addmm",
    "matmul": "mm",
    "_foreach_add": "add",
    "_to_copy": "to",
    **dict.fromkeys(("nll_loss", "nll_loss_nd", "cross_entropy_loss"), "nll_loss_forward"),
    "log_sigmoid": "log_sigmoid_forward",
}  # fmt: skip


def main_op(name: str) -> str:
    """The op that a row of a profile is of: of a fused one, the first.

    "aten::relu_" -> "relu", "convolution + add + relu" -> "convolution".
    """
    first = name.partition(" + ")[0]
    for namespace in NAMESPACES:
        first = first.removeprefix(namespace)
    bare = first.partition(".")[0]  # the overload
    # __and__ is an op, and add_ writes in place.
    in_place = bare.endswith("_") and not bare.endswith("__")
    bare = bare[:-1] if in_place else bare
    return SYNONYMS.get(bare, bare)
