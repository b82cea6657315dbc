"""The server's life: an address, uvicorn on it, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Collection, Iterator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from mmcli.errors import UserError
from mmcli.serve.models import ServedModel

DRAIN_SECONDS = 3.0  # that replies under way have to finish once a signal came
CLOSE_SECONDS = 2  # after that, for what was written to reach the clients
HEAD_SECONDS = 30.0  # for a client to send the first line and the headers of a request
KEEP_ALIVE_SECONDS = 75  # above nginx's 60, so that it is never the server that closes first


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 takes a free one.

    Raises:
        UserError: there is no such address, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror or error}", "give an address of this machine") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        what = f"cannot listen on {host}, port {port}: {error.strerror or error}"
        raise UserError(what, "give another --port (0 takes a free one), or another --host") from None
    bound.setblocking(False)
    return bound


class Connection(H11Protocol):
    """An HTTP/1.1 connection that is closed if the head of a request does not come in time, or is none.

    uvicorn itself bounds only the pause between two requests; what says nothing, or no more, would stay for ever. And
    it fails where bytes that are no HTTP come after the head of a request.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """A head may have begun, or come to its end; a byte now and then does not put the end off."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel_deadline()
        elif self._deadline is None:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """The end of a connection whose bytes are no HTTP; what is answering it learns that nobody listens."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer has begun, or is one to HEAD, which has no body
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._cancel_deadline()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """uvicorn, which on SIGINT or SIGTERM lets replies finish, ends what goes on, and raises the signal again."""

    def __init__(self, app: ASGIApp, models: Collection[ServedModel]) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what clients do wrong is told to them
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        super().__init__(config)
        self._models = models

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, SIGHUP too; but a signal that is ignored (`nohup`) stays ignored.

        What a handler raises inside of the event loop is lost, so none but uvicorn's may be there while it runs.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        number = getattr(signal, "SIGHUP", None)
        handled = HANDLED_SIGNALS if number is None else (*HANDLED_SIGNALS, number)
        before = {each: signal.getsignal(each) for each in handled}
        with super().capture_signals():
            for each, handler in before.items():
                signal.signal(each, signal.SIG_IGN if handler is signal.SIG_IGN else self.handle_exit)
            try:
                yield
            finally:
                if number is not None:
                    signal.signal(number, before[number])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connections; replies under way finish or are ended."""
        for server in self.servers:
            server.close()
        await drain(self._models)
        await super().shutdown(sockets)


async def drain(models: Collection[ServedModel]) -> None:
    """Stop every scheduler (see `Scheduler.drain`)."""
    await asyncio.gather(*(asyncio.to_thread(each.scheduler.drain, DRAIN_SECONDS) for each in models))
