"""What the tools that take a checkpoint say of its job."""

JOB_HELP = "its job.json [the one in the checkpoint, or else in its dump folder]"
