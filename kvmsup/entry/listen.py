# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup-listen.service: hears what guests say of themselves over vsock, and keeps it in /run/kvmsup/ready.

systemd holds the listening socket, starts this for whoever connects, and starts it again after its end: it ends when
nobody has said anything for a while. A guest's PID 1 waits until each of its messages has been read and the connection
closed (sd_notify(3), since systemd 256), so nothing here waits for anything else on the host. Guests are hostile: what
one of them may have open, and how fast it is heard, is bounded, and costs nobody but itself.
"""

from __future__ import annotations

import os
import selectors
import socket
import time

from kvmsup.effects import claims, journal, ready
from kvmsup.errors import KvmsupError
from kvmsup.model import vsock
from kvmsup.model.ready import Said, hear
from kvmsup.records import NamedTuple

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_IDLE_SECONDS = 30.0
_LONGEST_MESSAGE = 4096
# PID 1 has one connection at a time. Ports below 1024 are for those who are root in the guest.
_MOST_OPEN = 8
_PRIVILEGED = 1024
# From connecting to the end of the message: a guest that is starved of CPU takes its time.
_MESSAGE_SECONDS = 30.0
# Taken from the queue before anybody is read; the queue is longer (units/kvmsup-listen.socket).
_AT_ONCE = 256
# What is heard of one guest at once, and each second after that; systemd sends STATUS= three times a second.
_BURST = 50
_A_SECOND = 20


def main(root: str = "") -> int:
    """Hear guests until they are silent; 0, or 1 with the reason on standard error."""
    if os.environ.get("LISTEN_FDS") != "1" or os.environ.get("LISTEN_PID") != str(os.getpid()):
        journal.say(journal.ERROR, "listen is run by kvmsup-listen.service, with the socket of kvmsup-listen.socket")
        return 1
    with socket.socket(fileno=_FIRST_DESCRIPTOR) as listening:
        Listener(root, listening).run(_IDLE_SECONDS)
    return 0


class Talk(NamedTuple):
    """One connection of the guest with the vsock address `cid`, and what came over it so far."""

    cid: int
    message: bytearray
    until: float


class Listener:
    """Accepts, reads and closes, in one loop that never blocks but for somebody to say something."""

    def __init__(self, root: str, listening: socket.socket) -> None:
        """Hear who connects to `listening`, a stream socket."""
        self.root = root
        self.listening = listening
        self.listening.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(listening, selectors.EVENT_READ)
        self.talks: dict[socket.socket, Talk] = {}
        self.held: dict[socket.socket, Talk] = {}  # complete, and to be heard when it is that guest's turn
        self.paid_until: dict[int, float] = {}  # by the guest's address; more than now while it says too much

    def run(self, idle: float) -> None:
        """Listen until nobody has been connected for `idle` seconds."""
        last = time.monotonic()
        with self.selector:
            while time.monotonic() < last + idle:
                ready_now = self.selector.select(self._pause(last + idle))
                for key, _ in ready_now:
                    self._attend(key.fileobj)
                self._take_turns()
                if ready_now or self.talks or self.held:
                    last = time.monotonic()

    def _attend(self, connection: object) -> None:
        if connection is self.listening:
            self._accept()
        elif isinstance(connection, socket.socket) and connection in self.talks:
            self._read(connection)

    def _pause(self, end: float) -> float:
        due = [talk.until for talk in self.talks.values()]
        due += [self._turn(talk.cid) for talk in self.held.values()]
        return max(0.0, min([end, *due]) - time.monotonic())

    def _accept(self) -> None:
        """Take everybody who is waiting: one who floods must not keep others out of the queue."""
        for _ in range(_AT_ONCE):
            try:
                connection, address = self.listening.accept()
            except OSError:  # nobody is left, or one has gone again
                return
            cid, port = self._peer(address)
            of_it = sum(talk.cid == cid for talk in (*self.talks.values(), *self.held.values()))
            if port >= _PRIVILEGED or of_it >= _MOST_OPEN:
                connection.close()
                continue
            connection.setblocking(False)
            self.talks[connection] = Talk(cid, bytearray(), time.monotonic() + _MESSAGE_SECONDS)
            self.selector.register(connection, selectors.EVENT_READ)

    def _peer(self, address: tuple[int, int]) -> tuple[int, int]:
        """CID and port of the guest that has connected; the kernel says so, the guest cannot."""
        return address

    def _read(self, connection: socket.socket) -> None:
        talk = self.talks[connection]
        try:
            data = connection.recv(_LONGEST_MESSAGE + 1)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        talk.message.extend(data)
        if len(talk.message) > _LONGEST_MESSAGE:
            self._drop(connection)
        elif not data:
            self.selector.unregister(connection)
            self.held[connection] = self.talks.pop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        del self.talks[connection]
        connection.close()

    def _take_turns(self) -> None:
        """Hear every message whose guest has not said too much lately, and end connections that take too long."""
        now = time.monotonic()
        for connection in [found for found, talk in self.talks.items() if talk.until <= now]:
            self._drop(connection)
        for connection, talk in list(self.held.items()):
            if self._turn(talk.cid) <= now:
                self.paid_until[talk.cid] = max(self.paid_until.get(talk.cid, now), now) + 1 / _A_SECOND
                self._hear(talk)
                del self.held[connection]
                connection.close()
        self.paid_until = {cid: until for cid, until in self.paid_until.items() if until > now}

    def _turn(self, cid: int) -> float:
        """When the guest may be heard next, on time.monotonic()."""
        return self.paid_until.get(cid, 0.0) - _BURST / _A_SECOND

    def _hear(self, talk: Talk) -> None:
        """Keep what was said, if it was a guest that is to be heard."""
        guest = self._guest(talk.cid)
        if not guest:
            return
        try:
            before = ready.read(self.root, guest)
        except KvmsupError:  # somebody has been at the file
            before = Said()
        try:
            if (after := hear(before, bytes(talk.message))) != before:
                ready.write(self.root, guest, after)
        except KvmsupError as error:
            journal.say(journal.WARNING, str(error))

    def _guest(self, cid: int) -> str:
        """The guest that has claimed the address; "" where none has, or has no longer."""
        guest = next((name for name in claims.names(self.root) if vsock.cid(name) == cid), "")
        try:
            claim = claims.read(self.root, guest) if guest else None
        except KvmsupError:  # setup says what is wrong with it
            return ""
        return guest if claim and claim.ready else ""
