"""Commands as processes that need not import torch again: a warm server forks each of them.

python warm.py SOCKET FOLDER is the server. It imports what a training run imports, runs nothing of
it, and forks one process for each request, which then runs a script as `python SCRIPT ARGUMENTS`
does. So a command starts in a tenth of a second instead of eight. The first run that all tests
share is started cold, as is every command while QAT_TESTS_COLD is set, which `.ci/nightly` does.
"""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy
from filelock import FileLock

PRELOAD = (
    "qat.commands.train", "qat.commands.export", "qat.commands.evaluate", "qat.commands.predict",
    "qat.commands.report", "qat.train.fit", "qat.train.run", "qat.train.summary",
    "qat.quantize.audit_table", "qat.report.page.run_page", "qat.sweep.run", "qat.train.build",
    "qat.train.run_data", "qat.train.teacher", "qat.data.transforms", "qat.models.pretrained",
    "qat.export.outlook", "timm", "sklearn.datasets", "jinja2",
    "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
)  # fmt: skip


class WarmCommand:
    """A command forked from the server, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, server, script, arguments, cwd, env):
        pipes = [os.pipe() for _ in range(3)]
        words = {"script": str(script), "arguments": arguments, "cwd": str(cwd), "env": env}
        server.ask(json.dumps(words).encode(), [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        self._out, self._err, self._status = (read for read, _ in pipes)
        self._said = b""
        while b"\n" not in self._said:
            self._said += os.read(self._status, 100) or server.fail()
        self.pid = int(self._said.partition(b"\n")[0])
        self.returncode = None
        self.peak = None  # bytes of memory, once it has ended

    def poll(self):
        """Its exit code, None while it runs; negative for a signal."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._status, selectors.EVENT_READ)
            while self.returncode is None and ready.select(timeout=0):
                said = os.read(self._status, 100)
                self._said += said
                if not said:
                    _, status, kilobytes = map(int, self._said.split())
                    self.returncode = os.waitstatus_to_exitcode(status)
                    self.peak = kilobytes * 1024
        return self.returncode

    def wait(self, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout=None):
        """All that it printed, once it and everyone who holds its pipes has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        texts = {self._out: b"", self._err: b""}
        with selectors.DefaultSelector() as ready:
            for pipe in texts:
                ready.register(pipe, selectors.EVENT_READ)
            while ready.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
                for key, _ in ready.select(left):
                    part = os.read(key.fd, 65536)
                    texts[key.fd] += part
                    if not part:
                        ready.unregister(key.fd)
        self.wait(None if deadline is None else max(1.0, deadline - time.monotonic()))
        for pipe in (*texts, self._status):
            os.close(pipe)
        return tuple(text.decode() for text in texts.values())

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class WarmServer:
    """A connection to the server that all workers of one run of pytest share.

    Args:
        home: folder of the server, made with it; it ends, and its folder with it, once none of
            those who connected to it is there any longer.
        env: its environment.
    """

    def __init__(self, home, env):
        self._log = home / "log"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with FileLock(home.with_suffix(".lock")):
            if not home.exists():
                home.mkdir()
                self._start(home, env)
            try:
                self._socket.connect(str(home / "socket"))
            except OSError:
                self.fail()

    def _start(self, home, env):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(str(home / "socket"))
            door.listen()  # whoever connects before all is imported waits
            command = [sys.executable, __file__, str(door.fileno()), str(home)]
            with self._log.open("w") as log:
                subprocess.Popen(command, pass_fds=[door.fileno()], env=env, stderr=log)

    def ask(self, message, pipes):
        try:
            socket.send_fds(self._socket, [message], pipes)
        except OSError:
            self.fail()

    def fail(self):
        """Fail the test that asked, with what the server said before it ended."""
        said = self._log.read_text(errors="replace") if self._log.exists() else "its folder is gone"
        raise RuntimeError(f"the warm server has ended: {said}")


def serve(door, home):
    """Answer requests; returns (script, arguments) in each process that is to run them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's matter
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes between
    with selectors.DefaultSelector() as ready:
        ready.register(door, selectors.EVENT_READ)
        ready.register(door.accept()[0], selectors.EVENT_READ)
        while len(ready.get_map()) > 1:
            for key, _ in ready.select():
                if key.fileobj is door:
                    ready.register(door.accept()[0], selectors.EVENT_READ)
                    continue
                message, pipes, _, _ = socket.recv_fds(key.fileobj, 1 << 20, 3)
                if not message:
                    ready.unregister(key.fileobj)
                    key.fileobj.close()
                elif os.fork() == 0:
                    for other in ready.get_map().values():
                        other.fileobj.close()
                    return run_and_tell(json.loads(message), *pipes)
                for pipe in pipes:
                    os.close(pipe)
    shutil.rmtree(home)
    home.with_suffix(".lock").unlink(missing_ok=True)
    sys.exit(0)


def run_and_tell(request, out, err, status):
    """In the process between: start the command's, tell its number and, at its end, its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        for pipe in (out, err):
            os.close(pipe)
        os.write(status, f"{child}\n".encode())
        _, code, used = os.wait4(child, 0)
        os.write(status, f"{code} {used.ru_maxrss}".encode())
        os._exit(0)
    os.close(status)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe, number)
        os.close(pipe)
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()  # as a process of its own would begin; torch begins on one fixed seed anyway
    numpy.random.seed()
    return request["script"], request["arguments"]


def main():
    codes = []

    def leave():
        """End here: to take all modules apart would copy them page by page, for two seconds."""
        if codes:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(codes[0])
        gc.unfreeze()  # libraries look at their end for what was never freed

    atexit.register(leave)  # the first to be registered is the last to be called
    gc.disable()
    for name in PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # a collection would copy the pages of everything that is imported
    gc.enable()
    script, arguments = serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
        codes.append(0)
    except SystemExit as error:
        codes.append(error.code if isinstance(error.code, int) else int(error.code is not None))
        raise


if __name__ == "__main__":
    main()
