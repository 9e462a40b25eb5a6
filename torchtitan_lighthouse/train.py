"""Two-stage training: ``torchrun --nproc-per-node N -m torchtitan_lighthouse.train
--job.config_file X.toml``; every field of the TOML file is also an option of the command line."""

from unittest import mock

import torchtitan.train

from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.trainer import LighthouseTrainer


def main() -> None:
    """Parse the command line and train."""
    # torchtitan 0.2.2's main takes the trainer's class but not the config's; this can go when it
    # takes both.
    with mock.patch.object(torchtitan.train, "ConfigManager", LighthouseConfigManager):
        torchtitan.train.main(LighthouseTrainer)


if __name__ == "__main__":
    main()
