"""What a rank tells torchrun of its end, for the summary that torchrun shows last."""

import json
import os
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

from torchtitan_lighthouse.refusal import RefusalError

_PATIENCE_SECONDS = 5.0


class RefusalHandler(ErrorHandler):
    """torch's ErrorHandler, which records a refusal by its message, once for a host's ranks."""

    @property
    def torchrun_shows_it(self) -> bool:
        return self._get_error_file_path() is not None

    def record_exception(self, error: BaseException) -> None:
        if isinstance(error, RefusalError):
            if os.environ.get("LOCAL_RANK", "0") != "0":
                self._leave_it_to_the_first()
            record_message(str(error))
        else:
            super().record_exception(error)

    def _leave_it_to_the_first(self) -> None:
        """Wait to be ended by torchrun, which does that when the first rank has ended."""
        if path := self._get_error_file_path():
            # torchtitan's own handler has told it with a traceback.
            Path(path).unlink(missing_ok=True)
            time.sleep(_PATIENCE_SECONDS)


def record_message(message: str) -> None:
    """Let torchrun show ``message`` for this rank."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with open(path, "w") as file:
            json.dump({"message": {"message": message, "extraInfo": extra}}, file)
