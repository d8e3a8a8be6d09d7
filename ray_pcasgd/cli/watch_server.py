"""The server of the page about one run: on this machine alone, and for nobody but who has its address.

Any page of the web can make a browser call a server on loopback, and any user of the machine can call it. So all that
is of the run is given only to those who show the token, which stands in the address after ``#`` and so is sent to
nobody, and only under the server's own name (another site's name may lead here, too). Commands are taken only from the
page itself.
"""

import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import TYPE_CHECKING, Any

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.plain_json import dumps
from ray_pcasgd.base.text import one_line

if TYPE_CHECKING:
    from ray_pcasgd.engines.live.commands import Command

HOST = "127.0.0.1"
_LONGEST = 4096
"""Bytes of a command."""
_SLOWEST_SECONDS = 30.0
"""How long a request may take to come."""
_MOST_READ = 64 * 2**20
"""Bytes of a request that are read, though they are too many: who is still sending them would not read the answer."""
_REFUSED, _BAD, _ABSENT, _NO_LENGTH, _TOO_LONG = 403, 400, 404, 411, 413


class WatchServer(ThreadingHTTPServer):
    """Serves the page and what it shows; takes commands where ``send`` is given.

    Raises:
        SettingsError: the port cannot be listened on.

    """

    daemon_threads = True

    def __init__(
        self, port: int, page: Callable[[], Mapping[str, Any]], send: "Callable[[Command], str] | None"
    ) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError(
                f"--port {port}: cannot be listened on ({reason}); allowed are others, and none for a free one"
            ) from None
        self.page = page
        self.send = send
        self.token = secrets.token_urlsafe(24)
        self.nonce = secrets.token_urlsafe(16)
        text = resources.files("ray_pcasgd.report").joinpath("watch.html").read_text(encoding="utf-8")
        self.text = text.replace("$nonce", self.nonce).encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over browsers that are gone before they have their answer; say what else went wrong."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which the server may be called."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    @property
    def address(self) -> str:
        """The page's address, with the token."""
        return f"http://{self.names[0]}/#{self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    timeout = _SLOWEST_SECONDS

    def version_string(self) -> str:
        return "ray-pcasgd"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the terminal is the command's."""

    def do_GET(self) -> None:
        if not self._is_called_by_name():
            return
        if self.path == "/":
            self._answer(200, "text/html; charset=utf-8", self.server.text)
        elif self.path != "/state":
            self._say(_ABSENT, "there is no such page")
        elif self._shows_token():
            self._tell(200, {**self.server.page(), "control": self.server.send is not None})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,15}", length):
            self._say(_NO_LENGTH, "refused: a command says how many bytes it has")
            return
        content = self._read(int(length))
        if not (self._is_called_by_name() and self._is_own_page() and self._shows_token()):
            return
        if self.path != "/command":
            self._say(_ABSENT, "there is no such page")
        elif self.server.send is None:
            self._say(_REFUSED, "refused: this page only shows; ray-pcasgd watch --control takes commands")
        elif int(length) > _LONGEST:
            self._say(_TOO_LONG, f"refused: a command has up to {_LONGEST} bytes")
        elif (command := self._command(content)) is not None:
            self._say(200, self.server.send(command))

    def _read(self, length: int) -> bytes:
        """Take in what was sent, and return its beginning."""
        content, left = self.rfile.read(min(length, _LONGEST)), min(length, _MOST_READ) - _LONGEST
        while left > 0 and (passed := len(self.rfile.read(min(left, 2**16)))):
            left -= passed
        return content

    def _command(self, content: bytes) -> "Command | None":
        from ray_pcasgd.cli.control import page_command

        try:
            return page_command(json.loads(content))
        except SettingsError as error:
            self._say(_BAD, f"refused: {one_line(error)}")
        except (ValueError, RecursionError):
            self._say(_BAD, "refused: what was sent is no command")
        return None

    def _is_called_by_name(self) -> bool:
        return self._require(self.headers.get("Host") in self.server.names, "the server has another name")

    def _is_own_page(self) -> bool:
        own = [f"http://{name}" for name in self.server.names]
        return self._require(self.headers.get("Origin") in own, "another page has sent this")

    def _shows_token(self) -> bool:
        shown = self.headers.get("X-Token", "").encode(errors="replace")
        is_right = secrets.compare_digest(shown, self.server.token.encode())
        return self._require(is_right, "the token is another one: open the whole address that the command has printed")

    def _require(self, is_so: bool, otherwise: str) -> bool:
        if not is_so:
            self._say(_REFUSED, f"refused: {otherwise}")
        return is_so

    def _say(self, status: int, line: str) -> None:
        self._tell(status, {"said": line})

    def _tell(self, status: int, tree: Mapping[str, Any]) -> None:
        self._answer(status, "application/json", dumps(tree).encode())

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        nonce = f"'nonce-{self.server.nonce}'"
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src {nonce}; style-src {nonce}; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        self.end_headers()
        self.wfile.write(content)
