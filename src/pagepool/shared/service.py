# SPDX-License-Identifier: MIT
"""The thread that does for a shared pool what must not wait for its user: visitors, returns, deaths.

It is asleep unless one of its descriptors speaks. A consumer that gives pages back rings once; from then on the thread
looks every `TICK_S` until nothing comes any more, and only then asks to be rung again: under load it costs a wake-up
for each tick, not for each batch, and a hostile consumer cannot make it spin. A sender that reaps by itself leaves it
little. Invariant: whatever one connection does or raises, the others are served.
"""

from __future__ import annotations

import math
import os
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from pagepool.errors import PoolClosedError
from pagepool.shared.consumer import Consumer, ConsumerState
from pagepool.shared.reception import Visitor
from pagepool.shared.wire import HandshakeError

if TYPE_CHECKING:
    from pagepool.shared.shared_pool import SharedPool

__all__ = ["TICK_S", "Service"]

TICK_S: Final = 0.002
_MOST_VISITORS: Final = 64


class Service:
    """The thread of one `SharedPool`.

    Context: `start`, `stop`, `add_visitor` and `wake` by any thread; the rest is the thread's own.
    """

    def __init__(self, shared: SharedPool) -> None:
        self.shared = shared
        self.listener: socket.socket | None = None
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._lock = threading.Lock()
        self._ended = False
        self._visitors: dict[int, Visitor] = {}
        self._by_fd: dict[int, Consumer] = {}
        self._by_pidfd: dict[int, Consumer] = {}
        self._unarmed: set[Consumer] = set()
        self._thread = threading.Thread(target=self._run, name=f"pagepool-shared-{shared.pool.id}", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def wake(self) -> None:
        """Have it look round."""
        with self._lock:
            if self._wake_fd >= 0:
                try:
                    os.eventfd_write(self._wake_fd, 1)
                except BlockingIOError:
                    pass  # full of wake-ups already

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end; whether it has ended."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def listen(self, listener: socket.socket) -> None:
        """Take connections of a listening socket; owned from now on."""
        self.listener = listener
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def add_visitor(self, sock: socket.socket, *, invited: bool) -> None:
        """Begin a handshake; the socket is owned from now on.

        Raises
        ------
        PoolClosedError
            The thread has ended; the socket is still the caller's, as after any exception.
        """
        with self._lock:
            if self._ended:
                raise PoolClosedError(f"{self.shared!r} is closed")
            if not invited and len(self._visitors) >= _MOST_VISITORS:
                sock.close()
                return
            visitor = Visitor(self.shared, sock, invited=invited)
            self._epoll.register(visitor.fd, select.EPOLLIN)
            self._visitors[visitor.fd] = visitor
        self.wake()  # for its deadline

    def unwatch(self, fd: int) -> None:
        """Forget a connection that is about to be closed."""
        with self._lock:
            self._by_fd.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            pass

    @property
    def nr_visitors(self) -> int:
        """Connections whose handshake is not finished."""
        return len(self._visitors)

    def abandon(self) -> None:
        """Close every descriptor: in a forked child, where the thread is not, or if it never was started."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._ended = True
        self._epoll.close()
        wake_fd, self._wake_fd = self._wake_fd, -1
        if wake_fd >= 0:
            os.close(wake_fd)
        for visitor in self._visitors.values():
            visitor.sock.close()
            if visitor.peer is not None:
                visitor.peer.close()
        if self.listener is not None:
            self.listener.close()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not (self.shared.closing and not self._by_pidfd):
                self._turn()
        finally:
            self._end()

    def _turn(self) -> None:
        timeout = self._timeout()
        busy = False
        for fd, _ in self._epoll.poll(timeout):
            try:
                busy |= self._speak(fd)
            except Exception:
                _tell_the_user()
        self._look_for_returns()
        self._send_late_visitors_away()
        if busy:
            time.sleep(TICK_S)  # whoever rings without pause gets an answer now and then

    def _timeout(self) -> float:
        if self._unarmed:
            return TICK_S
        with self._lock:
            first = min((visitor.deadline for visitor in self._visitors.values()), default=math.inf)
        return -1 if first == math.inf else max(0.0, first - time.monotonic()) + 0.001

    def _speak(self, fd: int) -> bool:
        """Serve one descriptor; true if it was a bell."""
        if fd == self._wake_fd:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                pass
        elif self.listener is not None and fd == self.listener.fileno():
            self._open_door()
        elif fd in self._visitors:
            self._hear(self._visitors[fd])
        elif (consumer := self._by_fd.get(fd)) is not None:
            self._unarmed.add(consumer)
            if consumer.drain_bells():
                return True
            consumer.hung_up()
            if consumer.state is not ConsumerState.QUARANTINED:
                self._drop(consumer)
        elif (consumer := self._by_pidfd.get(fd)) is not None and consumer.has_ended():
            # Looked at anew: the number may be another's since the event.
            consumer.hung_up()
            self._drop(consumer)
        return False

    def _open_door(self) -> None:
        assert self.listener is not None
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        try:
            self.add_visitor(sock, invited=False)  # told "closed" in the same turn, if so it is
        except OSError:
            sock.close()

    def _hear(self, visitor: Visitor) -> None:
        try:
            consumer = visitor.listen_to()
        except BlockingIOError:
            return
        except (HandshakeError, ValueError, OSError) as error:
            self._send_away(visitor, str(error))
            return
        if consumer is None:
            return
        with self._lock:
            del self._visitors[visitor.fd]
            self._by_fd[consumer.fd] = consumer
        pidfd = consumer.peer.pidfd
        try:
            self._epoll.register(pidfd, select.EPOLLIN)
        except OSError:
            consumer.hung_up()  # its end would not be seen
            raise
        self._by_pidfd[pidfd] = consumer
        self.shared.welcome(consumer)

    def _send_away(self, visitor: Visitor, why: str) -> None:
        with self._lock:
            self._visitors.pop(visitor.fd, None)
        self.unwatch(visitor.fd)
        self.shared.note_refusal(why)
        visitor.dismiss(why)

    def _send_late_visitors_away(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [visitor for visitor in self._visitors.values() if visitor.deadline < now or self.shared.closing]
        for visitor in late:
            self._send_away(visitor, "closed" if self.shared.closing else "the handshake took too long")

    def _look_for_returns(self) -> None:
        for consumer in tuple(self._unarmed):
            try:
                if consumer.state is ConsumerState.GONE or (not consumer.link.reap() and consumer.link.arm()):
                    self._unarmed.discard(consumer)
            except Exception:
                _tell_the_user()
        for consumer in [one for one in self._by_pidfd.values() if one.state is ConsumerState.GONE]:
            self._drop(consumer)

    def _drop(self, consumer: Consumer) -> None:
        for fd in [fd for fd, known in self._by_pidfd.items() if known is consumer]:
            del self._by_pidfd[fd]
        with self._lock:
            fds = [fd for fd, known in self._by_fd.items() if known is consumer]
        for fd in fds:
            self.unwatch(fd)
        self._unarmed.discard(consumer)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
        self._send_late_visitors_away()
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.close()
        self._epoll.close()
        with self._lock:
            os.close(self._wake_fd)
            self._wake_fd = -1


def _tell_the_user() -> None:
    """Report an exception: a device refused a page, say. The pages have found their place, and the thread goes on."""
    try:
        sys.excepthook(*sys.exc_info())
    except Exception:  # the user's own hook
        pass
