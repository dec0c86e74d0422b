"""The recipe of `plan` from the command line: a record, a page, refusals."""

from pathlib import Path

import pytest
from small_model import SMALL

from fsdtrain.__main__ import main
from fsdtrain.planning.record import read_plan

pytestmark = pytest.mark.usefixtures("a_process_of_its_own")

Capture = pytest.CaptureFixture[str]


def test_a_plan_is_written_and_printed(tmp_path: Path, capsys: Capture) -> None:
    asked = ("fleets=[a100,h100]", "mixed=[a100,h100]", "target_days=0.1", "budget=1e9")
    prices = "figures={a100: {device_price_per_hour: 2}, h100: {device_price_per_hour: 3}}"
    assert main(["plan", *SMALL, f"run_dir={tmp_path}", *asked, prices, "--press"]) == 0
    record = read_plan(tmp_path)
    assert [each.name for each in record.machines[:2]] == ["a100", "h100"]
    assert len(record.machines) == 4, "both readings of the mixed fleet"
    for machine in record.machines:
        assert machine.step_origin == "MODELLED"
        assert machine.needed is not None
        assert machine.needed.time_to_train_s <= 8640 * (1 + 1e-9)
        assert machine.needed.cost is not None
        assert machine.curve[-1].num_devices <= 10_000
    assert record.question.images_per_sample == 2 * 2
    assert record.question.sample_bytes
    # Each stream is decoded from its first frame on, to see 2 of its 6.
    assert record.question.pixels_per_sample == 2 * 48 * 96 * (2 + 6) / 2
    for machine in record.machines:
        assert any("layer by layer" in note for note in machine.notes), "profile and weights match"
    hundred = next(each for each in record.press if each.name == "100 exaflops")
    assert any(round(line.value) == 276_243 for line in hundred.lines)
    printed = capsys.readouterr().out
    for words in ("h100", "MODELLED", "devices", "276,243", "320,513"):
        assert words in printed
    assert (tmp_path / "plan.html").stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fleets=[h1000]"], "'h1000': no such fleet; there are a100"),
        (["fleets=[]"], "at least one fleet"),
        (["fleets=[h100]", "mixed=[h100,a100]"], "a100 is not among fleets"),
        (["fleets=[h100]", "profiles={h100: nowhere}"], "nowhere"),
        (["fleets=[h100]", "num_samples=0"], "num_samples=0"),
        (["fleets=[h100]", "target_days=-1"], "target_s"),
        (["fleets=[h100]", "figures={h100: {hbm: 3}}"], "hbm"),
        (["max_devices=0"], "max_devices=0"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["plan", *SMALL, f"run_dir={tmp_path}", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fsdtrain:")]
    assert len(lines) == 1
    assert words in lines[0]
