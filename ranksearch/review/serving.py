"""Optuna's dashboard on this machine, over a storage and the pictures of its trials."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage

from ranksearch.errors import SettingError
from ranksearch.review.dashboard import artifact_store

HOST = "127.0.0.1"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DashboardSettings:
    """How the dashboard is served.

    Attributes:
        port: on the loopback interface; 0 for any that is free.
    """

    port: int = 8080

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingError("port", self.port, "is out of range: use 0 to 65535")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *words: object) -> None:
        log.debug(format, *words)


@contextmanager
def dashboard(storage: BaseStorage, outputs: Path, settings: DashboardSettings) -> Iterator[tuple[str, WSGIServer]]:
    """Make the dashboard's server, which no other machine can reach.

    Args:
        storage: of the studies.
        outputs: folder that holds the pictures of their trials.
        settings: of the server.

    Yields:
        Its address, and the server, to be run.

    Raises:
        SettingError: the port is taken.
    """
    from optuna_dashboard import wsgi

    application = wsgi(storage, artifact_store=artifact_store(outputs))
    try:
        server = make_server(HOST, settings.port, application, server_class=_Server, handler_class=_Silent)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken" if error.errno == errno.EADDRINUSE else "is kept for the system"
        raise SettingError("dashboard.port", settings.port, f"{why}: choose another, or 0 for any") from None
    with server:
        yield f"http://{HOST}:{server.server_port}/", server
