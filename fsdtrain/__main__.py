"""The door: `python -m fsdtrain <command> [arguments]`.

Each command is a recipe in a file of its own; this file only finds it, and turns a user's mistake
into one sentence and exit code 2. It does not know what a command does.
"""

import errno
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from fsdtrain.errors import UserError

EXIT_USER_ERROR = 2
# What Hydra takes for a text as it stands.
PLAIN_VALUE = re.compile(r"[A-Za-z_][\w./-]*")
HYDRAS_WORDS = frozenset(("null", "true", "false", "nan", "inf"))
# What a full, read-only or foreign disk answers: nothing that a traceback would explain.
DISK_ERRORS = frozenset(
    (
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
        errno.ENOTDIR, errno.EEXIST,
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Command:
    """`module` is imported when the command is given, so that the others cost nothing.

    `--name value` and `--name=value` stand for the override `name=value` of each of `options`;
    `--name` stands for `name=true` of each of `flags`.
    """

    module: str
    help: str
    uses_hydra: bool = False
    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


COMMANDS = {
    "fit": Command(
        module="fsdtrain.fit",
        help="train a model, evaluate it and write a report",
        uses_hydra=True,
    ),
    "validate": Command(
        module="fsdtrain.evaluate",
        help="evaluate a checkpoint beside its baselines",
        uses_hydra=True,
    ),
    "profile": Command(
        module="fsdtrain.profile",
        help="show where a training step's time goes, op by op",
        uses_hydra=True,
        options=("explain",),
    ),
    "compare": Command(
        module="fsdtrain.compare",
        help="tell whether two hardware paths train the same, and what each costs",
        uses_hydra=True,
        options=("repro",),
        flags=("bisect", "tune"),
    ),
    "plan": Command(
        module="fsdtrain.plan",
        help="tell what a fleet of machines would need for a training",
        uses_hydra=True,
        flags=("press",),
    ),
    "plan calibrate": Command(
        module="fsdtrain.calibrate_command",
        help="measure all-reduces here and check the model of networks",
    ),
    "data": Command(module="fsdtrain.fleet", help="make, convert, inspect and verify shards"),
    "report": Command(
        module="fsdtrain.report_command", help="follow a running fit, or write pages again"
    ),
    "backends": Command(module="fsdtrain.doctor", help="list the backends, and why one cannot run"),
    "doctor": Command(module="fsdtrain.doctor", help="check versions, devices and data stores"),
}

HELP = """usage: fsdtrain <command> [arguments] [--debug]

Train camera-only driving perception from fleet video.

commands:
{commands}

fsdtrain <command> --help tells more; --debug shows the traceback of an error.
Shell completion: eval "$(fsdtrain -sc install=bash)"   (bash, zsh or fish)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0 fine, 1 a check failed or a difference, 2 a mistake."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_debugging = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if given else EXIT_USER_ERROR
    try:
        return _run(given[0], given[1:])
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if is_debugging:
            raise
        sys.stderr.write(f"fsdtrain: {_one_sentence(error)}\n")
        return EXIT_USER_ERROR
    except OSError as error:
        if is_debugging or error.errno not in DISK_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else ""
        sys.stderr.write(
            f"fsdtrain: cannot write{where}: {error.strerror}; make room there, mend the "
            "permissions or choose another folder\n"
        )
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if is_debugging:
            raise
        sys.stderr.write("fsdtrain: interrupted\n")
        return 130


def _run(name: str, arguments: list[str]) -> int:
    if name in ("-sc", "--shell-completion") or name.startswith("--shell-completion="):
        from fsdtrain.hydra_app import complete_shell

        return complete_shell([name, *arguments], hydra_commands=_hydra_commands())
    if arguments and f"{name} {arguments[0]}" in COMMANDS:
        name, arguments = f"{name} {arguments[0]}", arguments[1:]
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; commands are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if command.uses_hydra:
        from fsdtrain.hydra_app import run_with_hydra

        return run_with_hydra(name, command.module, _as_overrides(arguments, command))
    run: Callable[[str, list[str]], int] = import_module(command.module).main
    return run(name, arguments)


def _as_overrides(arguments: list[str], command: Command) -> list[str]:
    """--explain "conv 1" -> explain='conv 1', quoted where Hydra's grammar wants it."""
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and not equals and option in command.flags:
            found.append(f"{option}=true")
            continue
        if option not in command.options or not argument.startswith("--"):
            found.append(argument)
            continue
        if not equals and not rest:
            raise UserError(f"--{option} needs a value: --{option} <part of an op's name>")
        value = value if equals else rest.pop(0)
        is_plain = PLAIN_VALUE.fullmatch(value) is not None and value.lower() not in HYDRAS_WORDS
        given = value if is_plain else QuotedString(value, Quote.single).with_quotes()
        found.append(f"{option}={given}")
    return found


def _hydra_commands() -> dict[str, bool]:
    return {name: command.uses_hydra for name, command in COMMANDS.items() if " " not in name}


def _help() -> str:
    lines = (f"  {name:<15} {command.help}" for name, command in COMMANDS.items())
    return HELP.format(commands="\n".join(lines))


def _one_sentence(error: Exception) -> str:
    """The message without Hydra's hints on its own environment variables."""
    lines = [line.strip() for line in str(error).splitlines()]
    sentence = " ".join(
        line for line in lines if line and "HYDRA_FULL_ERROR" not in line and "full_key" not in line
    )
    if isinstance(error, OverrideParseException) and error.override not in sentence:
        return f"{error.override}: {sentence}"
    return sentence


if __name__ == "__main__":
    sys.exit(main())
