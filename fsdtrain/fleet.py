"""`fsdtrain data make|convert|inspect|verify`: shards in, out and under the lens.

Argument parsing and printing only; the work is done in `fsdtrain.data` and `fsdtrain.report`.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from fsdtrain.build import make_data
from fsdtrain.data.convert.ddad import convert_ddad
from fsdtrain.data.convert.kitti_odometry import convert_kitti_odometry
from fsdtrain.data.convert.video import convert_video
from fsdtrain.data.shard import find_shards, read_clip, read_index
from fsdtrain.data.verify import verify_shards
from fsdtrain.hydra_app import compose_config
from fsdtrain.report.contact_sheet import contact_sheet, summary
from fsdtrain.settings import read_settings


def main(name: str, arguments: list[str]) -> int:
    """Parse `arguments` and run one subcommand; 1 means that `verify` found faults."""
    given = _parser(name).parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    exit_code: int = given.run(given, console)
    return exit_code


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"fsdtrain {name}", description="Make, convert, inspect and verify fleetclip shards."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    make = commands.add_parser("make", help="render a synthetic fleet with exact labels")
    make.add_argument("--out", type=Path, help="folder to write (default: the user's cache)")
    make.add_argument(
        "overrides", nargs="*", help="Hydra overrides, e.g. data.fleet.num_train_scenes=1000"
    )
    make.set_defaults(run=_make)

    convert = commands.add_parser("convert", help="turn other data into fleetclip shards")
    sources = convert.add_subparsers(required=True, metavar="source")
    ddad = sources.add_parser("ddad", help="DDAD / DGP scenes, with 3D boxes")
    _add_conversion_arguments(ddad)
    ddad.add_argument("--scene", action="append", help="only this scene (repeatable)")
    ddad.add_argument(
        "--split", default="train", choices=("train", "val", "test"), help="DGP's split to read"
    )
    ddad.add_argument("--clip-frames", type=int, help="samples of a clip (default: the scene)")
    ddad.set_defaults(run=_convert_ddad)
    video = sources.add_parser("video", help="any video file, one camera, no labels")
    _add_conversion_arguments(video)
    video.add_argument("--clip-seconds", type=float, default=2.0, help="length of a clip")
    video.add_argument("--rate-hz", type=float, default=10.0, help="frames a second to keep")
    video.add_argument(
        "--fov-deg", type=float, default=60.0, help="horizontal field of view assumed"
    )
    video.set_defaults(run=_convert_video)
    kitti = sources.add_parser("kitti-odometry", help="a KITTI odometry sequence, with ego motion")
    _add_conversion_arguments(kitti)
    kitti.add_argument("--clip-frames", type=int, default=10, help="length of a clip")
    kitti.set_defaults(run=_convert_kitti_odometry)

    inspect = commands.add_parser("inspect", help="summarise a shard and draw its clips")
    inspect.add_argument("shard", help="a shard, folder or pattern")
    inspect.add_argument("--out", type=Path, default=Path(), help="folder for the PNG pictures")
    inspect.add_argument("--max-clips", type=int, default=8, help="clips to draw")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="check every byte, schema and frame")
    verify.add_argument("shards", help="a shard, folder or pattern")
    verify.set_defaults(run=_verify)
    return parser


def _add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--src", type=Path, required=True, help="what to convert")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--max-width", type=int, default=960, help="scale wider images down to this many columns"
    )
    parser.add_argument("--clips-per-shard", type=int, default=64)


def _make(given: argparse.Namespace, console: Console) -> int:
    settings = read_settings(compose_config("fit", ["run_dir=.", *given.overrides]))
    paths = make_data(settings.data, given.out)
    console.print(f"train: {paths.train}\nval:   {paths.val}")
    return 0


def _convert_ddad(given: argparse.Namespace, console: Console) -> int:
    shards = convert_ddad(
        given.src,
        given.out,
        split=given.split,
        scenes=given.scene,
        clip_frames=given.clip_frames,
        max_width=given.max_width,
        clips_per_shard=given.clips_per_shard,
    )
    return _print_written(shards, console)


def _convert_video(given: argparse.Namespace, console: Console) -> int:
    shards = convert_video(
        given.src,
        given.out,
        clip_seconds=given.clip_seconds,
        frame_rate_hz=given.rate_hz,
        fov_deg=given.fov_deg,
        max_width=given.max_width,
        clips_per_shard=given.clips_per_shard,
    )
    return _print_written(shards, console)


def _convert_kitti_odometry(given: argparse.Namespace, console: Console) -> int:
    shards = convert_kitti_odometry(
        given.src,
        given.out,
        clip_frames=given.clip_frames,
        max_width=given.max_width,
        clips_per_shard=given.clips_per_shard,
    )
    return _print_written(shards, console)


def _print_written(shards: list[Path], console: Console) -> int:
    for shard in shards:
        index = read_index(str(shard))
        console.print(f"{shard}: {index.num_clips} clips, {index.num_frames} images")
    return 0


def _inspect(given: argparse.Namespace, console: Console) -> int:
    num_drawn = 0
    for shard in find_shards(given.shard):
        console.print(summary(shard))
        for entry in read_index(shard).clips:
            if num_drawn >= given.max_clips:
                break
            given.out.mkdir(parents=True, exist_ok=True)
            picture = given.out / f"{entry.clip_id}.png"
            contact_sheet(read_clip(shard, entry)).save(picture)
            console.print(f"drew {picture}")
            num_drawn += 1
    return 0


def _verify(given: argparse.Namespace, console: Console) -> int:
    report = verify_shards(given.shards)
    for fault in report.faults:
        console.print(f"[red]fault[/] {fault}", highlight=False)
    console.print(
        f"{report.num_shards} shards, {report.num_clips} clips, {report.num_frames} images: "
        + (f"{len(report.faults)} faults" if report.faults else "every byte and schema is right")
    )
    return 1 if report.faults else 0
