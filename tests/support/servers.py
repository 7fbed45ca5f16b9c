"""Database servers of the tests' own, on loopback, from the system's packages."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import pytest

PASSWORD = "geheim"  # which no file and no message may hold
NUMBERS = itertools.count()


class Server(Protocol):
    """A server whose databases a test may make, and which it may stop, start again and hold still."""

    def create(self) -> str:
        """Make an empty database, and give its URL."""

    def stop(self) -> None:
        """End the server at once, as a crash does."""

    def resume(self) -> None:
        """Start the server on what it held before, and wait until it answers."""

    def freeze(self) -> None:
        """Hold the server still: connections stay open, and nothing is answered any more."""

    def thaw(self) -> None:
        """Let a server that is held still go on."""


@dataclass
class PostgreSQL:
    folder: Path
    port: int
    missing: ClassVar[str] = "PostgreSQL is not installed: apt-get install postgresql"

    @staticmethod
    def programs() -> Path | None:
        """The folder of the server's programs, the newest version's."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if found:
            return found[-1].parent
        initdb = shutil.which("initdb")
        return Path(initdb).resolve().parent if initdb else None

    @staticmethod
    def start(folder: Path) -> PostgreSQL:
        server = PostgreSQL(_folder(folder, "postgres"), _free_port())
        server._call("initdb", "-D", "data", "-U", "ranksearch", "-A", "trust", "-E", "UTF8", "--no-sync")
        server.resume()
        return server

    def create(self) -> str:
        database = f"test{next(NUMBERS)}"
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "ranksearch", database)
        return f"postgresql+psycopg://ranksearch:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def resume(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def freeze(self) -> None:
        for process in _family(self._process()):
            os.kill(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in _family(self._process()):
            os.kill(process, signal.SIGCONT)

    def _process(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().split("\n")[0])

    def _call(self, program: str, *arguments: str) -> None:
        found = self.programs()
        assert found is not None, self.missing
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
        _call(self.folder, *user, str(found / program), *arguments)


@dataclass
class MariaDB:
    folder: Path
    port: int
    user: list[str] = field(default_factory=lambda: ["--user=mysql"] if os.geteuid() == 0 else [])
    missing: ClassVar[str] = "MariaDB is not installed: apt-get install mariadb-server"

    @staticmethod
    def programs() -> Path | None:
        """The server's program."""
        found = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
        return Path(found) if found else None

    @staticmethod
    def start(folder: Path) -> MariaDB:
        server = MariaDB(_folder(folder, "mysql"), _free_port())
        data = f"--datadir={server.folder / 'data'}"
        _call(server.folder, "mariadb-install-db", "--no-defaults", *server.user, data, "--skip-test-db")
        user = "ranksearch@127.0.0.1"
        first = (f"CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{PASSWORD}';", f"GRANT ALL ON *.* TO {user};")
        (server.folder / "first.sql").write_text("\n".join(first))
        server.resume()
        return server

    def create(self) -> str:
        database = f"test{next(NUMBERS)}"
        self._client("mariadb", "-e", f"CREATE DATABASE {database} CHARACTER SET utf8mb4")
        return f"mysql+pymysql://ranksearch:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def resume(self) -> None:
        places = {
            "datadir": "data",
            "socket": "socket",
            "pid-file": "pid",
            "log-error": "log",
            "init-file": "first.sql",
        }
        options = [f"--{name}={self.folder / place}" for name, place in places.items()]
        loopback = [f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        _call(self.folder, "setsid", "--fork", str(self.programs()), "--no-defaults", *self.user, *options, *loopback)
        self._client("mariadb-admin", "--wait=60", "ping")

    def stop(self) -> None:
        process = self._process()
        os.kill(process, signal.SIGKILL)
        stat = Path(f"/proc/{process}/stat")
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)

    def freeze(self) -> None:
        os.kill(self._process(), signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process(), signal.SIGCONT)

    def _process(self) -> int:
        return int((self.folder / "pid").read_text())

    def _client(self, program: str, *arguments: str) -> None:
        where = ("--host=127.0.0.1", f"--port={self.port}", "--user=ranksearch", f"--password={PASSWORD}")
        _call(self.folder, program, "--no-defaults", *where, *arguments)


# What MariaDB does otherwise than PostgreSQL shows in the tests that stop a server and hold it still.
STORAGES = ["sqlite", "journal", "postgresql", pytest.param("mysql", marks=pytest.mark.slow)]
SERVERS: dict[str, type[PostgreSQL] | type[MariaDB]] = {"postgresql": PostgreSQL, "mysql": MariaDB}


def _folder(folder: Path, user: str) -> Path:
    """Make the folder of a server, its own user's when the tests run as root."""
    folder.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(folder, user, user)
    return folder


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _call(folder: Path, *command: str) -> None:
    with (folder.parent / "calls.log").open("a") as log:  # not a pipe, which the server would hold open
        subprocess.run(command, cwd=folder, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def _family(process: int) -> Iterator[int]:
    """A process, then its children."""
    yield process
    for task in Path(f"/proc/{process}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())
