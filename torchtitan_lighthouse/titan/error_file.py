"""What a rank tells torchrun of its end, for the summary that torchrun shows last."""

import json
import os
import time

from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

from torchtitan_lighthouse.refusal import RefusalError


class RefusalHandler(ErrorHandler):
    """torch's, which tells a refusal by its message alone: a traceback would hide it."""

    @property
    def torchrun_shows_it(self) -> bool:
        return self._get_error_file_path() is not None

    def record_exception(self, error: BaseException) -> None:
        if isinstance(error, RefusalError):
            record_message(str(error))
        else:
            super().record_exception(error)


def record_message(message: str) -> None:
    """Let torchrun show ``message`` for this rank."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with open(path, "w") as file:
            json.dump({"message": {"message": message, "extraInfo": extra}}, file)
