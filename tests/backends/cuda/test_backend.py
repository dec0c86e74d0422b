"""The CUDA backend's options, what it says where it cannot run, and on a GPU what it promises."""

import copy
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdtrain_cuda import CudaBackend
from fsdtrain_cuda.backend import MODES
from fsdtrain_cuda.device import check_devices, find_device
from fsdtrain_cuda.numerics import set_numerics
from fsdtrain_cuda.precision import make_precision
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils import _pytree

from fsdtrain.backend import BackendError
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.hydra_app import compose_config
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.settings import read_settings

ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """The backend sets switches of the whole process."""
    precision, allow_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    has_workspace = "CUBLAS_WORKSPACE_CONFIG" in os.environ
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
    if not has_workspace:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.fixture
def as_if(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`as_if(cuda="13.0", num_gpus=2, ...)`: what torch tells of the machine."""

    def pretend(
        *,
        cuda: str | None = "13.0",
        hip: str | None = None,
        num_gpus: int = 2,
        capability: tuple[int, int] = (9, 0),
    ) -> None:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"GPU {index}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)

    return pretend


def test_a_cpu_build_is_told_what_to_install(as_if: Callable[..., None]) -> None:
    as_if(cuda=None, num_gpus=0)
    assert find_device().detail == (
        "no GPU: this torch is a CPU build; install the CUDA build of torch to use one"
    )


def test_no_gpu_and_an_old_driver_are_told_apart_in_torchs_words(
    as_if: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if(num_gpus=0)
    found = find_device()
    assert not found.is_available
    assert "torch for CUDA 13.0 sees no GPU: none is present, or its driver" in found.detail

    def warns() -> bool:
        warnings.warn(
            "The NVIDIA driver on your system is too old (found 11040).\nMore", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warns)
    detail = find_device().detail
    assert "sees no GPU: The NVIDIA driver on your system is too old (found 11040).;" in detail


def test_without_triton_it_cannot_run(
    as_if: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if()
    assert find_device().is_available
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in find_device().detail
    assert not find_device().is_available


def test_a_triton_that_cannot_be_imported_is_one_sentence(
    as_if: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendError, match="Triton cannot be imported.*reinstall"):
        CudaBackend()


def test_amd_is_not_ruled_out_and_said_to_be_untried(as_if: Callable[..., None]) -> None:
    as_if(cuda=None, hip="6.4", num_gpus=1, capability=(5, 0))
    found = find_device()
    assert found.is_available
    assert found.detail == "1 GPU, ROCm; AMD GPUs were not tried"
    CudaBackend(precision="bf16-mixed")  # capabilities are NVIDIA's


@pytest.mark.parametrize(
    ("capability", "precision", "message"),
    [
        ((6, 1), "fp32", r"GPU 0 has compute capability 6\.1, and Triton needs 7\.0"),
        ((7, 5), "bf16-mixed", r"7\.5, and bf16 needs 8\.0; use backend\.precision=fp16-mixed"),
        ((7, 5), "fp16-mixed", None),
        ((8, 0), "bf16-mixed", None),
        ((12, 0), "bf16-mixed", None),
    ],
)
def test_a_gpu_that_is_too_old_is_refused(
    as_if: Callable[..., None], capability: tuple[int, int], precision: str, message: str | None
) -> None:
    as_if(capability=capability)
    if message is None:
        check_devices(2, precision=precision)
        return
    with pytest.raises(BackendError, match=message):
        check_devices(2, precision=precision)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-true"}, r"precision='bf16-true': cuda knows bf16-mixed, fp16-mixed, "),
        ({"compile": "fast"}, "compile='fast': must be eager or default or max-autotune"),
        ({"cuda_graphs": True}, r"only a compiled step.*add backend\.compile=default"),
        ({"devices": 3}, "devices=3: this machine has 2 GPUs"),
        ({"devices": 0}, "devices=0"),
    ],
)
def test_wrong_options_are_one_sentence(
    as_if: Callable[..., None], options: dict[str, Any], message: str
) -> None:
    as_if()
    with pytest.raises(BackendError, match=message) as caught:
        CudaBackend(**options)
    assert "\n" not in str(caught.value)


def test_the_config_has_every_option_and_its_default_runs(as_if: Callable[..., None]) -> None:
    as_if()
    settings = read_settings(compose_config("fit", ["run_dir=.", "backend=cuda"]))
    options = settings.backend_options
    backend = CudaBackend(**options)
    assert vars(backend).keys() == options.keys()
    assert backend.precision == "bf16-mixed"


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_every_switch_for_tf32_says_the_same(allow_tf32: bool) -> None:
    set_numerics(allow_tf32=not allow_tf32, deterministic=False)
    set_numerics(allow_tf32=allow_tf32, deterministic=False)
    # torch raises where its old and its new switches disagree; Inductor and Lightning ask these.
    assert torch.backends.cuda.matmul.allow_tf32 is allow_tf32
    assert torch.backends.cudnn.allow_tf32 is allow_tf32
    assert (torch.get_float32_matmul_precision() == "high") is allow_tf32
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is allow_tf32
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is allow_tf32


def test_deterministic_or_the_fastest() -> None:
    set_numerics(allow_tf32=False, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    set_numerics(allow_tf32=False, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("options", "is_on"),
    [({}, True), ({"autotune": False}, False), ({"deterministic": True}, False)],
)
def test_kernels_are_tuned_unless_bits_must_repeat(
    as_if: Callable[..., None], options: dict[str, Any], is_on: bool
) -> None:
    from fsdtrain_cuda import tuning

    as_if()
    tuning.switch_tuning(not is_on)
    CudaBackend(**options).trainer_parts()
    assert tuning.is_tuning() is is_on


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"compile": compiled, "cuda_graphs": with_graphs}, mode)
        for (compiled, with_graphs), mode in MODES.items()
    ],
)
def test_the_step_is_compiled_as_one_graph_in_place(
    as_if: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    mode: str,
) -> None:
    as_if()
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: given.append(how))
    step = nn.Linear(2, 2)
    CudaBackend().compile_step(step)
    assert given == [], "eager"
    CudaBackend(**options).compile_step(step)
    assert given == [{"fullgraph": True, "dynamic": False, "mode": mode}]
    assert mode in torch._inductor.list_mode_options(), "torch knows it"


@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
def test_a_step_with_our_kernels_is_the_step_of_the_references(
    as_if: Callable[..., None],
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    compiles: bool,
) -> None:
    if device == "cpu":
        as_if()
    ops = CudaBackend().op_table()
    monkeypatch.undo()  # torch.compile asks for more than is made up here
    batch: Any = _pytree.tree_map(
        lambda value: value.to(device), make_batch(seed=5, num_clips=1, num_cameras=1)
    )
    expected = TrainingStep(make_network(seed=1)).to(device)
    found = TrainingStep(make_network(seed=1, ops=ops)).to(device)
    if compiles:  # one graph, in which our ops are opaque
        found.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    losses = [step(batch).loss for step in (expected, found)]
    names = {node.name() for node in _nodes(losses[1].grad_fn)}
    assert compiles or any("fsdtrain" in name for name in names), "our kernel was called"
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        scale = other.grad.abs().max().item()
        assert (one.grad - other.grad).abs().max().item() <= 1e-4 * scale + 1e-7, name


def _nodes(root: Any) -> Iterator[Any]:
    seen, rest = set(), [root]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            rest += [each for each, _ in node.next_functions]


class Slope(LightningModule):
    """A loss whose gradient is (30, 40), and SGD with the rate 1."""

    def __init__(self, *, is_fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.is_fused = is_fused

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * torch.tensor([30.0, 40.0])).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0, fused=self.is_fused)


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_gradients_of_a_fused_optimiser_are_clipped_too(
    name: str, is_fused: bool, tmp_path: Path
) -> None:
    trainer = Trainer(
        accelerator="cpu", plugins=[make_precision(name, device="cpu")], max_steps=1,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    slope = Slope(is_fused=is_fused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders
        trainer.fit(slope, [torch.zeros(1)])
    assert torch.allclose(slope.weight.detach(), torch.tensor([-0.6, -0.8]), atol=1e-5)


def train(
    backend: CudaBackend,
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    *,
    num_steps: int = 3,
) -> list[Tensor]:
    """Losses and last weights."""
    torch.manual_seed(0)
    step = TrainingStep(make_network(seed=3, ops=backend.op_table())).cuda()
    backend.trainer_parts()
    backend.compile_step(step)
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-3, fused=True)
    losses = []
    for number in range(num_steps):
        batch: Any = _pytree.tree_map(backend.to_device, make_batch(seed=number))
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, backend.precision == "bf16-mixed"):
            loss = step(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().clone())
    return [*losses, *(parameter.detach().clone() for parameter in step.parameters())]


@pytest.mark.parametrize("options", [{}, {"compile": "default"}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
class TestOnAGpu:
    pytestmark = ON_A_GPU

    def test_ten_deterministic_runs_give_the_same_bits(
        self,
        make_network: Callable[..., HydraBev],
        make_batch: Callable[..., ClipBatch],
        precision: str,
        options: dict[str, Any],
    ) -> None:
        runs = [
            train(
                CudaBackend(precision=precision, deterministic=True, **options),
                make_network,
                make_batch,
            )
            for _ in range(10)
        ]
        for run in runs[1:]:
            for found, wanted in zip(run, runs[0], strict=True):
                assert torch.equal(found, wanted)

    def test_graphs_train_as_without(
        self,
        make_network: Callable[..., HydraBev],
        make_batch: Callable[..., ClipBatch],
        precision: str,
        options: dict[str, Any],
    ) -> None:
        plain = train(CudaBackend(precision=precision, **options), make_network, make_batch)
        graphs = CudaBackend(precision=precision, compile="default", cuda_graphs=True)
        found = train(graphs, make_network, make_batch)
        tolerance = 1e-3 if precision == "fp32" else 2e-2
        for one, other in zip(plain[:3], found[:3], strict=True):
            assert torch.allclose(one, other, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_memory_is_that_since_the_last_reading() -> None:
    backend = CudaBackend()
    large = torch.empty(1 << 26, dtype=torch.uint8, device="cuda")
    del large
    assert backend.read_memory()["peak_allocated_bytes"] >= 1 << 26
    assert backend.read_memory()["peak_allocated_bytes"] < 1 << 26


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_convolutions_get_channels_last(make_network: Callable[..., HydraBev]) -> None:
    network = copy.deepcopy(make_network()).cuda()
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    assert all(
        each.weight.is_contiguous(memory_format=torch.channels_last) for each in convolutions
    )
