"""Leaves files in every state that the end of a Python process has to take care of: ``open_files.py FOLDER END``.

END is how it ends: "success", "exit0", "exit1", "text" or "raise". Standard library only, and tensorboardX where
TENSORBOARD is set. What the files hold afterwards depends on nothing but END.
"""
# ruff: noqa: SIM115 - that they stay open is the point

import atexit
import concurrent.futures
import ctypes
import gzip
import logging
import logging.handlers
import mmap
import multiprocessing
import os
import queue
import shelve
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import weakref
import zipfile

KEPT = {}


class Deleted:
    """Writes its file when it is finalized, by what it holds itself: of globals nothing may be left then."""

    def __init__(self, path):
        self.path = path

    def __del__(self, open=open):
        with open(self.path, "a") as file:
            file.write("finalized\n")


class Uploader:
    """As wandb and its like do it: a daemon thread writes what is queued, and an exit handler waits for it."""

    def __init__(self, path):
        self.file = open(path, "w")
        self.queue = queue.Queue()
        self.thread = threading.Thread(target=self.upload, daemon=True)
        self.thread.start()
        atexit.register(self.finish)

    def upload(self):
        while (item := self.queue.get()) is not None:
            time.sleep(0.02)
            self.file.write(f"{item}\n")

    def finish(self):
        self.queue.put(None)
        self.thread.join()
        self.file.write("finished\n")


def write_late(path):
    time.sleep(0.3)
    with open(path, "a") as file:
        file.write("late\n")


def note(path, text):
    with open(path, "a") as file:
        file.write(text)


def open_everything(folder):
    def at(name):
        return os.path.join(folder, name)

    KEPT["text"] = open(at("text.csv"), "w")
    KEPT["text"].write("1,2,3\n" * 5)
    KEPT["binary"] = open(at("binary"), "wb")
    KEPT["binary"].write(b"\0\1\2" * 50)
    KEPT["updated"] = open(at("updated"), "w+b")
    KEPT["updated"].write(b"x" * 100)
    KEPT["updated"].seek(10)
    KEPT["updated"].write(b"yyyy")
    KEPT["fdopen"] = os.fdopen(os.open(at("fdopen"), os.O_WRONLY | os.O_CREAT), "w")
    KEPT["fdopen"].write("by a descriptor\n")
    KEPT["gzip"] = gzip.GzipFile(at("text.gz"), "wb", mtime=0)
    KEPT["gzip"].write(b"compressed\n" * 100)
    KEPT["zip"] = zipfile.ZipFile(at("archive.zip"), "w")
    KEPT["zip"].writestr(zipfile.ZipInfo("member"), "in an archive")
    KEPT["sqlite"] = sqlite3.connect(at("table.sqlite"))
    KEPT["sqlite"].executescript("create table t (x); insert into t values (1);")
    KEPT["sqlite"].execute("insert into t values (2)")  # not committed
    KEPT["shelf"] = shelve.open(at("shelf"), writeback=True)
    KEPT["shelf"]["list"] = [1]
    KEPT["shelf"]["list"].append(2)
    with open(at("mapped"), "wb") as file:
        file.truncate(mmap.PAGESIZE)
    KEPT["mapped_file"] = open(at("mapped"), "r+b")
    KEPT["mapped"] = mmap.mmap(KEPT["mapped_file"].fileno(), 0)
    KEPT["mapped"][:6] = b"mapped"

    logger = logging.getLogger("open_files")
    logger.propagate = False
    handler = logging.handlers.MemoryHandler(1000, target=logging.FileHandler(at("log")))
    logger.addHandler(handler)
    logger.warning("kept in memory until the end")

    KEPT["deleted"] = Deleted(at("deleted"))
    cycle = [Deleted(at("deleted-in-a-cycle"))]
    cycle.append(cycle)
    weakref.finalize(Deleted, note, at("weakref-finalize"), "finalized\n")
    atexit.register(note, at("atexit"), "exit handler\n")
    KEPT["folder"] = tempfile.TemporaryDirectory(dir=folder, prefix="temporary-folder-")
    note(os.path.join(KEPT["folder"].name, "inside"), "x")
    KEPT["named"] = tempfile.NamedTemporaryFile(dir=folder, prefix="temporary-file-")

    threading.Thread(target=write_late, args=(at("thread"),)).start()
    KEPT["pool"] = concurrent.futures.ThreadPoolExecutor(1)
    KEPT["pool"].submit(write_late, at("executor"))
    for method in ("fork", "spawn"):
        multiprocessing.get_context(method).Process(target=write_late, args=(at(f"process-{method}"),)).start()
    KEPT["cat"] = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=open(at("piped"), "wb"), text=True)
    KEPT["cat"].stdin.write("through a pipe\n")
    uploader = Uploader(at("uploaded"))
    for number in range(5):
        uploader.queue.put(number)

    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    libc.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    libc.fputs(b"in C's buffer\n", libc.fopen(os.fsencode(at("c-stream")), b"w"))
    if "TENSORBOARD" in os.environ:
        import tensorboardX

        KEPT["tensorboard"] = tensorboardX.SummaryWriter(at("tensorboard"), flush_secs=600)
        for number in range(10):
            KEPT["tensorboard"].add_scalar("loss", 1.0 / (number + 1), number, walltime=0.0)


def work(folder, end):
    open_everything(folder)
    local = open(os.path.join(folder, "local"), "w")
    local.write("of a frame\n")
    if end == "exit0":
        sys.exit(0)
    if end == "exit1":
        sys.exit(1)
    if end == "text":
        sys.exit("no data")
    if end == "raise":
        raise ValueError("no data")


if __name__ == "__main__":
    work(*sys.argv[1:3])
