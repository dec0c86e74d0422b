"""`compare --repro OP`: a folder with a script and tensors that show what one op does wrong.

Its inputs are the reference's. It does not know how errors are judged.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from torch import Tensor

from fsdtrain.comparison.bisect import describe_unit
from fsdtrain.comparison.rerun import save_tensors
from fsdtrain.comparison.script import SideBackend, constant_name, write_script
from fsdtrain.errors import UserError
from fsdtrain.step_graph.units import Unit

SCRIPT: Final = "repro.py"
_NUM_SHOWN: Final = 10
_README: Final = """\
# {what}

    python repro.py

runs it as side a ({a}), as side b ({b}) and in double precision, on the inputs that the reference
step gives it, and prints how far the results are apart. It needs torch and fsdtrain, no data.

`tensors.npz` holds the inputs (numpy reads it, nothing is unpickled), `tensors.json` their names
and strides.
"""


def write_repro(
    units: Sequence[Unit],
    values: Mapping[str, Tensor],
    op: str,
    folder: Path,
    *,
    a: SideBackend,
    b: SideBackend,
    worst: Sequence[str] = (),
) -> Path:
    """Write the folder; returns the script.

    Args:
        units: of the step; see `find_units`.
        values: of the reference, by name: those that no op gives as well.
        op: name of a unit, or a part of it or of its layer, op, phase or line.
        folder: made if it is not there.
        a: the backend of side a.
        b: the backend of side b.
        worst: names of units, the worst first, to choose from several that match.

    Raises:
        UserError: no unit matches, or it cannot be written down.
    """
    unit = find_unit(units, op, worst=worst)
    given = {name: values[name] for name in unit.inputs}
    for side, ops in unit.sides.items():
        given |= {constant_name(side, name): tensor for name, tensor in ops.constants.items()}
    what = describe_unit(unit)
    text = write_script(what, given, unit.sides, a=a, b=b)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(given, folder)
    script = folder / SCRIPT
    script.write_text(text, encoding="ascii")
    readme = _README.format(what=" ".join(what.split()), a=a.name, b=b.name)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return script


def find_unit(units: Sequence[Unit], op: str, *, worst: Sequence[str] = ()) -> Unit:
    """The unit of this name, or the worst of those that match.

    Raises:
        UserError: none does.
    """
    matching = [each for each in units if op == each.name]
    matching = matching or [each for each in units if op.lower() in _searched(each)]
    if not matching:
        names = [each.name for each in units]
        close = difflib.get_close_matches(op, names, n=_NUM_SHOWN, cutoff=0.4)
        shown = close or [*worst, *(name for name in names if name not in set(worst))][:_NUM_SHOWN]
        raise UserError(
            f"repro: no op of the step matches {op!r}; of {len(names)} "
            f"{'similar are' if close else 'these come first:'} {', '.join(shown[:_NUM_SHOWN])}"
        )
    ranks = {name: rank for rank, name in reversed(list(enumerate(worst)))}
    return min(matching, key=lambda each: ranks.get(each.name, len(ranks)))


def _searched(unit: Unit) -> str:
    return f"{unit.name} {describe_unit(unit)} {unit.op}".lower()
