"""Write configs/backend/machine/<name>.yaml for every machine of the dojo backend.

    python tools/write_machine_configs.py

Run it after a constant of a preset was added, removed or changed.
"""

from fsdtrain_dojo.machine.catalog import PRESETS
from fsdtrain_dojo.machine.config_text import config_text

from fsdtrain.paths import config_dir


def main() -> None:
    """Write every file, and delete those of machines that are no more."""
    folder = config_dir() / "backend" / "machine"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.yaml"):
        if path.stem not in PRESETS:
            path.unlink()
    for name, preset in PRESETS.items():
        (folder / f"{name}.yaml").write_text(config_text(preset))
        print(folder / f"{name}.yaml")


if __name__ == "__main__":
    main()
