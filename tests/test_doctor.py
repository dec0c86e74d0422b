"""What the doctor says of devices it cannot be asked about here."""

import pytest
import torch

from fsdtrain.doctor import run_checks


def finding() -> str:
    return next(check.finding for check in run_checks([]) if check.subject == "devices")


def test_amd_was_not_tried_and_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "AMD" not in finding()
    monkeypatch.setattr(torch.version, "hip", "6.4.1")
    assert "torch built for ROCm 6.4.1: AMD GPUs were not tried with fsdtrain" in finding()


def test_the_build_of_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    for cuda, words in ((None, "CPUs only"), ("13.0", "CUDA 13.0")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert f"torch built for {words}" in finding()
