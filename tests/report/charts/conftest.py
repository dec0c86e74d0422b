"""Every chart that a test makes is read by plotly's own schema."""

import json
import re
from collections.abc import Callable

import msgspec
import plotly.graph_objects
import pytest

from fsdtrain.report.charts.chart import Chart
from fsdtrain.report.palette import TONES

NAMED_COLOR = re.compile(r'"@([\w-]+)(?:/[\d.]+)?"')


@pytest.fixture
def checked() -> Callable[[Chart | None], Chart]:
    """`checked(chart)` -> the chart, which is there, valid JSON, and valid for plotly."""

    def check(chart: Chart | None) -> Chart:
        assert chart is not None
        text = msgspec.json.encode(chart.payload).decode()
        assert "NaN" not in text
        assert set(NAMED_COLOR.findall(text)) <= set(TONES)
        payload = json.loads(NAMED_COLOR.sub('"#123456"', text))
        # Raises ValueError for a property or a value that plotly does not know.
        plotly.graph_objects.Figure(data=payload["data"], layout=payload["layout"])
        assert chart.title
        assert chart.summary.endswith(".")
        assert chart.origin
        assert chart.source
        for entry in chart.legend:
            assert all(0 <= trace < len(payload["data"]) for trace in entry.traces)
            assert entry.color.removeprefix("@") in TONES
        return chart

    return check
