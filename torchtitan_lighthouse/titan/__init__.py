"""The torchtitan plugin: importing it registers the train spec ``llama3_lighthouse``.

A stock launch, ``-m torchtitan.train``, needs these two lines of TOML and trains one stage::

    job.custom_config_module = "torchtitan_lighthouse.titan.config"
    experimental.custom_import = "torchtitan_lighthouse.titan"
"""

from torchtitan.protocols.train_spec import register_train_spec

from torchtitan_lighthouse.titan.cpu.device import install_cpu_platform
from torchtitan_lighthouse.titan.models.flavors import MODEL_NAME
from torchtitan_lighthouse.titan.spec import get_train_spec

install_cpu_platform()
register_train_spec(MODEL_NAME, get_train_spec())
