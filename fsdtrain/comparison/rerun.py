"""What the scripts of `compare --repro` call: tensors of a file, rounding, and the errors in words.

The file is of numpy's, with a list of names, shapes and strides beside it; nothing is unpickled.
It does not know which op is run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fsdtrain.backend import Backend
from fsdtrain.comparison.errors import compare_tensors
from fsdtrain.comparison.record import Errors
from fsdtrain.errors import UserError

TENSORS: Final = "tensors.npz"
LAYOUTS: Final = "tensors.json"


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors of any dtype and strides; what overlaps itself is written out."""
    arrays, layouts = {}, []
    for number, (name, tensor) in enumerate(tensors.items()):
        tensor = tensor.detach().cpu()
        is_bf16 = tensor.dtype is torch.bfloat16  # numpy has none: its bits
        arrays[f"t{number}"] = (tensor.view(torch.int16) if is_bf16 else tensor).numpy()
        layouts.append(
            {"name": name, "key": f"t{number}", "stride": tensor.stride(), "is_bf16": is_bf16}
        )
    np.savez(folder / TENSORS, **arrays)  # type: ignore[arg-type]
    (folder / LAYOUTS).write_text(json.dumps(layouts, indent=1) + "\n", encoding="ascii")


def load_tensors(script: str) -> dict[str, Tensor]:
    """The tensors that lie beside a script, by name, in the order in memory that they had.

    Raises:
        UserError: they do not lie there.
    """
    folder = Path(script).parent
    if not (folder / TENSORS).is_file() or not (folder / LAYOUTS).is_file():
        raise UserError(
            f"{folder} lacks {TENSORS} or {LAYOUTS}: they belong to {Path(script).name}"
        )
    layouts = json.loads((folder / LAYOUTS).read_text(encoding="ascii"))
    with np.load(folder / TENSORS, allow_pickle=False) as arrays:
        return {
            each["name"]: _laid_out(
                torch.from_numpy(arrays[each["key"]]), each["stride"], is_bf16=each["is_bf16"]
            )
            for each in layouts
        }


def _laid_out(values: Tensor, stride: Sequence[int], *, is_bf16: bool) -> Tensor:
    if is_bf16:
        values = values.view(torch.bfloat16)
    # A dimension of stride 0 holds the same again and again.
    once = values[tuple(slice(1) if step == 0 else slice(None) for step in stride)]
    if not _is_dense(once.shape, stride):
        return values
    return torch.empty_strided(once.shape, stride, dtype=once.dtype).copy_(once).expand_as(values)


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether elements lie without holes and overlaps, in any order of the dimensions."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1:
            if step != expected:
                return False
            expected *= size
    return True


def on(backend: Backend, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors where a backend computes."""
    return {name: backend.to_device(tensor) for name, tensor in tensors.items()}


def doubled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those of floats in double precision."""
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def stored(result: Tensor, backend: Backend, **words: object) -> Tensor:
    """A result as a backend stores it; the words are the backend's own, see `Backend.store`."""
    own = result.clone()
    backend.store(words)(own)
    return own


def describe_sides(a: Backend, b: Backend) -> str:
    """What the sides are, and where their values come from."""
    return "\n".join(
        f"{side}: {backend.name}, {backend.value_origin} on {backend.device_name()}"
        for side, backend in (("a", a), ("b", b))
    )


def describe_errors(
    exact: Mapping[str, Tensor], a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> str:
    """A line for each result: a and b against double precision, and b against a."""
    lines = []
    for name, reference in exact.items():
        x, y = a[name].cpu(), b[name].cpu()
        lines.append(f"{name} {list(reference.shape)}")
        for what, first, second in (
            ("a against double precision", reference, x),
            ("b against double precision", reference, y),
            ("b against a", x, y),
        ):
            lines.append(f"  {what:27} {_describe(compare_tensors(first, second))}")
    return "\n".join(lines)


def _describe(errors: Errors) -> str:
    if errors.is_bitwise_equal:
        return "equal in every bit"
    return (
        f"SNR {_number(errors.snr_db)} dB, cosine {_number(errors.cosine)}, "
        f"max|d|/RMS {_number(errors.max_over_rms)}, scale {_number(errors.scale)}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.7g}"
