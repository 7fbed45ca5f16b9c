"""Local server of Optuna's dashboard, over a storage and the pictures of its trials."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage

from ranksearch.errors import SettingError
from ranksearch.report.dashboard import artifact_store

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
REFUSAL = b"This dashboard serves only its own address: start it with dashboard.hosts=[NAME:PORT] to allow more.\n"
log = logging.getLogger(__name__)


@dataclass
class DashboardSettings:
    """Settings of the dashboard's server.

    Attributes:
        port: port on the loopback interface; 0 for any free port.
        hosts: further names and ports by which browsers reach the server, such as ``localhost:9000`` for a tunnel.
    """

    port: int = 8080
    hosts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for host in self.hosts:
            if "/" in host or not host.strip():
                raise SettingError("hosts", host, "is not a host: give only names and ports, such as localhost:9000")
        if not 0 <= self.port <= 65535:
            raise SettingError("port", self.port, "is out of range: use 0 to 65535")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *words: object) -> None:
        log.debug(format, *words)


def guarded(application: WSGIApplication, hosts: Iterable[str]) -> WSGIApplication:
    """Wrap an application to reject requests whose ``Host`` or ``Origin`` is not one of the given hosts.

    Browsers send requests on behalf of any web page, whose owner can point a domain name at this machine (DNS
    rebinding), so that being able to reach the server does not imply permission to use it.

    Args:
        application: the application to protect.
        hosts: allowed names and ports, as browsers write them into ``Host``, which omits port 80.
    """
    allowed = {host.lower().removesuffix(":80") for host in hosts}
    origins = {f"{scheme}://{host}" for scheme in ("http", "https") for host in allowed}

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).lower().removesuffix(":80")
        origin = environ.get("HTTP_ORIGIN")
        if host in allowed and (origin is None or str(origin).lower() in origins):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [REFUSAL]

    return serve


@contextmanager
def dashboard(storage: BaseStorage, outputs: Path, settings: DashboardSettings) -> Iterator[tuple[str, WSGIServer]]:
    """Create the dashboard's server on the loopback interface, which no other machine can reach.

    Args:
        storage: storage of the studies.
        outputs: folder that holds the pictures of their trials.
        settings: settings of the server.

    Yields:
        The server's address, and the server, which is not yet running.

    Raises:
        SettingError: the port is taken or reserved.
    """
    from optuna_dashboard import wsgi

    application = wsgi(storage, artifact_store=artifact_store(outputs))
    try:
        server = make_server(HOST, settings.port, server_class=_Server, handler_class=_Silent, app=application)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "is reserved for the system"
        raise SettingError("dashboard.port", settings.port, f"{why}: choose another, or 0 for any") from None
    own = [f"{name}:{server.server_port}" for name in (HOST, "localhost")]
    server.set_app(guarded(application, [*own, *settings.hosts]))
    with server:
        yield f"http://{HOST}:{server.server_port}/", server
