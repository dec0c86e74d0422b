"""Runs a recipe under Hydra: config search path, overrides, multirun, help, shell completion.

It does not know the recipes: a recipe is a module with `run(config: DictConfig) -> int | None`,
which returns the command's exit code, None for 0.
"""

import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fsdtrain.backend import installed_backends
from fsdtrain.errors import UserError
from fsdtrain.paths import config_dir

NESTED_CHOICE = re.compile(r"(?P<group>\w+(?:\.\w+)+)=(?P<option>\w+)")
SIDES = ("a", "b")  # of a comparison: each has a backend group of its own


class BackendConfigs(SearchPathPlugin):
    """Adds the config folders that the installed backends ship, after our own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for backend in installed_backends().values():
            if backend.config_path is not None:
                search_path.append(provider=backend.distribution, path=backend.config_path)


def run_with_hydra(name: str, module: str, arguments: list[str]) -> int:
    """Parse `arguments` as Hydra does, compose config `name` and call `module.run(config)`.

    Returns the exit code that it returns.

    Raises:
        UserError: what the recipe raised, or arguments that Hydra refuses.
        OSError: a file or folder that cannot be read or written.
    """
    overrides = _choose_options(name, arguments)
    has_begun = False
    code = 0
    mistakes: list[UserError | OSError] = []

    typed = list(sys.argv)

    def task(config: DictConfig) -> None:
        nonlocal has_begun, code
        has_begun = True
        # Lightning starts the other ranks of a run with the command line it finds here.
        sys.argv = [typed[0], name, *arguments]
        # Imported here, so that --help and --cfg do not wait for torch.
        try:
            code = import_module(module).run(config) or 0
        except (UserError, OSError) as error:
            # Hydra would add lines of its own: a SystemExit passes it untouched.
            mistakes.append(error)
            raise SystemExit from error

    _prepare_hydra()
    sys.argv = [f"fsdtrain-{name}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(task)()
    except SystemExit:
        if mistakes:
            raise mistakes[0] from mistakes[0].__cause__
        raise
    except (HydraException, OmegaConfBaseException):
        raise
    except ValueError as error:
        if has_begun:
            raise
        raise UserError(str(error)) from error  # arguments that Hydra refuses without a class
    return code


def name_side(side: str, backend: str) -> str:
    """A side of the running comparison in words: "dojo (recipe=cfp8, machine=d1_tile)"."""
    config = HydraConfig.get()
    chosen = {
        key.partition(f"@{side}.")[2]: option
        for key, option in config.runtime.choices.items()
        if f"@{side}." in key
    }
    for override in config.overrides.task:
        key, _, value = override.partition("=")
        if key.startswith(f"{side}."):
            chosen[key.removeprefix(f"{side}.")] = value
    words = ", ".join(f"{key}={value}" for key, value in chosen.items())
    return f"{backend} ({words})" if words else backend


def command_line() -> str:
    """The running command as a user would type it again."""
    return shlex.join(["fsdtrain", *sys.argv[1:]])


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """The composed config of a command, for commands that do not run under Hydra."""
    _prepare_hydra()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        try:
            return compose(config_name=name, overrides=_choose_options(name, overrides))
        except (HydraException, OmegaConfBaseException):
            raise
        except ValueError as error:
            raise UserError(str(error)) from error


def _choose_options(name: str, overrides: list[str]) -> list[str]:
    """backend.machine=a100 -> backend/machine=a100, if that is a group of ours.

    As a value it would stand for the whole group, and none of its knobs could be overridden. Of an
    option that the group does not have, Hydra says so and lists those that it has.
    """
    sides = SIDES if name == "compare" else ()
    return [_choose_option(override, sides) for override in overrides]


def _choose_option(override: str, sides: tuple[str, ...]) -> str:
    key, is_value, value = override.partition("=")
    if key in sides and is_value:
        return _choose_side(key, value)
    match = NESTED_CHOICE.fullmatch(override)
    if match is None:
        return override
    side, *parts = match["group"].split(".")
    group = "/".join(["backend" if side in sides else side, *parts])
    if not (config_dir() / group).is_dir():
        return override
    package = f"@{match['group']}" if side in sides else ""
    return f"{group}{package}={match['option']}"


def _choose_side(side: str, value: str) -> str:
    """b=dojo -> backend@b=dojo; b=runs/fit/x -> b_dir=runs/fit/x.

    Raises:
        UserError: it is neither a backend nor a folder.
    """
    if value in installed_backends():
        return f"backend@{side}={value}"
    if Path(value).is_dir():
        return f"{side}_dir={QuotedString(value, Quote.single).with_quotes()}"
    raise UserError(
        f"{side}={value}: neither an installed backend ({', '.join(installed_backends())}) nor a "
        "folder of runs"
    )


def complete_shell(arguments: list[str], *, hydra_commands: dict[str, bool]) -> int:
    """Answer a shell's completion query: first the command, then Hydra's overrides for it."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split(" ")
    is_query = any(argument.startswith("query=") for argument in arguments)
    if is_query and len(words) <= 2:
        prefix = words[1] if len(words) == 2 else ""
        sys.stdout.write(" ".join(name for name in hydra_commands if name.startswith(prefix)))
        return 0
    if not is_query:
        _prepare_hydra()
        sys.argv = ["fsdtrain", *arguments]  # the program that the script is installed for
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="fit")(_nothing)()
        return 0
    name = words[1]
    if hydra_commands.get(name, False):
        # Hydra completes `program overrides`; the command is ours.
        rest = " ".join([words[0], *words[2:]])
        os.environ["COMP_LINE"] = rest
        os.environ["COMP_POINT"] = str(len(rest))
        run_with_hydra(name, "fsdtrain.fit", arguments)
    return 0


def _nothing(config: DictConfig) -> None:
    """The task of a call that only prints a script."""


def _prepare_hydra() -> None:
    # Hydra would otherwise print its own error lines and exit with 1; the door prints ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # torch's profiler would log on stderr that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    if BackendConfigs not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(BackendConfigs)
