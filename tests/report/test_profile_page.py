"""profile.html: everything that a profile holds, and nothing from elsewhere."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.engine.run_record import write_json
from fsdtrain.errors import UserError
from fsdtrain.report.html import write_profile_page
from fsdtrain.step_profile import (
    Assumption,
    HeatMap,
    MemoryUse,
    OpProfile,
    Phase,
    Rooflines,
    ScaleProfile,
    ScaleRow,
    StepProfile,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}
MB = 10**6
PEAK = 9.06e15
BANDWIDTHS = {"SRAM": 3.4e15, "node link": 1.1e15, "die edge": 9e13, "HBM": 4e12}
BOUNDS = ("matrix", "HBM", "link", "vector", "SRAM port", "latency", "imbalance")


def make_ops(num_ops: int = 150) -> tuple[OpProfile, ...]:
    """As a convolutional network has them: few are long; the long ones are bound by something."""
    random = Random(0)
    ops, start_s = [], 0.0
    phases: tuple[Phase, ...] = ("forward", "backward", "optimizer")
    for number in range(num_ops):
        phase = phases[0 if number < 50 else 1 if number < 130 else 2]
        bound = BOUNDS[min(int(random.expovariate(1 / 1.8)), 6)] if phase != "optimizer" else "HBM"
        flops = int(10 ** random.uniform(10.5, 13)) if phase != "optimizer" else int(1e9)
        num_bytes = flops / 10 ** random.uniform(2.2, 4)
        by_level = {
            "HBM": num_bytes * random.choice((0, 0.3, 1)),
            "die edge": num_bytes * random.uniform(0.5, 3),
            "node link": num_bytes * random.uniform(5, 25),
            "SRAM": num_bytes * random.uniform(20, 80),
        }
        roofline_s = max(
            flops / PEAK, *(amount / BANDWIDTHS[level] for level, amount in by_level.items())
        )
        time_s = roofline_s * random.uniform(1.1, 2.2) + 1e-6
        kind = ("conv", "batch_norm", "relu", "addmm")[number % 4]
        ops.append(
            OpProfile(
                name=f"{kind}_{number}" + ("" if phase == "forward" else ".dw"),
                shapes=f"256x{64 << number % 4}x{56 >> number % 3}x56, 64x64x3x3",
                dtype="cfloat8_1_4_3", num_calls=1, time_s=time_s, flops=flops,
                num_bytes=int(num_bytes), bound_by=bound, phase=phase,
                layer=f"network.backbone.stage{number % 4}.{number % 7}.{kind}",
                line=f"fsdtrain/models/backbone.py:{20 + number % 40}", start_s=start_s,
                utilisation=flops / time_s / PEAK, roofline_s=roofline_s, bytes_by_level=by_level,
                sram_peak_bytes=int(random.uniform(0.1, 1.2) * MB),
                energy_j=flops * 1e-12,
                explanation=(
                    "output-stationary, K whole: 31.2 \u00b5s; weight-stationary: 44.0 \u00b5s, "
                    "more node link traffic",
                    "batch over 90 rows, channels over 100 columns; 4 steps of 64 images",
                ),
            )
        )  # fmt: skip
        start_s += time_s
    return tuple(sorted(ops, key=lambda op: -op.time_s))


def make_maps() -> tuple[HeatMap, ...]:
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[0:90, 0:100]
    compute = 0.62 - 0.1 * (rows > 80) + random.normal(0, 0.015, (90, 100))
    links = np.exp(-columns / 45) * (0.6 + 0.3 * np.cos(rows / 9)) + 0.05
    maps = []
    for title, unit, values in (
        ("Compute", "share", compute),
        ("Links", "B", 3e9 * links),
    ):
        cells: list[list[float | None]] = values.tolist()
        for row in range(5, 90, 18):
            for column in range(7, 100, 20):
                cells[row][column] = None
        maps.append(HeatMap(title=title, unit=unit, rows=tuple(map(tuple, cells)), group=(18, 20)))
    memory = HeatMap(title="HBM", unit="B", rows=((3.1e9, 3.0e9, 3.4e9, 2.2e9, 0.0),))
    return (*maps, memory)


ASSUMPTIONS = (
    # name, value, unit, source, low, high, and the step time at these, relative
    ("hbm_efficiency_share", 0.85, "share", "measured on a similar part", 0.7, 0.95, 1.09, 0.95),
    ("die_crossing_ns", 100, "ns", "an attendee's notes of a talk", 50, 200, 0.97, 1.06),
    ("op_start_ns", 50, "ns", "100 clocks to pass a semaphore", 0, 1000, 0.99, 1.31),
    ("special_per_cycle", 2, "1/cycle", "8 operations a result", 0.5, 16, 1.02, 0.995),
    ("num_accumulators", 4, "count", "several a processing element", 1, 16, 1.0, 1.0),
)


def make_assumptions(step_time_s: float) -> tuple[Assumption, ...]:
    judged = tuple(
        Assumption(
            name=name, value=value, unit=unit, source=source, confidence="assumed", low=low,
            high=high, step_time_at_low_s=at_low * step_time_s,
            step_time_at_high_s=at_high * step_time_s,
        )
        for name, value, unit, source, low, high, at_low, at_high in ASSUMPTIONS
    )  # fmt: skip
    stated = Assumption(
        name="clock_ghz", value=2, unit="GHz", source="a talk at <Hot Chips>", confidence="stated"
    )
    return (*judged, stated)


def make_profile() -> StepProfile:
    """A tile that trains a network: made up, with every field filled."""
    ops = make_ops()
    step_time_s = sum(op.time_s for op in ops)
    random = np.random.default_rng(2)
    times = np.sort(random.uniform(0, step_time_s, 300))
    fullness = (
        np.abs(np.sin(times / step_time_s * 3.1)) * 0.8 * MB + random.uniform(0.05, 0.4, 300) * MB
    )
    return StepProfile(
        backend="dojo", device="Tesla D1 tile, 8,850 nodes (d1_tile)", origin="MODELLED",
        step_time_s=step_time_s, ops=ops, flops=float(sum(op.flops or 0 for op in ops)),
        peak_flops_per_s=PEAK, roofline_s=sum(op.roofline_s or 0 for op in ops), energy_j=61.3,
        power_limit_watts=15000.0,
        memory=(
            MemoryUse(name="SRAM of a node", peak_bytes=1_190_000, capacity_bytes=1_250_000),
            MemoryUse(name="HBM", peak_bytes=23 * 10**9, capacity_bytes=160 * 10**9),
        ),
        busy_s={"matrix": 0.41 * step_time_s, "HBM": 0.66 * step_time_s, "link": 0.3 * step_time_s,
                "vector": 0.12 * step_time_s, "SRAM port": 0.35 * step_time_s},
        sram_over_time=tuple(zip(times.tolist(), fullness.tolist(), strict=True)),
        sram_capacity_bytes=1_250_000, heat_maps=make_maps(),
        rooflines=Rooflines(
            flops_per_s={"cfloat8_1_4_3": PEAK, "bf16": PEAK, "fp32": 5.65e14},
            bytes_per_s=BANDWIDTHS,
        ),
        assumptions=make_assumptions(step_time_s),
        scale=ScaleProfile(
            rows=tuple(
                ScaleRow(
                    machine=machine, num_replicas=count, placement=f"data parallel over {count}",
                    num_samples=256 * count, step_time_s=step_time_s * (1 + 0.03 * at),
                    all_reduce_s=at * 0.1 * step_time_s or None, efficiency=1 / (1 + 0.03 * at),
                )
                for at, (machine, count) in enumerate(
                    (("d1_tile", 1), ("d1_tray", 6), ("exapod", 120))
                )
            ),
            note="the batch of each replica stays as it is",
        ),
        notes=("1.7 GB of activations were spilled to HBM; with batch 192 they would fit.",),
    )  # fmt: skip


class Page(HTMLParser):
    """Parses a page, checks that its tags are balanced, and keeps tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [one for _, one in self.tags if name in (one.get("class") or "").split()]

    def sections(self) -> list[str | None]:
        return [section.get("id") for section in self.all("section")]


@pytest.fixture
def page_of(fake_run: Callable[..., Path]) -> Callable[[StepProfile], Page]:
    def _page_of(profile: StepProfile) -> Page:
        folder = fake_run()
        write_json(folder / "profile.json", ProfileRecord(num_clips=256, profile=profile))
        path = write_profile_page(folder)
        assert path == folder / "profile.html"
        return Page(path.read_text(encoding="utf-8"))

    return _page_of


PageOf = Callable[[StepProfile], Page]


def test_the_page_shows_all_there_is(page_of: PageOf) -> None:
    profile = make_profile()
    page = page_of(profile)
    assert page.sections() == ["step", "limits", "maps", "ops", "assumptions", "scale", "run"]
    for card in ("Step time", "Of the peak rate", "Of the roofline", "SRAM of a node, at most"):
        assert card in page.text
    assert page.text.count("MODELLED") >= 8
    assert profile.notes[0] in page.text
    assert "1.19 MB" in page.text
    assert "output-stationary, K whole" in page.text
    assert "exapod" in page.text
    assert "the batch of each replica stays as it is" in page.text
    assert len(page.with_class("circle")) == len(profile.ops)
    for circle in page.with_class("circle"):
        assert 0 <= float(circle["cx"] or "") <= 560
        assert 0 <= float(circle["cy"] or "") <= 400
    assert "capacity 1.25 MB" in page.text
    assert len(page.all("image")) == 3


def test_the_slowest_op_heads_the_table(page_of: PageOf) -> None:
    profile = make_profile()
    page = page_of(profile)
    names = [profile.ops[at].name for at in (0, 1, 29, 30, 149)]
    places = [page.text.index(f"{name}network.") for name in names]
    assert places == sorted(places)
    assert "The next 120 ops" in page.text


def test_the_bars_of_the_bounds_add_up(page_of: PageOf) -> None:
    profile = make_profile()
    page = page_of(profile)
    stack = page.html.split('<dl class="stack">')[1].split("</dl>")[0]
    bars = {
        name: sum(map(float, re.findall(r"--share: ([\d.]+)%", bar)))
        for name, bar in re.findall(r"<dt>(\w+)</dt>(.*?)(?=<dt>|$)", stack, re.DOTALL)
    }
    times = {phase: sum(op.time_s for op in profile.ops if op.phase == phase) for phase in bars}
    longest = max(times.values())
    assert set(bars) == {"forward", "backward", "optimizer"}
    for phase, share in bars.items():
        assert share == pytest.approx(100 * times[phase] / longest, abs=0.01)


def test_assumptions_are_ranked_by_what_they_change(page_of: PageOf) -> None:
    text = page_of(make_profile()).text
    order = ["op_start_ns", "hbm_efficiency_share", "die_crossing_ns", "special_per_cycle"]
    places = [text.index(name) for name in order]
    assert places == sorted(places)
    assert "-1.0% to +31.0%" in text
    assert text.index("The other 2 constants") < text.index("num_accumulators")
    assert "a talk at <Hot Chips>" in text


def test_nothing_is_loaded_and_nothing_runs(page_of: PageOf) -> None:
    page = page_of(make_profile())
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in {"script", "link", "base", "iframe", "object", "embed", "form"}
    for word in ("http:", "https:", "@import", "url("):
        assert word not in page.html, word
    assert "script-src 'none'" in page.html
    assert len(page.html) < 600_000


@pytest.mark.parametrize("kind", ["modelled", "measured"])
def test_every_link_of_the_bar_has_its_section(page_of: PageOf, kind: str) -> None:
    page = page_of(make_profile() if kind == "modelled" else make_measured())
    links = [(link["href"] or "").removeprefix("#") for link in page.all("a")]
    assert links == page.sections()


def make_measured() -> StepProfile:
    """What a clock can tell: no machine, no memory, no bounds."""
    op = OpProfile(
        name="aten::mm", shapes="2x3, 3x4", dtype="fp32", num_calls=2, time_s=0.5, flops=48,
        num_bytes=None, bound_by=None, phase="forward",
    )  # fmt: skip
    return StepProfile(
        backend="cpu", device="x86_64", origin="MEASURED", step_time_s=0.75, ops=(op,), flops=144
    )


def test_a_page_without_a_machine_model_leaves_it_out(page_of: PageOf) -> None:
    page = page_of(make_measured())
    assert page.sections() == ["step", "limits", "ops", "run"]
    assert "MODELLED" not in page.text
    assert "MEASURED" in page.text
    assert "aten::" not in page.text
    for word in ("roofline", "Roofline plot", "bounds them", "not known", "SRAM", "None"):
        assert word not in page.text, word


@pytest.mark.parametrize(
    "change",
    [
        {"ops": ()},
        {"step_time_s": 0.0},
        {"rooflines": Rooflines(flops_per_s={}, bytes_per_s={})},
        {"sram_over_time": ((0.0, 0.0),), "sram_capacity_bytes": None},
        {"heat_maps": (HeatMap(title="none", unit="B", rows=((None,),)),)},
        {"heat_maps": (HeatMap(title="idle", unit="share", rows=((0.0, 0.0),)),)},
        {"heat_maps": (HeatMap(title="strip", unit="share", rows=((0.5,) * 108,)),)},
        {"heat_maps": (HeatMap(title="one", unit="share", rows=((0.5,),)),)},
        {"assumptions": make_assumptions(1.0)[-1:]},
        {"scale": ScaleProfile(rows=())},
        {"busy_s": {}, "memory": (MemoryUse(name="HBM", peak_bytes=0),)},
    ],
)
def test_odd_profiles_have_a_page(page_of: PageOf, change: dict[str, Any]) -> None:
    page = page_of(replace(make_profile(), **change))
    assert "nan" not in re.sub("<[^>]*>", "", page.html.split("<main")[1]).lower().split()
    for attribute in re.findall(r'(?:cx|cy|x1|y1|points|viewBox)="([^"]*)"', page.html):
        assert "nan" not in attribute
        assert "inf" not in attribute


def test_an_op_that_overlaps_stands_where_it_would_by_itself(page_of: PageOf) -> None:
    hidden = OpProfile(
        name="conv", shapes="", dtype="bf16", num_calls=1, time_s=1e-9, alone_s=2e-3,
        flops=4 * 10**12, num_bytes=None, bound_by="matrix", roofline_s=1e-3,
        bytes_by_level={"HBM": 1e9},
    )  # fmt: skip
    page = page_of(replace(make_profile(), ops=(hidden,)))
    assert "2 PFLOP/s at 4e+03 FLOP a byte of HBM" in page.text
    (circle,) = page.with_class("circle")
    peak = min(float(line["y1"] or "") for line in page.with_class("peak"))
    assert float(circle["cy"] or "") > peak, "below the roof"
    assert "50.0%" in page.text, "of the roofline"


def test_text_is_escaped(page_of: PageOf) -> None:
    evil = "<script>alert(1)</script>"
    profile = replace(make_profile(), device=evil, notes=(evil,))
    page = page_of(profile)
    assert evil not in page.html
    assert page.text.count(evil) >= 2


def test_a_folder_without_a_profile_is_one_sentence(fake_run: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"profile\.json does not exist"):
        write_profile_page(fake_run())
