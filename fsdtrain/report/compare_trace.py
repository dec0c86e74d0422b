"""Write a comparison's trace.json: the timelines of a and b, a process each, for Perfetto.

It does not know how the timelines were found. Both start at the start of their step.
"""

from pathlib import Path

from fsdtrain.report.trace import MAX_BYTES, TracedProcess, WrittenTrace, write_processes
from fsdtrain.step_profile import StepProfile


def write_compare_trace(
    a: StepProfile, b: StepProfile, path: Path, *, max_bytes: int = MAX_BYTES
) -> WrittenTrace:
    """Write both timelines; each process is named by its side, backend, origin and device.

    Raises:
        UserError: the file cannot be written.
    """
    processes = (TracedProcess(profile=a, name="a"), TracedProcess(profile=b, name="b"))
    return write_processes(processes, path, max_bytes=max_bytes)
