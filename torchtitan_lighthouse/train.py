"""Two-stage training: ``torchrun --nproc-per-node N -m torchtitan_lighthouse.train
--job.config_file X.toml``; every field of the TOML file is also an option of the command line."""

import sys
from unittest import mock

import torchtitan.train
from torch.distributed.elastic.multiprocessing.errors import record

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.launch.error_file import RefusalHandler
from torchtitan_lighthouse.titan.launch.rank_log import init_rank_logger
from torchtitan_lighthouse.titan.trainer import LighthouseTrainer

REFUSED = 2
"""The exit status of a job that is refused, as it is of a wrong command line."""


def main() -> None:
    """Parse the command line and train.

    Raises:
        SystemExit: ``REFUSED``, the reason being the last thing on the screen; or what
            ``LighthouseTrainer`` says.
    """
    # The handler is found from the environment, which says whether torchrun shows the reason.
    handler = RefusalHandler()
    try:
        record(_train, handler)()
    except RefusalError as error:
        if not handler.torchrun_shows_it:
            print(f"torchtitan_lighthouse.train: {error}", file=sys.stderr)
        sys.exit(REFUSED)


def _train() -> None:
    # torchtitan 0.2.2's main takes the trainer's class, but neither the config's nor the logger.
    # This can go when it takes them.
    with (
        mock.patch.object(torchtitan.train, "ConfigManager", LighthouseConfigManager),
        mock.patch.object(torchtitan.train, "init_logger", init_rank_logger),
    ):
        torchtitan.train.main(LighthouseTrainer)


if __name__ == "__main__":
    main()
