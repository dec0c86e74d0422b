import pytest

from fsdtrain.engine.run_record import Figure
from fsdtrain.report.cards import format_value, label_of, make_card, summarise


def make_figure(
    value: float, baselines: dict[str, float], *, is_higher: bool = True, **changes: str
) -> Figure:
    fields = {"name": "vehicle_iou", "unit": "", "description": "Held out."} | changes
    better = "higher" if is_higher else "lower"
    return Figure(
        name=fields["name"],
        value=value,
        unit=fields["unit"],
        better=better,  # type: ignore[arg-type]  # one of the two
        origin="MEASURED",
        description=fields["description"],
        baselines=baselines,
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.37126, "0.371"),
        (9.99951, "10.000"),
        (41.237, "41.24"),
        (512.49, "512.5"),
        (12345.6, "12,346"),
        (2.5e-5, "2.50e-05"),
        (-0.25, "-0.250"),
        (3e9, "3.00e+09"),
        (0.0, "0"),
        (float("nan"), "not finite"),
        (float("-inf"), "not finite"),
    ],
)
def test_values_are_set_with_what_can_be_read(value: float, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("vehicle_iou", "Vehicle IoU"),
        ("ego_path/fde_2s_turn", "Ego path FDE 2s turn"),
        ("minade", "minADE"),
        ("lr", "Learning rate"),
        ("constant_velocity", "Constant velocity"),
    ],
)
def test_names_become_labels(name: str, label: str) -> None:
    assert label_of(name) == label


@pytest.mark.parametrize(
    ("value", "baselines", "is_higher", "sentence", "standing"),
    [
        (0.4, {"prior": 0.1}, True, "Ahead: 4.00 \u00d7 prior", "ahead"),
        (0.4, {"a": 0.1, "b_c": 0.2}, True, "Ahead: 2.00 \u00d7 b c, the best baseline", "ahead"),
        (0.1, {"prior": 0.2}, True, "Behind: 0.50 \u00d7 prior", "behind"),
        (0.6, {"a": 1.0, "b": 1.2}, False, "Ahead: 0.60 \u00d7 a, the best baseline", "ahead"),
        (1.5, {"a": 1.0}, False, "Behind: 1.50 \u00d7 a", "behind"),
        (1.0, {"a": 1.0}, False, "No better than a", "behind"),
        (0.3, {"a": 0.0}, True, "Ahead: 0.300 from a", "ahead"),
        (0.3, {"a": float("nan"), "b": 0.1}, True, "Ahead: 3.00 \u00d7 b", "ahead"),
        (float("nan"), {"a": 0.1}, True, "Not a finite number", "behind"),
        (0.3, {}, True, "", "alone"),
    ],
)
def test_a_figure_is_compared_with_its_strongest_baseline(
    value: float, baselines: dict[str, float], is_higher: bool, sentence: str, standing: str
) -> None:
    card = make_card(make_figure(value, baselines, is_higher=is_higher))
    assert (card.sentence, card.standing) == (sentence, standing)


def test_bars_are_in_proportion_and_the_model_comes_first() -> None:
    card = make_card(make_figure(0.4, {"a": 0.8, "b": 0.0, "c": float("inf"), "d": -1.0}))
    assert [(bar.label, bar.percent, bar.is_model) for bar in card.bars] == [
        ("This model", 50.0, True),
        ("A", 100.0, False),
        ("B", 0.0, False),
        ("C", 0.0, False),
        ("D", 0.0, False),
    ]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.25, "s", ("250.0", "ms")),
        (4e-5, "s", ("40.00", "\u00b5s")),
        (2.0, "s", ("2.000", "s")),
        (0.5, "IoU", ("0.500", "")),
        (0.5, "m", ("0.500", "m")),
        (0.5, "1", ("0.500", "")),
    ],
)
def test_units_are_readable_and_baselines_follow(
    value: float, unit: str, shown: tuple[str, str]
) -> None:
    card = make_card(make_figure(value, {"twice": 2 * value}, unit=unit))
    assert (card.value, card.unit) == shown
    assert float(card.bars[1].value) == pytest.approx(2 * float(card.value))


def test_the_summary_counts_compared_figures_and_names_those_behind() -> None:
    ahead, behind = make_figure(0.4, {"a": 0.1}), make_figure(0.1, {"a": 0.2}, name="path_fde")
    alone = make_figure(3.0, {})
    assert summarise([alone]) is None
    assert summarise([ahead, alone]) == (
        "Better than every baseline on the one compared figure.",
        True,
    )
    assert summarise([ahead, behind, alone]) == (
        "Better than every baseline on 1 of 2 compared figures; not on Path FDE.",
        False,
    )
