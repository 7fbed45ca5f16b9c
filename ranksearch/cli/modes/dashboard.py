"""``mode=dashboard``: Optuna's dashboard on this machine."""

import logging
from pathlib import Path

from ranksearch.cli.config import RunConfig
from ranksearch.cli.instantiate import open_existing_storage
from ranksearch.cli.run_context import Launch, Work
from ranksearch.report.dashboard_server import dashboard
from ranksearch.storage.factory import storage_errors

log = logging.getLogger(__name__)


def prepare(config: RunConfig, launch: Launch) -> Work:
    """Bind the port of the dashboard; the work serves it until it is interrupted."""
    with storage_errors():
        storage = open_existing_storage(config, "look at")
        address, running = launch.stack.enter_context(dashboard(storage, Path(config.outputs), config.dashboard))

    def work() -> None:
        log.info("the dashboard is at %s (Ctrl-C ends it)", address)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            log.info("the dashboard is closed")

    return work
