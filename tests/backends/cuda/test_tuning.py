"""Which configuration a kernel is launched with, and checks of values that run once."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from fsdtrain_cuda import tuning
from fsdtrain_cuda.checks import check_once
from fsdtrain_cuda.tuning import TunedKernel, tuned
from torch import Tensor
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

CONFIGS = [
    triton.Config({"BLOCK_SIZE": size}, num_warps=warps) for size, warps in ((64, 2), (256, 4))
]


@tuned(configs=CONFIGS, key=["num_elements"], reset_to_zero=["sums_ptr"])
@triton.jit
def add_up(values_ptr, sums_ptr, num_elements, BLOCK_SIZE: tl.constexpr):
    """sums[i % BLOCK_SIZE] += values[i]: what it writes tells which BLOCK_SIZE it had."""
    lane = tl.arange(0, BLOCK_SIZE)
    for start in range(0, num_elements, BLOCK_SIZE):
        values = tl.load(values_ptr + start + lane, mask=start + lane < num_elements, other=0.0)
        tl.store(sums_ptr + lane, tl.load(sums_ptr + lane) + values)


def launch(values: Tensor) -> Tensor:
    sums = torch.zeros(256, device=values.device)
    add_up[(1,)](values, sums, values.numel())
    return sums


def expected(values: Tensor, block: int) -> Tensor:
    sums = torch.zeros(256, device=values.device)
    sums.index_add_(0, torch.arange(values.numel(), device=values.device) % block, values)
    return sums


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Where Triton interprets: let the tuner choose, and let the last configuration be fastest."""
    timed: list[str] = []

    def time_it(self: Autotuner, *args: Any, config: triton.Config, **meta: Any) -> list[float]:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        self.pre_hook({**self.nargs, **meta})
        self.fn.run(*args, **meta, **config.all_kwargs())
        timed.append(str(config))
        return [1.0 / len(timed)] * 3

    def without_a_disk(self: Autotuner, key: Any, configs: Any, bench: Callable[[], Any]) -> bool:
        bench()
        return False

    monkeypatch.setattr(Autotuner, "_bench", time_it)
    monkeypatch.setattr(Autotuner, "check_disk_cache", without_a_disk)
    monkeypatch.setattr(TunedKernel, "_may_time", lambda self: tuning.is_tuning())
    monkeypatch.setattr(add_up, "cache", {})
    monkeypatch.setattr(add_up, "logged", set(), raising=False)
    tuning.switch_tuning(True)
    yield timed
    tuning.switch_tuning(False)


def test_the_first_configuration_where_it_is_switched_off(
    device: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(add_up, "logged", set(), raising=False)
    values = torch.randint(10, (300,), device=device).float()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert torch.equal(launch(values), expected(values, 64))
    assert [record.message for record in caplog.records if "add_up" in record.message] == [
        f"kernel add_up, not tuned: {CONFIGS[0]}"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")
def test_nothing_is_timed_where_triton_interprets() -> None:
    tuning.switch_tuning(True)
    assert not isinstance(add_up.fn, JITFunction)
    values = torch.randint(10, (300,)).float()
    assert torch.equal(launch(values), expected(values, 64))
    assert add_up.cache == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the next test does it for real")
def test_the_fastest_is_chosen_once_for_each_shape_and_logged(
    as_if_on_a_gpu: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (torch.randint(10, (size,)).float() for size in (300, 1000))
    with caplog.at_level(logging.INFO):
        for values in (first, second, first, second):
            assert torch.equal(launch(values), expected(values, 256)), "timing left something"
    assert as_if_on_a_gpu == [str(config) for config in CONFIGS] * 2
    messages = [record.message for record in caplog.records]
    assert messages == [
        f"kernel add_up for {size}, torch.float32, torch.float32: {CONFIGS[1]}"
        for size in (300, 1000)
    ]
    tuning.switch_tuning(False)
    assert torch.equal(launch(first), expected(first, 64)), "it can be switched off at any time"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a name of its own")
def test_what_is_kept_on_disk_is_kept_for_the_device_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: dict[Any, triton.Config] = {}

    def disk(self: Autotuner, key: Any, configs: Any, bench: Callable[[], Any]) -> bool:
        if key in kept:
            self.cache[key] = kept[key]
            return True
        bench()
        kept[key] = self.cache[key[1:]]
        return False

    monkeypatch.setattr(Autotuner, "check_disk_cache", disk)
    monkeypatch.setattr(add_up, "cache", {})
    key = (300, "torch.float32")

    def choose(name: str, config: triton.Config) -> triton.Config:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
        add_up.cache.clear()
        add_up.check_disk_cache(key, CONFIGS, lambda: add_up.cache.update({key: config}))
        assert list(add_up.cache) == [key]
        return add_up.cache[key]

    assert choose("NVIDIA H100", CONFIGS[1]) == CONFIGS[1]
    assert choose("NVIDIA H200", CONFIGS[0]) == CONFIGS[0]
    assert choose("NVIDIA H100", CONFIGS[0]) == CONFIGS[1], "from the disk"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_chooses_and_adds_nothing_twice() -> None:
    tuning.switch_tuning(True)
    values = torch.randint(10, (5000,), device="cuda").float()
    assert launch(values).sum().item() == values.sum().item()
    chosen = next(config for key, config in add_up.cache.items() if key[0] == 5000)
    assert torch.equal(launch(values), expected(values, chosen.kwargs["BLOCK_SIZE"]))


def test_checks_of_tensors_on_the_cpu_run_each_time() -> None:
    calls: list[int] = []
    for _ in range(3):
        check_once(("op", 4, torch.device("cpu")), lambda: calls.append(1))
    assert len(calls) == 3


def test_checks_of_tensors_on_a_gpu_run_once_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    is_capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_capturing)
    calls: list[int] = []

    def check(size: int) -> None:
        check_once(("test_tuning", size, torch.device("cuda", 0)), lambda: calls.append(size))

    check(4)
    assert calls == [], "a check synchronises, which breaks the capture of a graph"
    is_capturing = False
    for size in (4, 4, 5, 4, 5):
        check(size)
    assert calls == [4, 5]


def test_a_check_that_fails_fails_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def refuse() -> None:
        raise ValueError("a NaN")

    for _ in range(2):
        with pytest.raises(ValueError, match="a NaN"):
            check_once(("test_tuning refuses", torch.device("cuda", 0)), refuse)


def test_nothing_is_checked_while_torch_compile_traces() -> None:
    def checked(value: Tensor) -> Tensor:
        check_once(("traced", value.device), lambda: pytest.fail("was run"))
        return value + 1

    compiled = torch.compile(checked, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [1, 1]
