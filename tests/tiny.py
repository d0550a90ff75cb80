"""The smallest training run of the command line, loaded as `tiny` through pytest's `pythonpath`."""

TINY = [
    "--set=network.channels=8",
    "--set=network.channel_mult=[1,1]",
    "--set=train.batch_size=4",
    "--set=train.log_every=1",
    "--device=cpu",
    "--steps=2",
]
