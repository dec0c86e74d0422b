"""Runs a recipe under Hydra: config search path, overrides, multirun, help, shell completion.

It does not know the recipes: a recipe is a module with `run(config: DictConfig) -> None`.
"""

import os
import re
import shlex
import sys
from importlib import import_module

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fsdtrain.backend import installed_backends
from fsdtrain.errors import UserError
from fsdtrain.paths import config_dir

NESTED_CHOICE = re.compile(r"(?P<group>\w+(?:\.\w+)+)=(?P<option>\w+)")


class BackendConfigs(SearchPathPlugin):
    """Adds the config folders that the installed backends ship, after our own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for backend in installed_backends().values():
            if backend.config_path is not None:
                search_path.append(provider=backend.distribution, path=backend.config_path)


def run_with_hydra(name: str, module: str, arguments: list[str]) -> int:
    """Parse `arguments` as Hydra does, compose config `name` and call `module.run(config)`.

    Raises:
        UserError: what the recipe raised, or arguments that Hydra refuses.
        OSError: a file or folder that cannot be read or written.
    """
    overrides = _choose_options(arguments)
    has_begun = False
    mistakes: list[UserError | OSError] = []

    typed = list(sys.argv)

    def task(config: DictConfig) -> None:
        nonlocal has_begun
        has_begun = True
        # Lightning starts the other ranks of a run with the command line it finds here.
        sys.argv = [typed[0], name, *arguments]
        # Imported here, so that --help and --cfg do not wait for torch.
        try:
            import_module(module).run(config)
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
    return 0


def command_line() -> str:
    """The running command as a user would type it again."""
    return shlex.join(["fsdtrain", *sys.argv[1:]])


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    """The composed config of a command, for commands that do not run under Hydra."""
    _prepare_hydra()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        try:
            return compose(config_name=name, overrides=_choose_options(overrides))
        except (HydraException, OmegaConfBaseException):
            raise
        except ValueError as error:
            raise UserError(str(error)) from error


def _choose_options(overrides: list[str]) -> list[str]:
    """backend.machine=a100 -> backend/machine=a100, if that is a group of ours.

    As a value it would stand for the whole group, and none of its knobs could be overridden. Of an
    option that the group does not have, Hydra says so and lists those that it has.
    """
    return [
        f"{match['group'].replace('.', '/')}={match['option']}"
        if (match := NESTED_CHOICE.fullmatch(override))
        and (config_dir() / match["group"].replace(".", "/")).is_dir()
        else override
        for override in overrides
    ]


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
