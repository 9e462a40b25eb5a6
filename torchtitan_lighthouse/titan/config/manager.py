"""The command line of a job, and the job of a run that was."""

import functools
import sys
from pathlib import Path
from typing import Any

import tyro
from torchtitan.config import ConfigManager
from torchtitan.config import JobConfig as TitanJobConfig

from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config.command_line import (
    refuse_a_second_file,
    refuse_unknown_fields,
    refusing_unreadable_jobs,
)
from torchtitan_lighthouse.titan.config.field_types import refuse_wrong_types
from torchtitan_lighthouse.titan.config.job_config import HF_FLAVOR, JobConfig

JOB_FILE = "job.json"
"""What the trainer saves the whole config of a run as, in its dump folder."""


class LighthouseConfigManager(ConfigManager):
    """torchtitan's ConfigManager with this package's sections already merged in."""

    def __init__(self) -> None:
        super().__init__(self._merge_configs(TitanJobConfig, JobConfig))

    @staticmethod
    @functools.cache
    def register_tyro_rules(registry: tyro.constructors.ConstructorRegistry) -> None:
        """Once: torchtitan 0.2.2 adds its rule for each manager again, and parsing slows down."""
        ConfigManager.register_tyro_rules(registry)

    def parse_args(self, args: list[str] | None = None) -> TitanJobConfig:
        """Read the TOML file and the command line.

        Args:
            args: by default the process's own. (torchtitan 0.2.2's default is bound at import.)

        Raises:
            RefusalError: a file that cannot be read, or a second one, an unknown section, field or
                option, or a wrong value.
        """
        args = sys.argv[1:] if args is None else args
        refuse_a_second_file(args)
        # The words of the help stand in the sections' sources; reading those is most of the time.
        helps = not {"-h", "--help"}.isdisjoint(args)
        markers = [] if helps else [tyro.conf.HelptextFromCommentsOff]
        tyro.conf.configure(*markers)(self.config_cls)
        with refusing_unreadable_jobs(helps=helps):
            return super().parse_args(args)

    def _dict_to_dataclass(self, cls: Any, data: dict[str, Any]) -> Any:
        if cls is not None and issubclass(cls, TitanJobConfig):
            refuse_unknown_fields(cls, data)
            refuse_wrong_types(cls, data)
        try:
            return super()._dict_to_dataclass(cls, data)
        except AssertionError as error:  # torchtitan's of a section
            raise RefusalError(f"{cls.__name__}: {error}") from None
        except RefusalError:
            raise
        except ValueError as error:
            raise RefusalError(str(error)) from None

    def _validate_config(self) -> None:
        # torchtitan 0.2.2 warns of a folder that is not there, whether or not anything reads it.
        model, in_hf = self.config.model, self.config.checkpoint.initial_load_in_hf
        is_read = self.config.tokenizer.name != "byte" or in_hf or model.flavor == HF_FLAVOR
        unread = not is_read and not Path(model.hf_assets_path).exists()
        if unread:
            model.hf_assets_path = "."
        super()._validate_config()
        if unread:
            model.hf_assets_path = ""


def read_job(file: Path) -> TitanJobConfig:
    """Read a job from the JSON that torchtitan's ``job.save_config_file`` has written.

    Raises:
        RefusalError: no such file, no JSON in it, or a key that this version does not know.
    """
    manager = LighthouseConfigManager()
    return manager._dict_to_dataclass(manager.config_cls, read_object(file))
