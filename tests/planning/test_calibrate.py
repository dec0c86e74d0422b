import multiprocessing
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch.distributed as dist

from fsdtrain.errors import UserError
from fsdtrain.planning import calibrate as calibrate_module
from fsdtrain.planning import calibration_run
from fsdtrain.planning.calibrate import CalibrationSettings, calibrate, count_cores, judge
from fsdtrain.planning.calibration_ddp import BUCKET_MB, NUM_LAYERS, WIDTH, StepSample
from fsdtrain.planning.calibration_fit import SharedRing
from fsdtrain.planning.calibration_record import read_calibration, to_level, typical
from fsdtrain.planning.calibration_run import run_processes
from fsdtrain.planning.calibration_words import in_markdown, verdict
from fsdtrain.planning.calibration_worker import CoreUse, RankResult, Sample, Work
from fsdtrain.planning.fleet_file import parse_fleet, read_fleet
from fsdtrain.planning.network import Level, ring_s

RING = SharedRing(
    num_cores=count_cores(),
    alpha_s=9e-5,
    contention=0.9,
    relief=0.15,
    bytes_per_s=3e9,
    chain=1.5,
    overlap=1.4,
)
SETTINGS = CalibrationSettings()
MB = 1e6
TINY = Work(
    world_sizes=(2,),
    sizes=(4096, 1 << 18),
    seconds=0.01,
    sample_s=0.001,
    min_rounds=2,
    step_world_sizes=(),
    step_rounds=0,
    timeout_s=60.0,
)


def made_up_results(
    *, busy_elsewhere: float = 0.0, noise: float = 0.03, num_rounds: int = 20
) -> tuple[RankResult, ...]:
    """What processes would measure if `RING` were the truth; a fifth of samples are disturbed.

    A step's three gradients of 8 MiB come after 10, 20 and 30 ms, and the step exchanges them while
    nothing else runs, for all cores are in use.
    """
    rng = np.random.default_rng(0)
    worlds = (*SETTINGS.world_sizes, *SETTINGS.held_out_world_sizes)
    sizes = (*SETTINGS.sizes, *SETTINGS.held_out_sizes)
    samples: dict[int, list[Sample]] = {rank: [] for rank in range(max(worlds))}
    for number in range(num_rounds):
        for world in worlds:
            for size in sizes:
                late = 3.0 if rng.random() < 0.2 else 1.0
                time_s = RING.seconds(world, size) * late * float(np.exp(noise * rng.normal()))
                for rank in range(world):
                    samples[rank].append(
                        Sample(
                            round=number,
                            world_size=world,
                            num_bytes=size,
                            calls=5,
                            time_s=time_s * (1.0 if rank == world - 1 else 0.9),
                            cpu_s=time_s * RING.num_cores / world,
                        )
                    )
    exposed_s = {world: 3 * RING.seconds(world, 8 << 20) for world in (2, 3)}
    use = CoreUse(
        wall_s=10.0,
        cpu_s=10.0 * RING.num_cores * (0.9 - busy_elsewhere) / len(samples),
        busy_s=9.0 * RING.num_cores,
        steal_s=0.0,
    )
    return tuple(
        RankResult(
            samples=tuple(samples[rank]),
            core_use=use,
            steps=tuple(
                StepSample(
                    round=number,
                    world_size=world,
                    with_s=0.030 + exposed_s[world],
                    without_s=0.030,
                    ready_s=(0.010, 0.020, 0.030),
                    gradient_bytes=(8 << 20,) * 3,
                    bucket_bytes=(8 << 20,) * 3,
                )
                for number in range(3)
                for world in (2, 3)
                if rank < world
            ),
        )
        for rank in samples
    )


@pytest.fixture(scope="module")
def judged():
    return judge(SETTINGS, made_up_results(), started_at="2026-01-01T00:00:00+00:00")


def test_held_out_points_are_predicted(judged) -> None:
    assert set(judged.errors) == {"", "size", "world size", "size and world size"}
    assert sum(each.num_points for each in judged.errors.values()) == 6 * 10
    assert all(each.worst < 0.1 for each in judged.errors.values())
    for point in judged.points:
        assert point.time_s == pytest.approx(
            RING.seconds(point.world_size, point.num_bytes), rel=0.08
        )


def test_the_fit_does_not_see_what_is_held_out(judged) -> None:
    """Twice the time wherever something is held out changes no parameter."""
    held = [each for each in judged.points if each.held_out]
    assert {(each.world_size, each.num_bytes) for each in held} == {
        (world, size)
        for world in (2, 3, 4, 5, 6, 8)
        for size in (*SETTINGS.sizes, *SETTINGS.held_out_sizes)
        if world in (3, 6) or size in SETTINGS.held_out_sizes
    }
    cases = {(each.world_size, each.num_bytes) for each in held}
    results = tuple(
        msgspec.structs.replace(
            result,
            samples=tuple(
                msgspec.structs.replace(each, time_s=2 * each.time_s)
                if (each.world_size, each.num_bytes) in cases
                else each
                for each in result.samples
            ),
        )
        for result in made_up_results()
    )
    again = judge(SETTINGS, results, started_at="")
    assert again.ring == judged.ring
    assert again.errors["size"].median == pytest.approx(0.5, abs=0.1)
    assert verdict(again).startswith("0 of 36 points")


def test_steps_are_predicted_where_the_exchange_takes_the_cores(judged) -> None:
    assert [each.world_size for each in judged.steps] == [2, 3]
    assert [each.held_out for each in judged.steps] == [False, True]
    for each in judged.steps:
        assert each.exposed_error == pytest.approx(0.0, abs=0.1)
        assert each.step_error == pytest.approx(0.0, abs=0.05)
        assert each.exposed_elsewhere_s < each.exposed_s


def test_a_busy_machine_is_noted(judged) -> None:
    assert judged.busy_elsewhere == pytest.approx(0.0, abs=1e-6)
    assert judged.notes == ()
    busy = judge(SETTINGS, made_up_results(busy_elsewhere=0.3), started_at="")
    assert busy.busy_elsewhere == pytest.approx(0.3)
    assert "Others used 30% of the cores" in busy.notes[0]


def test_page_shows_every_point_and_what_was_held_out(judged) -> None:
    page = in_markdown(judged)
    assert "MEASURED" in page
    assert "MODELLED" in page
    for point in judged.points:
        assert f"| {point.world_size} | {point.num_bytes:,} | {point.time_s * 1e3:.3f} ms" in page
    assert "36 of 36 points" in page
    assert page.count("size and world size |") == 8


def test_typical_is_not_moved_by_disturbed_samples() -> None:
    assert typical([1.0, 1.0, 1.0, 9.0, 9.0]) == 1.0


def test_level_has_the_times_of_the_model(judged) -> None:
    """One core a rank and no overlap: the ring's alpha and beta are the level's, exactly."""
    plain = SharedRing(
        num_cores=4,
        alpha_s=1e-5,
        contention=1.0,
        relief=1e-3,
        bytes_per_s=2e9,
        chain=1.0,
        overlap=1.0,
    )
    level = to_level(msgspec.structs.replace(judged, ring=plain), 4, num_devices=4)
    network = Level(
        name=level.name, num_devices=4, alpha_s=level.alpha_s, bytes_per_s=level.bytes_per_s
    )
    assert network.alpha_s == pytest.approx(2e-5)
    assert network.bytes_per_s == pytest.approx(2e9)
    assert ring_s(network, 4, 1e7) == pytest.approx(plain.seconds(4, 1e7))


def test_level_tells_how_far_it_is_from_the_model(judged) -> None:
    level = to_level(judged, 2)
    assert "within" in level.latency_us.source
    network = Level(name="", num_devices=None, alpha_s=level.alpha_s, bytes_per_s=level.bytes_per_s)
    for size in (MB / 16, 8 * MB, 32 * MB):
        assert ring_s(network, 2, size) == pytest.approx(judged.ring.seconds(2, size), rel=0.3)


def test_level_can_stand_in_a_fleets_file(judged) -> None:
    level = to_level(judged, 4)
    fleet = msgspec.structs.replace(read_fleet("h100"), levels=(level,))
    assert parse_fleet(msgspec.yaml.encode(fleet), where="here").levels == (level,)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"world_sizes": (2,)}, "world_sizes"),
        ({"world_sizes": (1, 2)}, "world sizes"),
        ({"held_out_world_sizes": (2,)}, "world sizes"),
        ({"sizes": (4096,)}, "sizes"),
        ({"sizes": (4096, 8191)}, "sizes"),
        ({"held_out_sizes": (1 << 20,)}, "sizes"),
        ({"seconds": 0.0}, "seconds"),
        ({"min_rounds": 0}, "min_rounds"),
        ({"step_world_sizes": (7,)}, "step_world_sizes"),
    ],
)
def test_settings_that_cannot_be_measured(change, named) -> None:
    with pytest.raises(UserError, match=named):
        replace(SETTINGS, **change)


def test_real_processes_sum_over_gloo_and_leave() -> None:
    results = run_processes(TINY)
    assert len(results) == 2
    for result in results:
        cases = [(each.round, each.num_bytes) for each in result.samples]
        # A quick machine has time for more rounds than it must make; all of them are whole.
        num_rounds = 1 + max(number for number, _ in cases)
        assert num_rounds >= TINY.min_rounds
        rounds = [(number, size) for number in range(num_rounds) for size in TINY.sizes]
        assert sorted(cases) == rounds
        assert all(each.time_s > 0 for each in result.samples)
        assert result.core_use.wall_s > 0
    first, second = (
        [(each.round, each.num_bytes, each.calls) for each in result.samples] for result in results
    )
    assert first == second, "both take part in the same sums"


@pytest.mark.slow
def test_calibration_of_this_machine(tmp_path: Path) -> None:
    """All of it, in small: files are written and read; how good it is depends on the machine."""
    settings = CalibrationSettings(
        world_sizes=(2, 4),
        held_out_world_sizes=(3,),
        sizes=(1 << 14, 1 << 18),
        held_out_sizes=(1 << 16,),
        seconds=1.0,
        sample_s=0.005,
        step_world_sizes=(2,),
        step_rounds=2,
    )
    made = calibrate(settings, tmp_path)
    assert read_calibration(tmp_path / "all-reduce-gloo.json") == made
    assert (tmp_path / "all-reduce-gloo.md").read_text().startswith("# All-reduce over gloo")
    (step,) = made.steps
    # Two layers fill a bucket; the last gradients to come are in the last one.
    assert sum(step.bucket_bytes) == NUM_LAYERS * (WIDTH * WIDTH + WIDTH) * 4
    assert all(size >= BUCKET_MB << 20 for size in step.bucket_bytes)


def test_no_gloo_is_said(monkeypatch) -> None:
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    with pytest.raises(UserError, match="built without"):
        run_processes(TINY)


def test_processes_that_cannot_join_are_said(monkeypatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    with pytest.raises(
        UserError, match=r"could not reach each other over gloo .*no-such-interface"
    ):
        run_processes(TINY)


def test_processes_that_take_too_long_are_ended(monkeypatch) -> None:
    monkeypatch.setattr(calibration_run, "START_S", -1e3)
    with pytest.raises(UserError, match="were not done after"):
        run_processes(TINY)
    assert multiprocessing.active_children() == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(calibrate_module, "run_processes", pytest.fail)
    with pytest.raises(UserError, match="cannot be made"):
        calibrate(SETTINGS, tmp_path / "file" / "folder")


def test_another_version_is_refused(tmp_path: Path, judged) -> None:
    path = tmp_path / "all-reduce-gloo.json"
    path.write_bytes(
        msgspec.json.encode(judged).replace(b'"version":1,"backend"', b'"version":7,"backend"')
    )
    with pytest.raises(UserError, match="version 7"):
        read_calibration(path)
