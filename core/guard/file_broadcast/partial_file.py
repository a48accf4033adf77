"""The file of a broadcast on one node: on control the user's own, on the others a part that grows to the whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections import deque

from ..channel.connection import sentence
from ..tls.link import CHUNK, BulkError

_RECENT = 16  # frames that need not be read again to be passed on

SMALL_BYTES = _RECENT * (CHUNK - 4)
"""Up to this size several may read a file at once: all of its frames stay in memory."""

_WHY = 300  # characters, each up to twelve bytes of a header


class Lost(Exception):
    """Nothing more of the file will come from this node; ``everywhere`` where that holds for all nodes."""

    def __init__(self, why: str, everywhere: bool) -> None:
        super().__init__(sentence(why)[:_WHY])
        self.everywhere = everywhere


class Original:
    """The file ``path`` on the node where it comes from. Its bytes are hashed as they are read for the first time.

    Raises
    ------
    BulkError
        When it is not a file.
    OSError
        When it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # Not waiting for the writer of a pipe.
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._status = os.fstat(self._fd)
        if not stat.S_ISREG(self._status.st_mode):
            os.close(self._fd)
            raise BulkError(f"{path} is not a file.")
        self.size = self._status.st_size
        self.mode = self._status.st_mode & 0o777
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._hashing = threading.Lock()

    def close(self) -> None:
        os.close(self._fd)

    def supplied(self) -> bool:
        """Whether this node can count on getting what it does not have yet."""
        return True

    def available(self, offset: int) -> int:
        """How many bytes are there from the file's start on, once there are more than ``offset``."""
        return self.size

    def frame(self, offset: int, have: int, room: memoryview) -> memoryview:
        """The next frame to send: four bytes of length, and data from ``offset`` to at most ``have``.

        ``room`` may be used for it. :class:`Lost` where the data cannot be had.
        """
        data = room[4 : 4 + have - offset]
        count = self._read(offset, data)
        with self._hashing:
            if offset <= self._hashed < offset + count:
                self._hash.update(data[self._hashed - offset : count])
                self._hashed = offset + count
        room[:4] = count.to_bytes(4, "big")
        return room[: 4 + count]

    def digest(self) -> str:
        """The SHA-256 of the whole; :class:`Lost` when somebody wrote to it meanwhile."""
        room = memoryview(bytearray(CHUNK))
        while self._hashed < self.size:
            self.frame(self._hashed, self.size, room)
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self.size, self._status.st_mtime_ns):
            raise Lost(f"{self._path} was changed while it was sent. Nothing may write to it meanwhile.", True)
        return self._hash.hexdigest()

    def _read(self, offset: int, data: memoryview) -> int:
        try:
            count = os.preadv(self._fd, [data], offset)
        except OSError as error:
            raise Lost(f"{self._path}: {error.strerror or error}.", everywhere=True) from None
        if not count:
            raise Lost(f"{self._path} became shorter while it was sent.", everywhere=True)
        return count


class Part:
    """A file that is on its way to ``target`` on this node, where it appears when all of it is there and verified.

    One thread appends while another reads what is there already. The file it is in until then is private, lies in the
    target's folder, and is removed by :meth:`fail`.

    Raises
    ------
    Lost
        When it cannot become the target, or the disk has no room for it.
    """

    def __init__(self, target: str, size: int, mode: int) -> None:
        if os.path.isdir(target) or not os.path.basename(target):
            raise Lost(f"{target} is a folder. Name the file itself.", everywhere=False)
        folder = os.path.dirname(target)
        self._path = os.path.join(folder, f".{os.urandom(8).hex()}.part")
        try:
            os.makedirs(folder, exist_ok=True)
            room = os.statvfs(folder)
            if size > room.f_bavail * room.f_frsize:
                raise Lost(f"There is no room for {size} bytes in {folder}.", everywhere=False)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Lost(f"{error.filename or folder}: {error.strerror or error}.", everywhere=False) from None
        self.target, self.size, self.mode = target, size, mode & 0o777
        self._holders = 1
        self.have = 0
        self.fed = True
        self.complete = False
        self.lost: Lost | None = None
        self._hash = hashlib.sha256()
        self._recent: deque[tuple[int, bytearray, memoryview]] = deque()
        self._spare: list[bytearray] = []
        self._lent: bytearray | None = None
        self._changed = threading.Condition(threading.RLock())

    def hold(self) -> None:
        """Keep the file open until :meth:`release`, for who reads or writes; until its end it is open anyway."""
        with self._changed:
            self._holders += 1

    def release(self) -> None:
        with self._changed:
            self._holders -= 1
            if not self._holders and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                self._recent.clear()
                self._spare.clear()

    # -- who writes --------------------------------------------------------------------------------------------------

    def room(self) -> bytearray:
        """Where the next frame goes."""
        return self._spare.pop() if self._spare else bytearray(CHUNK)

    def append(self, room: bytearray, count: int) -> None:
        """Write the ``count`` bytes of data of the frame in ``room``, which is this part's again from here on.

        :class:`Lost` when they cannot be written.
        """
        frame = memoryview(room)[: 4 + count]
        data = frame[4:]
        self._hash.update(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise self.fail(f"{os.path.dirname(self._path)}: {error.strerror or error}.") from None
        with self._changed:
            if self.lost is not None:
                raise self.lost
            self._recent.append((self.have, room, frame))
            if len(self._recent) > _RECENT and self.size > SMALL_BYTES:
                _, oldest, _ = self._recent.popleft()
                if oldest is not self._lent:
                    self._spare.append(oldest)
            self.have += count
            self._changed.notify_all()

    def commit(self, digest: object) -> None:
        """All is there: compare it with the sender's SHA-256, and replace the target; :class:`Lost` else."""
        with self._changed:
            if self.lost is not None:
                raise self.lost
            if self.have != self.size or self._hash.hexdigest() != digest:
                raise self.fail("What arrived is not what was sent: the SHA-256 differs.")
            try:
                os.fchmod(self._fd, self.mode)
                # A file system of another machine says only when a descriptor is closed that its disk is full.
                os.close(os.dup(self._fd))
                os.replace(self._path, self.target)
            except OSError as error:
                raise self.fail(f"{self.target}: {error.strerror or error}.") from None
            self.complete = True
            self._changed.notify_all()
            self.release()

    def fail(self, why: str, everywhere: bool = False) -> Lost:
        """There will be no whole file: remove the part. What is complete stays so."""
        with self._changed:
            if self.lost is None:
                self.lost = Lost(why, everywhere)
                if not self.complete:
                    with contextlib.suppress(OSError):
                        os.unlink(self._path)
                    self.release()
            self._changed.notify_all()
            return self.lost

    # -- who passes it on --------------------------------------------------------------------------------------------

    def supplied(self) -> bool:
        """As :meth:`Original.supplied`: false between the loss of one sender and the coming of another."""
        return self.complete or self.fed

    def available(self, offset: int) -> int:
        """As :meth:`Original.available`; :class:`Lost` where no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self.have > offset or self.lost is not None)
            if self.lost is not None:
                raise self.lost
            return self.have

    def frame(self, offset: int, have: int, room: memoryview) -> memoryview:
        """As :meth:`Original.frame`; one that has just come is sent on as it is."""
        with self._changed:
            for start, recent, frame in self._recent:
                if start == offset:
                    self._lent = recent  # not to be written over while it is sent
                    return frame
        try:
            count = os.preadv(self._fd, [room[4 : 4 + have - offset]], offset)
        except OSError as error:
            raise self.fail(f"{self.target}: {error.strerror or error}.") from None
        room[:4] = count.to_bytes(4, "big")
        return room[: 4 + count]

    def digest(self) -> str:
        """The SHA-256 of the whole, once it is there and verified; :class:`Lost` where that will not be."""
        with self._changed:
            self._changed.wait_for(lambda: self.complete or self.lost is not None)
            if self.lost is not None:
                raise self.lost
            return self._hash.hexdigest()
