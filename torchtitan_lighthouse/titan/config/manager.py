"""The command line of a job, and the job of a run that was."""

import json
import sys
from pathlib import Path

from torchtitan.config import ConfigManager
from torchtitan.config import JobConfig as TitanJobConfig

from torchtitan_lighthouse.titan.config.job_config import JobConfig

JOB_FILE = "job.json"
"""What the trainer saves the whole config of a run as, in its dump folder."""


class LighthouseConfigManager(ConfigManager):
    """torchtitan's ConfigManager with this package's sections already merged in."""

    def __init__(self) -> None:
        super().__init__(self._merge_configs(TitanJobConfig, JobConfig))

    def parse_args(self, args: list[str] | None = None) -> TitanJobConfig:
        """Read the TOML file and the command line.

        Args:
            args: by default the process's own. (torchtitan 0.2.2's default is bound at import.)

        Raises:
            ValueError: an unknown key, or a wrong type in ``[lighthouse]``.
        """
        return super().parse_args(sys.argv[1:] if args is None else args)


def read_job(file: Path) -> TitanJobConfig:
    """A job from the JSON that torchtitan's ``job.save_config_file`` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key that this version does not know.
    """
    manager = LighthouseConfigManager()
    return manager._dict_to_dataclass(manager.config_cls, json.loads(file.read_text()))
