"""Where the configs are: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent


def config_dir() -> Path:
    """The absolute folder of the Hydra configs."""
    inside = PACKAGE_DIR / "configs"
    return inside if inside.is_dir() else PACKAGE_DIR.parent / "configs"
