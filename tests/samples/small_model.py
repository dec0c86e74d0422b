"""Overrides for tests of whole commands: a model of milliseconds a step on a fleet of six clips."""

SMALL = (
    "experiment=smoke",
    "data.fleet.num_cameras=2",
    "model.image_size=[16,32]",
    "model.grid.cell_m=4.8",
    "model.network.stage_channels=[4,4,8]",
    "model.network.lift_channels=4",
    "model.network.encoder_channels=[4,8]",
    "model.heads.path.channels=4",
    "model.heads.path.hidden=8",
)
