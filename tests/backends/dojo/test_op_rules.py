"""The table of ops, and teaching it one of the user's."""

from collections.abc import Iterator

import pytest
import torch
from fsdtrain_dojo import op_rules
from fsdtrain_dojo.op_rules import Kind, OpRule, register_op
from fsdtrain_dojo.recipe import Role
from torch import Tensor, nn

from fsdtrain.backend import BackendError
from tests.backends.dojo.running import BF16, IDENTITY, emulate, relative_error, run_step


@torch.library.custom_op("fsdtrain_test::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    return x * 3


tripled.register_fake(torch.empty_like)
tripled.register_autograd(lambda context, gradient: gradient * 3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(tripled(self.before(x))).square().mean()


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone when it ends, and so are its graphs."""
    monkeypatch.setattr(op_rules, "_RULES", dict(op_rules._RULES))
    yield
    torch._dynamo.reset()


def test_an_unknown_op_is_an_error_that_says_how_to_register_it() -> None:
    module = Model()
    emulate(module, BF16)
    with pytest.raises(BackendError) as error:
        module(torch.rand(3, 4))
    message = str(error.value)
    assert "op fsdtrain_test.tripled (float32[3, 5]) (test_op_rules.py:" in message
    assert 'register_op("fsdtrain_test.tripled", OpRule(kind=Kind.VECTOR))' in message


def test_a_registered_op_is_captured_and_stored() -> None:
    register_op("fsdtrain_test.tripled", OpRule(kind=Kind.VECTOR))
    x, eager = torch.rand(3, 4), Model()
    exact, rounded = Model(), Model()
    emulate(exact, IDENTITY)
    table = emulate(rounded, BF16)
    wanted, found = run_step(eager, x), run_step(exact, x)
    assert torch.equal(found.loss, wanted.loss)
    for name, gradient in wanted.gradients.items():
        assert relative_error(found.gradients[name], gradient) <= 2e-6
    assert 0 < relative_error(run_step(rounded, x).loss, wanted.loss) < 0.02
    # Its only reader is the matrix unit.
    (site,) = [site for site in table.sites if "tripled" in site.op]
    assert site.role is Role.ACTIVATION


def test_an_op_is_registered_once() -> None:
    register_op("fsdtrain_test.tripled", OpRule(kind=Kind.VECTOR))
    with pytest.raises(BackendError, match=r"op fsdtrain_test\.tripled has a rule already"):
        register_op("fsdtrain_test.tripled", OpRule(kind=Kind.MOVE))
    with pytest.raises(BackendError, match=r"op aten\.mm has a rule already"):
        register_op("aten.mm", OpRule(kind=Kind.VECTOR))


def test_every_rule_is_for_an_op_that_exists() -> None:
    """A name with a typo would never match; in-place and functional names are both ops."""
    unknown = [
        name
        for name in op_rules._RULES
        if not hasattr(getattr(torch.ops, name.partition(".")[0]), name.partition(".")[2])
    ]
    assert not unknown
