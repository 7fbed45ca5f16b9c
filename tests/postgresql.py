"""A PostgreSQL server of the tests' own, on loopback, from the system's package."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

MISSING = "PostgreSQL is not installed: apt-get install postgresql"


def programs() -> Path | None:
    """The folder of the server's programs, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


@dataclass
class Server:
    folder: Path
    port: int

    @staticmethod
    def start(folder: Path) -> Server:
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            server = Server(folder, free.getsockname()[1])
        if os.geteuid() == 0:  # which it refuses to run as
            shutil.chown(folder, "postgres", "postgres")
        server._call("initdb", "-D", "data", "-U", "ranksearch", "-A", "trust", "-E", "UTF8", "--no-sync")
        server.resume()
        return server

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://ranksearch@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "ranksearch")
        self._call("createdb", *where, database)
        return self.url(database)

    def resume(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._call("pg_ctl", "-D", "data", "-w", "-m", mode, "stop")

    def _call(self, program: str, *arguments: str) -> None:
        found = programs()
        assert found is not None, MISSING
        command = [str(found / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        with (self.folder.parent / "postgresql.log").open("a") as log:  # not a pipe, which the server would hold open
            subprocess.run(command, cwd=self.folder, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
