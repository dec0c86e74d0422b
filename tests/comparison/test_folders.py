"""Folders that cannot be compared are refused, each with a sentence of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdtrain.comparison.configs import config_differences, read_fields
from fsdtrain.comparison.folders import check_comparable, find_runs, read_pairs, read_run
from fsdtrain.errors import UserError
from tests.comparison.run_folders import as_yaml, write_metrics, write_run

Spoil = Callable[[Path], object]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


# --- finding -----------------------------------------------------------------------------------


def test_a_run_folder_is_one_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert find_runs(tmp_path / "run") == (tmp_path / "run",)


@pytest.mark.parametrize("name", ["{}", "seed_{}"])
def test_a_folder_of_runs_is_read_by_number(tmp_path: Path, name: str) -> None:
    for number in (10, 2, 0):
        write_run(tmp_path / name.format(number), seed=number)
    (tmp_path / "multirun.yaml").write_text("")
    (tmp_path / "notes").mkdir()
    assert [path.name for path in find_runs(tmp_path)] == [name.format(n) for n in (0, 2, 10)]


def test_an_empty_folder_holds_no_run(tmp_path: Path) -> None:
    assert "holds no run" in refusal(lambda: find_runs(tmp_path))
    assert "run_dir" in refusal(lambda: find_runs(tmp_path))
    assert "is no folder" in refusal(lambda: find_runs(tmp_path / "missing"))


# --- reading -----------------------------------------------------------------------------------


def test_a_run_is_read(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", norms=(9.0, 8.0, 7.0), data__batch_size=3,
        training__accumulate_batches=2, backend__devices=4,
    )  # fmt: skip
    run = read_run(folder)
    assert run.losses.steps.tolist() == [1, 3, 5]
    assert run.losses.values.tolist() == [3.0, 2.0, 1.0]
    assert run.gradient_norms is not None
    assert run.gradient_norms.values.tolist() == [9.0, 8.0, 7.0]
    assert run.samples_per_step == 3 * 2 * 4


def test_a_run_that_stopped_early_is_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", training__max_steps=100, training__early_stop_patience=3)
    assert read_run(folder).losses.steps[-1] == 5


def test_a_run_that_went_on_from_a_checkpoint_is_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", losses=(3.0, 2.0, 1.0), ckpt_path="last.ckpt")
    text = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join([text[0], *text[2:]]))
    assert read_run(folder).losses.steps.tolist() == [3, 5]


# Each with words that no other refusal has.
SPOILT: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "interrupted": (
        lambda run: (run / "results.json").unlink(),
        ("was interrupted after step 5", "resume=last"),
    ),
    "no loss yet": (
        lambda run: [(run / name).unlink() for name in ("results.json", "metrics.csv")],
        ("was interrupted before its first loss",),
    ),
    "cut line": (
        lambda run: cut(run / "metrics.csv", 2),
        ("its last line is cut off", "copy it again"),
    ),
    "cut lines": (
        lambda run: write_metrics(run, (3.0, 2.0), None),
        ("losses of 2 of 3 steps, from 1 to 3", "training.max_steps=6, logged every 2"),
    ),
    "first lines are missing": (
        lambda run: (run / "metrics.csv").write_text("epoch,step,train/loss\n0,5,1.0\n"),
        ("losses of 1 of 3 steps, from 5 to 5",),
    ),
    "no metrics": (
        lambda run: (run / "metrics.csv").unlink(),
        ("cannot read", "metrics.csv", "copy the whole run folder"),
    ),
    "nothing logged": (
        lambda run: (run / "metrics.csv").write_text("epoch,step\n0,1\n"),
        ("has no train/loss", "training.log_every_steps"),
    ),
    "NaN at once": (
        lambda run: write_metrics(run, (float("nan"),) * 3, None),
        ("the loss is nan at step 1", "diverged from the first logged step"),
    ),
    "NaN later": (
        lambda run: write_metrics(run, (3.0, float("inf"), 1.0), None),
        ("the loss is inf at step 3", "diverged from there"),
    ),
    "no number": (
        lambda run: write_metrics(run, (3.0, "oops", 1.0), None),  # type: ignore[arg-type]
        ("metrics.csv:3: train/loss: 'oops' is not a number",),
    ),
    "manifest of another version": (
        lambda run: edit(run / "manifest.json", version=2),
        ("is 'fsdtrain-run' of version 2", "reads 'fsdtrain-run' of version 1"),
    ),
    "results of another version": (
        lambda run: edit(run / "results.json", version=7),
        ("is 'fsdtrain-results' of version 7",),
    ),
    "another record": (
        lambda run: edit(run / "manifest.json", schema="fsdtrain-profile"),
        ("is 'fsdtrain-profile' of version 1",),
    ),
    "half a manifest": (
        lambda run: cut(run / "manifest.json", 20),
        ("manifest.json", "truncated"),
    ),
    "no manifest": (
        lambda run: (run / "manifest.json").unlink(),
        ("manifest.json does not exist",),
    ),
    "no config": (
        lambda run: (run / "config.yaml").unlink(),
        ("cannot read", "config.yaml"),
    ),
    "changed config": (
        lambda run: (run / "config.yaml").write_text("seed: 3\n"),
        ("config.yaml is not the configuration that", "was changed after the run"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(SPOILT))
def test_a_spoilt_run_is_refused(tmp_path: Path, case: str) -> None:
    spoil, words = SPOILT[case]
    folder = write_run(tmp_path / "run")
    read_run(folder)
    spoil(folder)
    sentence = refusal(lambda: read_run(folder))
    assert str(folder) in sentence
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("value", [None, 0, "four"])
def test_a_batch_size_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    folder = write_run(tmp_path / "run", data__batch_size=value)
    assert f"data.batch_size is {value!r}" in refusal(lambda: read_run(folder))


# --- pairs -------------------------------------------------------------------------------------


def write_sides(folder: Path, seeds_a: list[int], seeds_b: list[int]) -> list[list[Path]]:
    return [
        [write_run(folder / side / str(n), seed=seed) for n, seed in enumerate(seeds)]
        for side, seeds in (("a", seeds_a), ("b", seeds_b))
    ]


def test_runs_are_paired_by_seed(tmp_path: Path) -> None:
    a, b = read_pairs(*write_sides(tmp_path, [3, 0, 7], [7, 3, 0]))
    assert [run.manifest.seed for run in a] == [run.manifest.seed for run in b] == [0, 3, 7]


def test_other_seeds_are_refused(tmp_path: Path) -> None:
    sides = write_sides(tmp_path, [0, 1], [0, 2])
    sentence = refusal(lambda: read_pairs(*sides))
    assert "a has seeds 0, 1 and b has seeds 0, 2" in sentence
    assert "train the missing seeds" in sentence


def test_a_seed_counts_once(tmp_path: Path) -> None:
    sides = write_sides(tmp_path, [0, 0], [0, 0])
    assert "side a has seed 0 more than once" in refusal(lambda: read_pairs(*sides))


def test_other_data_are_refused(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", data="a" * 64)
    b = write_run(tmp_path / "b", data="b" * 64)
    sentence = refusal(lambda: read_pairs([a], [b]))
    assert "on data aaaaaaaaaaaa" in sentence
    assert "on data bbbbbbbbbbbb" in sentence
    assert "the same data can be compared" in sentence


def test_fewer_steps_are_refused_even_if_the_knob_may_differ(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", losses=(3.0, 2.0))
    sentence = refusal(lambda: check_comparable([a], [b], allow=["training.max_steps"]))
    assert "trained for 6 steps" in sentence
    assert "for 4: the same number" in sentence


def test_runs_of_one_side_differ_in_their_seed_alone(tmp_path: Path) -> None:
    a = [write_run(tmp_path / "a0"), write_run(tmp_path / "a1", seed=1, backend__precision="bf16")]
    b = [write_run(tmp_path / "b0"), write_run(tmp_path / "b1", seed=1)]
    sentence = refusal(lambda: check_comparable(a, b))
    assert "are of one side and differ in backend.precision" in sentence


def test_comparable_sides_tell_what_differs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", training__learning_rate=1e-3)
    b = write_run(tmp_path / "b", training__learning_rate=1e-4, backend="dojo")
    found = check_comparable([a], [b], allow=["training.learning_rate"])
    assert [(each.field, each.a, each.b, each.is_allowed) for each in found] == [
        ("training.learning_rate", "0.001", "0.0001", True),
        ("backend.name", "cpu", "dojo", True),
    ]


# --- configurations ----------------------------------------------------------------------------

A = as_yaml({"training.rate": 0.1, "training.steps": 5, "data.x": [1, 2], "backend.name": "cpu"})


def test_equal_configurations_have_no_difference() -> None:
    assert config_differences(A, A) == ()


def test_where_it_runs_and_the_seed_are_no_differences() -> None:
    a = as_yaml({"run_dir": "x", "seed": 0, "backend.seed": 0, "num_report_clips": 1})
    b = as_yaml({"run_dir": "y", "seed": 1, "backend.seed": 1, "num_report_clips": 2})
    assert config_differences(a, b) == ()


def test_the_backend_may_always_differ_and_is_listed() -> None:
    found = config_differences(A, as_yaml({**read_fields(A, ""), "backend.name": "dojo"}))
    assert [(each.field, each.a, each.b) for each in found] == [("backend.name", "cpu", "dojo")]
    more = as_yaml({**read_fields(A, ""), "backend.recipe.weight": "bf16"})
    (one,) = config_differences(A, more)
    assert (one.field, one.a, one.b) == ("backend.recipe.weight", "(absent)", "bf16")


@pytest.mark.parametrize(
    ("allow", "is_allowed"),
    [
        ((), False), (("training.rate",), True), (("training",), True), (("training.*",), True),
        (("training.steps",), False), (("data",), False), (("*",), True),
    ],
)  # fmt: skip
def test_other_differences_are_allowed_by_name(allow: tuple[str, ...], is_allowed: bool) -> None:
    b = as_yaml({**read_fields(A, ""), "training.rate": 0.2})
    if is_allowed:
        (found,) = config_differences(A, b, allow=allow)
        assert (found.field, found.a, found.b) == ("training.rate", "0.1", "0.2")
    else:
        sentence = refusal(lambda: config_differences(A, b, allow=allow))
        assert "training.rate: 0.1 and 0.2" in sentence
        assert "allow=[training.rate]" in sentence


def test_a_name_that_allows_nothing_is_a_mistake() -> None:
    sentence = refusal(lambda: config_differences(A, A, allow=["trainig.rate"]))
    assert "allow=trainig.rate: neither side's configuration has such a field" in sentence


BOMB = "\n".join(
    ["x0: &x0 {a: 1, b: 2}"]
    + [f"x{n}: &x{n} {{{', '.join(f'k{k}: *x{n - 1}' for k in range(9))}}}" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is no YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is no YAML"),
        ("3", "holds no fields"),
        ("a: &a {b: *a}", "groups deep"),
        (BOMB, "has more than 10000 fields"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused(text: str, words: str) -> None:
    assert words in refusal(lambda: read_fields(text, "config.yaml"))


def test_a_group_that_one_side_lacks_is_one_row() -> None:
    roles = {f"backend.recipe.role_{number}.format": "bf16" for number in range(9)}
    roles["backend.recipe.unset"] = None
    b = as_yaml({**read_fields(A, ""), "backend.name": "dojo", **roles})
    found = {each.field: each for each in config_differences(A, b)}
    assert set(found) == {"backend.name", "backend.recipe"}
    assert found["backend.recipe"].a == "(absent)"
    assert found["backend.recipe"].b.startswith("role_0.format=bf16, role_1.format=bf16, ")
    assert found["backend.recipe"].b.endswith("and 5 more")
    assert config_differences(b, A)[-1].b == "(absent)"
