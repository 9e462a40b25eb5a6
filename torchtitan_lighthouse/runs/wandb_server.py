"""The wandb server that the environment names, and whether there is a key and a way to it."""

import netrc
import os
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from torchtitan_lighthouse.refusal import RefusalError


def wandb_server() -> str:
    """Return the server's address: ``WANDB_BASE_URL``, or wandb's own.

    Raises:
        RefusalError: that is no address.
    """
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        parts = urlsplit(server)
        # The port is looked at only when it is asked for.
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or any(map(str.isspace, server)):
        raise RefusalError(
            f"WANDB_BASE_URL = {server!r} is no address of a server: use one such as "
            "https://wandb.example.org"
        )
    return server


def wandb_has_key() -> bool:
    """Whether wandb finds a key of the server's in the environment, in ~/.netrc, or where $NETRC
    says."""
    if "WANDB_API_KEY" in os.environ:
        return True
    file = os.environ.get("NETRC")
    try:
        entries = netrc.netrc(file and os.path.expanduser(file))
    except (OSError, netrc.NetrcParseError):
        return False
    return entries.authenticators(urlsplit(wandb_server()).hostname or "") is not None


def wandb_answers() -> bool:
    """Whether the server can be reached from here."""
    try:
        urlopen(wandb_server(), timeout=5).close()
    except HTTPError:  # the server's own answer
        return True
    except OSError:
        return False
    return True
