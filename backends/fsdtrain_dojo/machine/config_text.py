"""The Hydra group of a machine as text: its name, and every constant as a knob that is not set.

The files in configs/backend/machine are this text, so that a knob needs no `+` on the command line;
tools/write_machine_configs.py writes them, and a test holds them to it.
"""

from fsdtrain_dojo.machine.preset import Preset
from fsdtrain_dojo.machine.quantity import Quantity


def config_text(preset: Preset) -> str:
    """configs/backend/machine/<name>.yaml of a preset."""
    hypothetical = "; nobody has built it" if preset.is_hypothetical else ""
    lines = [
        f"# {preset.summary}{hypothetical}.",
        "# null: the figure behind it. Sources are in the profile's list of assumptions.",
        f"name: {preset.name}",
    ]
    for name, constant in preset.constants.items():
        lines.append(f"{name}: null # {_describe(constant)}")
    return "\n".join(lines) + "\n"


def _describe(constant: Quantity) -> str:
    unit = "" if constant.unit in ("count", "share") else f" {constant.unit}"
    between = "" if constant.low is None else f", {constant.low:g} to {constant.high:g}"
    return f"{constant.value:g}{unit}, {constant.confidence.value}{between}"
