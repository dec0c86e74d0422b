"""Where replicas live: with a stub in place of lowering and scheduling."""

import re

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.totals import totals
from fsdtrain_dojo.scale.grid import lay_slices
from fsdtrain_dojo.scale.join import Block
from fsdtrain_dojo.scale.placement import choose_block, stage_machine
from fsdtrain_dojo.scale.plan import home_levels, plan_scale

from fsdtrain.backend import BackendError
from tests.backends.dojo.scale.stubs import replica, times_by_nodes

EXAPOD = read_machine("exapod")


def test_homes_are_what_links_join():
    assert home_levels(EXAPOD) == ["die", "tile", "tray"]
    assert home_levels(read_machine("d1_die")) == ["die"]
    assert home_levels(read_machine("mi300x")) == ["gpu"]


def test_an_exapod_of_tiles():
    plan = plan_scale(EXAPOD, times_by_nodes(20.0), peak_format="bf16", levels=["tile"])
    best = plan.best
    assert best.placement.num_replicas == 120
    assert best.placement.nodes_per_stage == 8850
    assert best.step_s == pytest.approx(20 / 8850 + best.summing.exposed_s)
    assert best.samples_per_s == pytest.approx(120 * 240 / best.step_s)
    assert best.efficiency == pytest.approx(20 / 8850 / best.step_s)
    assert best.matmul_share == pytest.approx(120 * 1e15 / best.step_s / 1.0875e18, rel=0.001)
    assert 0 < best.summing.exposed_s < best.summing.alone_s
    assert plan.sentences[0].startswith("Placement: 20 trays x 6 tiles = 120 replicas of one tile")
    assert "MODELLED" in plan.sentences[1]
    shown = float(re.search(r"(\d+)% hidden", plan.sentences[2])[1])
    assert shown == pytest.approx(best.summing.hidden_share * 100, abs=0.5)


def test_homes_are_ranked_worst_first_by_samples_a_second():
    plan = plan_scale(EXAPOD, times_by_nodes(20.0), peak_format="bf16")
    rates = [each.samples_per_s for each in plan.placed]
    assert rates == sorted(rates)
    assert plan.best is plan.placed[-1]
    assert {each.placement.level for each in plan.placed} == {"die", "tile", "tray"}
    assert not plan.refused


def test_smaller_homes_are_tried_while_they_train_more():
    asked = []

    def on(rate_of):
        def time_on(machine):
            asked.append(machine.levels[-1].name)
            return replica(1 / rate_of[asked[-1]])

        asked.clear()
        plan_scale(EXAPOD, time_on, peak_format="bf16", least_levels=2)
        return asked

    # a tile has 25 dies, a tray 6 tiles
    assert on({"tray": 600.0, "tile": 50.0, "die": 1e4}) == ["tray", "tile"]
    assert on({"tray": 6.0, "tile": 50.0, "die": 1.0}) == ["tray", "tile", "die"]


def test_more_replicas_are_never_faster_a_step():
    for level in ("die", "tile"):
        steps = []
        for columns, cabinets in ((1, 1), (2, 1), (3, 1), (3, 2), (3, 10)):
            machine = read_machine(
                {"name": "exapod", "tray_columns": columns, "exapod_cabinets": cabinets}
            )
            plan = plan_scale(machine, lambda _: replica(1e-3), peak_format="bf16", levels=[level])
            steps.append(plan.best.step_s)
        assert steps == sorted(steps)


def test_where_one_slice_is_too_small_a_pipeline_takes_over():
    # a tile has 107 GB of a tray's 640
    plan = plan_scale(
        EXAPOD, times_by_nodes(20.0, needs_bytes=300e9), peak_format="bf16", levels=["tile"]
    )
    best = plan.best.placement
    assert [each.home for each in plan.refused] == ["one tile", "a pipeline of 2 tiles"]
    assert "needs 300 GB, exapod/tile has 107" in plan.refused[0].why
    # four of 2 x 3 tiles leave two of each tray without work
    assert (best.num_stages, best.block, best.num_replicas) == (4, Block(rows=2, columns=2), 20)
    assert "40 tiles without work" in plan.sentences[0]
    assert plan.best.pipeline.bubble_s > 0
    assert "1F1B" in plan.sentences[1]


def test_a_pipeline_is_tried_where_a_slice_spills_and_kept_where_it_is_quicker():
    def slow_outside(machine):
        spills = totals(machine).memory_bytes < 200e9
        return replica(
            10e-3 if spills else 1e-3, spilled_bytes=1.0 if spills else 0.0, batch_size=16
        )

    plan = plan_scale(EXAPOD, slow_outside, peak_format="bf16", levels=["tile"])
    assert [each.placement.num_stages for each in plan.placed] == [1, 2]
    assert plan.best.pipeline.seconds == pytest.approx(1e-3 / 2 * 17 / 16, rel=0.2)


def test_stages_over_trays_talk_over_the_network():
    plan = plan_scale(
        EXAPOD,
        times_by_nodes(20.0, needs_bytes=1e12, cut_bytes=(1e6,)),
        peak_format="bf16",
        levels=["tray"],
    )
    best = plan.best
    assert best.placement.block == Block(meshes=2)
    assert best.placement.num_replicas == 10
    assert best.pipeline.transfer_s > 2 * 1.3e-6


def test_a_model_that_fits_nowhere_says_so_for_every_home():
    with pytest.raises(BackendError) as caught:
        plan_scale(EXAPOD, times_by_nodes(20.0, needs_bytes=1e15), peak_format="bf16")
    text = str(caught.value)
    for home in ("one die", "a pipeline of 8 dies", "one tile", "one tray"):
        assert f"on {home}: needs" in text
    assert "needs 1e+06 GB" in text


def test_a_format_that_the_machine_lacks_is_refused():
    with pytest.raises(BackendError, match="no rate for fp64"):
        plan_scale(EXAPOD, times_by_nodes(20.0), peak_format="fp64")


def test_the_same_batch_over_all_replicas():
    on = times_by_nodes(20.0, fixed_s=1e-4)
    plan = plan_scale(EXAPOD, on, peak_format="bf16", levels=["tile"])
    strong = plan.strong
    assert strong.replica.batch_size == 2
    before = 1e-4 + (20 / 8850 * 5 / 6 - 1e-4) / 120
    assert strong.replica.seconds == pytest.approx(before + 20 / 8850 / 6)
    assert strong.samples_per_s == pytest.approx(240 / strong.step_s)
    assert strong.efficiency <= 1
    assert strong.matmul_share == pytest.approx(1e15 / strong.step_s / 1.0875e18, rel=0.001)


def test_a_batch_that_does_not_divide_over_the_replicas_says_what_would():
    on = times_by_nodes(20.0, batch_size=100)
    plan = plan_scale(EXAPOD, on, peak_format="bf16", levels=["tile"])
    assert plan.strong is None
    assert (
        "a batch of 100 does not divide over 120 replicas: give a multiple of 120 "
        "(data.batch_size=120), or use 100 of the replicas"
    ) in plan.sentences[-1]


def test_energy_adds_up():
    plan = plan_scale(EXAPOD, times_by_nodes(20.0), peak_format="bf16", levels=["tile"])
    best = plan.best
    idle = EXAPOD.power.idle_watts * best.step_s
    assert best.joules == pytest.approx(120 * 1.0 + best.summing.joules + idle)


@pytest.mark.parametrize(
    ("level", "stages", "block"),
    [
        ("die", 1, Block()),
        ("die", 6, Block(rows=2, columns=3)),
        ("tile", 6, Block(rows=2, columns=3)),
        ("tile", 5, None),
        ("tile", 12, Block(rows=2, columns=3, meshes=2)),
        ("tray", 3, Block(meshes=3)),
        ("tray", 32, None),
    ],
)
def test_blocks_leave_few_slices_without_work(level, stages, block):
    assert choose_block(lay_slices(EXAPOD, level), stages) == block


def test_a_stage_has_the_memory_of_all_stages_and_the_rates_of_one():
    one, four = (totals(stage_machine(EXAPOD, "tile", each)) for each in (1, 4))
    assert four.sram_bytes == 4 * one.sram_bytes
    assert four.memory_bytes == pytest.approx(4 * one.memory_bytes)
    assert four.memory_bytes_per_s == one.memory_bytes_per_s
    assert four.num_nodes == one.num_nodes


def test_the_host_has_to_bring_the_batches():
    # 12.8 TB/s of host links for 120 batches of 1 GB
    fed = plan_scale(
        EXAPOD, times_by_nodes(20.0, input_bytes=1e9), peak_format="bf16", levels=["tile"]
    ).best
    assert fed.step_s == pytest.approx(120e9 / 12.8e12)
    assert "host" in fed.limited_by
    assert fed.efficiency < 0.5


def test_too_much_power_is_said():
    hot = plan_scale(EXAPOD, times_by_nodes(20.0, joules=1e4), peak_format="bf16", levels=["tile"])
    assert "of 2e+03 kW, which is above its limit" in hot.sentences[-2]
