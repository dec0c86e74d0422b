"""Finds the line of the user's model in a stack trace, for error messages. Knows no graphs."""

import re
from pathlib import Path

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_USERS = ("/site-packages/torch/", "<frozen")


def user_line(trace: str) -> str:
    """The innermost line that is not PyTorch's, as in " (model.py:12)"; empty without one."""
    frames = [
        (path, line)
        for path, line in _FRAME.findall(trace)
        if not any(part in path for part in _NOT_THE_USERS)
    ]
    return f" ({Path(frames[-1][0]).name}:{frames[-1][1]})" if frames else ""
