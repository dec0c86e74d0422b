"""The commands `backends` and `doctor`: what is installed here, what can run, what to mend."""

import argparse
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import fsspec
import platformdirs
import torch
from rich.console import Console
from rich.table import Table

from fsdtrain.backend import installed_backends
from fsdtrain.data.shard import find_shards, read_index
from fsdtrain.errors import UserError

PACKAGES = (
    "fsdtrain", "torch", "lightning", "hydra-core", "webdataset", "av", "fsspec", "msgspec",
    "numpy", "numba", "triton", "pillow", "rich", "tensorboard", "jinja2",
)  # fmt: skip
MIN_FREE_BYTES = 2 * 2**30  # the synthetic fleet, its temporary copy and a few runs


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's table; `remedy` is empty where all is well."""

    subject: str
    finding: str
    is_fine: bool
    remedy: str = ""


def main(name: str, arguments: list[str]) -> int:
    """`backends` lists; `doctor [STORE ...]` checks, and returns 1 if something needs mending."""
    parser = argparse.ArgumentParser(prog=f"fsdtrain {name}", description=_DESCRIPTION[name])
    if name == "doctor":
        parser.add_argument(
            "stores", nargs="*", help="shard folders or URLs that must be reachable from here"
        )
    given = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if name == "backends":
        console.print(backends_table())
        return 0
    checks = run_checks(given.stores)
    console.print(checks_table(checks))
    return 0 if all(check.is_fine for check in checks) else 1


_DESCRIPTION = {
    "backends": "List the installed backends: available, or why not and what to do.",
    "doctor": "Check versions, devices, disk and data stores; say what to fix.",
}


def backends_table() -> Table:
    """Name, distribution, availability and detail of every installed backend."""
    table = Table("backend", "from", "available", "detail", title="Backends")
    for backend in installed_backends().values():
        is_available = backend.availability.is_available
        table.add_row(
            backend.name,
            backend.distribution,
            "[green]yes[/]" if is_available else "[yellow]no[/]",
            backend.availability.detail,
        )
    return table


def run_checks(stores: list[str]) -> list[Check]:
    """Everything the doctor looks at."""
    return [
        Check(
            subject="python",
            finding=f"{platform.python_version()} on {platform.platform()}",
            is_fine=sys.version_info >= (3, 11),
            remedy="fsdtrain needs Python 3.11 or later",
        ),
        *(_check_package(name) for name in PACKAGES),
        _check_devices(),
        _check_cache(),
        *(_check_store(store) for store in stores),
    ]


def checks_table(checks: list[Check]) -> Table:
    """The checks, worst visible: what is not fine carries its remedy."""
    table = Table("", "checked", "found", "to do", title="Doctor")
    for check in checks:
        mark = "[green]ok[/]" if check.is_fine else "[red]!![/]"
        table.add_row(
            mark, check.subject, check.finding, "" if check.is_fine else f"[bold]{check.remedy}[/]"
        )
    return table


def _check_package(name: str) -> Check:
    try:
        return Check(subject=name, finding=version(name), is_fine=True)
    except PackageNotFoundError:
        needs_it = not (name == "triton" and sys.platform != "linux")
        return Check(
            subject=name,
            finding="not installed",
            is_fine=not needs_it,
            remedy=f"pip install {name}",
        )


def _check_devices() -> Check:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(names) or "no GPU"
    return Check(
        subject="devices",
        finding=f"{torch.get_num_threads()} CPU threads; {gpus}; torch built for {_torch_build()}",
        is_fine=True,
    )


def _torch_build() -> str:
    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}: AMD GPUs were not tried with fsdtrain"
    return "CPUs only" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"


def _check_cache() -> Check:
    folder = platformdirs.user_cache_path("fsdtrain")
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    return Check(
        subject="cache",
        finding=f"{folder}, {free / 2**30:.1f} GiB free",
        is_fine=free >= MIN_FREE_BYTES,
        remedy=f"free {MIN_FREE_BYTES >> 30} GiB there, or point XDG_CACHE_HOME to another disk",
    )


def _check_store(store: str) -> Check:
    try:
        shards = find_shards(store)
        num_clips = read_index(shards[0]).num_clips
    except (UserError, OSError) as error:
        protocols = ", ".join(sorted(fsspec.available_protocols())[:8])
        return Check(
            subject=store,
            finding=f"not reachable: {error}",
            is_fine=False,
            remedy=f"check the path, the network and your access; fsspec speaks {protocols}, ...",
        )
    return Check(
        subject=store,
        finding=f"{len(shards)} shards, the first has {num_clips} clips",
        is_fine=True,
    )
