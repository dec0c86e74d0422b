"""The command `report`: `serve` follows a run that is going on, `build` writes a folder's pages.

Argument parsing and printing only; the work is done in `fsdtrain.report`.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from fsdtrain.errors import UserError
from fsdtrain.report.live_page import LiveRun
from fsdtrain.report.live_server import LOOPBACK, LiveServer
from fsdtrain.report.pages import write_pages

DEFAULT_PORT = 8642


def main(name: str, arguments: list[str]) -> int:
    """Parse `arguments` and run one subcommand."""
    given = _parser(name).parse_args(arguments)
    # Addresses and paths stay whole: they are copied.
    console = Console(soft_wrap=True, highlight=False, markup=False, width=None)
    if given.command == "build":
        for path in write_pages(given.folder):
            console.print(f"{path}")
        return 0
    return serve(given.folder, host=given.host, port=given.port, console=console)


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"fsdtrain {name}", description="Follow a run in a browser, or write pages again."
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    follow = commands.add_parser("serve", help="a live page for a running fit; Ctrl-C ends it")
    follow.add_argument("folder", type=Path, help="the run's folder; it may not be there yet")
    follow.add_argument(
        "--host", default=LOOPBACK,
        help="address to listen on (default: this machine alone); any other one asks for a token, "
        "but what is sent is not encrypted: prefer an SSH tunnel",
    )  # fmt: skip
    follow.add_argument(
        "--port", type=_port, default=DEFAULT_PORT,
        help=f"port to listen on (default: {DEFAULT_PORT}; 0: any free one)",
    )  # fmt: skip
    build = commands.add_parser("build", help="write the pages of a finished folder again")
    build.add_argument("folder", type=Path, help="of a fit, profile, compare or plan")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 0 to 65535")
    return int(text)


def serve(folder: Path, *, host: str, port: int, console: Console) -> int:
    """Serve the live page until Ctrl-C.

    Raises:
        UserError: `folder` is a file or no run's folder, or the port cannot be had.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the folder that fit writes to")
    for record in ("compare.json", "plan.json"):
        if (folder / record).exists():
            raise UserError(
                f"{folder} holds {record}, no run: `fsdtrain report build {folder}` writes its page"
            )
    with LiveServer(LiveRun(folder).routes(), host=host, port=port) as server:
        if not (folder / "manifest.json").exists():
            console.print(f"waiting for a run in {folder}")
        console.print(f"live page of {folder}: {server.url}")
        if server.token is not None:
            console.print("whoever has this address can read the page; it is not encrypted")
        console.print("Ctrl-C ends it")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("\nended")
    return 0
