"""What worker and reload processes import: the target again, in each of them.

The command leaves what it was given in the environment, which these processes inherit; uvicorn calls `load`
in each as its app factory.
"""

import os
import sys
from typing import Any

from agentrun_server.cli.target import TargetError, load_app, print_target_error
from agentrun_server.server.serve import calm_garbage_collector

__all__ = ["APP_DIR", "FACTORY", "IMPORT_STRING", "TARGET", "load"]

IMPORT_STRING = "agentrun_server.cli.worker:load"

TARGET = "AGENTRUN_TARGET"
APP_DIR = "AGENTRUN_APP_DIR"
FACTORY = "AGENTRUN_FACTORY"

# uvicorn's own code for "will fail the same way again": its supervisor then stops instead of starting
# another one.
_STARTUP_FAILURE = 3


def load() -> Any:
    """Return the ASGI app that the environment's TARGET leads to; exit when it leads to none."""
    calm_garbage_collector()
    try:
        return load_app(
            os.environ.get(TARGET) or None,
            app_dir=os.environ.get(APP_DIR, "."),
            factory=os.environ.get(FACTORY) == "true",
        )
    except TargetError as exc:
        print_target_error(exc)
        sys.exit(_STARTUP_FAILURE)
