"""The help of ``--job``, for the tools that take a checkpoint."""

JOB_HELP = "its job.json [the one in the checkpoint, or else in its dump folder]"
