"""Optuna's dashboard on this machine, over a storage and the pictures of its trials."""

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
from ranksearch.review.dashboard import artifact_store

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DashboardSettings:
    """How the dashboard is served.

    Attributes:
        port: on the loopback interface; 0 for any that is free.
        hosts: further names, with their ports, under which a browser reaches it, as through a tunnel or a proxy:
            ``localhost:9000``.
    """

    port: int = 8080
    hosts: list[str] = field(default_factory=list, hash=False)

    def __post_init__(self) -> None:
        for host in self.hosts:
            if "/" in host or not host.strip():
                raise SettingError("hosts", host, "is no host: give names and ports alone, such as localhost:9000")
        if not 0 <= self.port <= 65535:
            raise SettingError("port", self.port, "is out of range: use 0 to 65535")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *words: object) -> None:
        log.debug(format, *words)


def guarded(application: WSGIApplication, hosts: Iterable[str]) -> WSGIApplication:
    """Answer requests for some hosts alone, from pages of these alone.

    A browser sends what any web page asks it to, and that page's owner can point a name of their own at this machine
    (DNS rebinding): who can reach a server is not yet allowed to use it.

    Args:
        application: what is served.
        hosts: names and ports, as a browser writes them into ``Host``; at port 80 it leaves that out.
    """
    known = {host.lower().removesuffix(":80") for host in hosts}
    origins = {f"{scheme}://{host}" for scheme in ("http", "https") for host in known}

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).lower().removesuffix(":80")
        origin = environ.get("HTTP_ORIGIN")
        if host in known and (origin is None or str(origin).lower() in origins):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [
            b"This dashboard answers for its own address alone: start it with dashboard.hosts=[NAME:PORT] for more.\n"
        ]

    return serve


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
        server = make_server(HOST, settings.port, server_class=_Server, handler_class=_Silent, app=application)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken" if error.errno == errno.EADDRINUSE else "is kept for the system"
        raise SettingError("dashboard.port", settings.port, f"{why}: choose another, or 0 for any") from None
    own = [f"{name}:{server.server_port}" for name in (HOST, "localhost")]
    server.set_app(guarded(application, [*own, *settings.hosts]))
    with server:
        yield f"http://{HOST}:{server.server_port}/", server
