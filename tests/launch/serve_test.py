#!/usr/bin/env python3
"""Starts `jubal serve` as a user would and holds it to what it promises.

usage: serve_test.py PROGRAM MODEL [unittest arguments]
"""

import glob
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

PROGRAM = os.path.realpath(sys.argv[1])
MODEL = sys.argv[2]
GRPCIO_CLIENT = os.path.join(os.path.dirname(__file__), "../rpc/grpcio_client.py")


def program_of(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:  # it ended meanwhile
        return ""


def arguments_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode().split("\0")
    except OSError:
        return []


def environment_of(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().decode(errors="replace").split("\0")
    except OSError:
        return []


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


class Server:
    """One `jubal serve`; everything it makes lies in a directory of its own."""

    def __init__(self, *flags, ranks=2, listen="127.0.0.1:0"):
        self.directory = tempfile.TemporaryDirectory()
        self.shared_memory_before = set(os.listdir("/dev/shm"))
        self.log = open(os.path.join(self.directory.name, "log"), "w+")
        runtime = os.path.join(self.directory.name, "runtime")
        os.mkdir(runtime)
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "--model", MODEL, "-n", str(ranks), "--listen", listen,
             "--kv-memory", "16MiB", *flags],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": runtime, "TMPDIR": runtime})
        self.runtime = runtime
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def address(self, seconds=60):
        wait_until(lambda: self.lines or self.process.poll() is not None, seconds)
        if not self.lines:
            raise AssertionError(f"not ready; log:\n{self.errors()}")
        return re.search(r"ready.* (\S+:\d+)$", self.lines[0].strip())[1]

    def errors(self):
        with open(self.log.name, encoding="utf-8") as file:
            return file.read()

    def processes(self):
        """All that were started with this server's environment, whoever their parent is now."""
        mark = "XDG_RUNTIME_DIR=" + self.runtime
        return [int(pid) for pid in os.listdir("/proc")
                if pid.isdigit() and mark in environment_of(pid)]

    def family(self):
        """The pids of this program's processes, by the command they run."""
        children = {}
        for pid in self.processes():
            if program_of(pid) != PROGRAM:
                continue
            arguments = arguments_of(pid)
            if len(arguments) > 1:
                children.setdefault(arguments[1], []).append(pid)
        return children

    def left_behind(self):
        # Gone as soon as the supervisor is: not a moment later.
        return {"processes": [arguments_of(pid) for pid in self.processes()],
                "files": glob.glob(self.runtime + "/**", recursive=True)[1:],
                "shared memory": sorted(set(os.listdir("/dev/shm")) - self.shared_memory_before)}

    def stop(self, how=signal.SIGTERM, seconds=20):
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        self.log.close()
        wait_until(lambda: not self.processes(), 10)
        for name in set(os.listdir("/dev/shm")) - self.shared_memory_before:
            shutil.rmtree("/dev/shm/" + name, ignore_errors=True)
        self.directory.cleanup()


def chat(address, text, *flags):
    done = subprocess.run([PROGRAM, "chat", "--server", address, "--max-tokens", "8",
                           "--temperature", "0", *flags],
                          input=text + "\n", capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


class ServeTest(unittest.TestCase):
    def start(self, *flags, **options):
        server = Server(*flags, **options)
        self.addCleanup(server.close)
        return server

    def assert_nothing_left(self, server):
        self.assertEqual(server.left_behind(), {"processes": [], "files": [], "shared memory": []})

    def assert_answers(self, address):
        status, output, errors = chat(address, "Once upon a time")
        self.assertEqual(status, 0, errors)
        self.assertEqual(errors, "")
        self.assertIn(self.expected_text(), output)

    def expected_text(self):
        done = subprocess.run([PROGRAM, "generate", "--model", MODEL, "--prompt",
                               "Once upon a time", "--max-tokens", "8", "--temperature", "0"],
                              capture_output=True, text=True, timeout=60)
        return done.stdout.strip("\n")

    def test_serves_and_ends_without_a_trace(self):
        server = self.start(ranks=4)
        self.assert_answers(server.address())
        self.assertEqual(server.stop(), 0, server.errors())
        self.assert_nothing_left(server)
        self.assertEqual(len(server.lines), 1, server.lines)

    def test_ctrl_c_while_loading_ends_at_once(self):
        for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6):
            with self.subTest(delay=delay):
                server = self.start()
                time.sleep(delay)
                begin = time.monotonic()
                status = server.stop(signal.SIGINT)
                self.assertLess(time.monotonic() - begin, 8)
                # Before main() has begun, a signal does what it does by default.
                self.assertIn(status, (0, -signal.SIGINT), server.errors())
                self.assert_nothing_left(server)

    def test_a_killed_rank_is_named_and_the_next_epoch_serves(self):
        server = self.start(ranks=3)
        address = server.address()
        victims = server.family()["rank"]
        self.assertEqual(len(victims), 3)
        os.kill(sorted(victims)[1], signal.SIGKILL)
        self.assertTrue(wait_until(lambda: "epoch 2 serves" in server.errors(), 30),
                        server.errors())
        self.assertRegex(server.errors(), r"epoch 1 ended: .*rank \d")
        self.assertFalse(set(victims) & set(server.processes()))
        self.assert_answers(address)
        self.assertEqual(server.stop(), 0)
        self.assert_nothing_left(server)

    def test_a_killed_mpirun_is_replaced(self):
        server = self.start()
        address = server.address()
        ranks = server.family()["rank"]
        with open(f"/proc/{ranks[0]}/stat", encoding="utf-8") as file:
            mpirun = int(file.read().rsplit(")", 1)[1].split()[1])
        os.kill(mpirun, signal.SIGKILL)
        self.assertTrue(wait_until(lambda: "epoch 2 serves" in server.errors(), 30),
                        server.errors())
        self.assert_answers(address)
        self.assertEqual(server.stop(), 0)
        self.assert_nothing_left(server)

    def test_stopped_ranks_do_not_outlive_the_server(self):
        server = self.start()
        server.address()
        os.kill(server.family()["rank"][0], signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        begin = time.monotonic()
        server.stop()  # the second signal: at once
        self.assertLess(time.monotonic() - begin, 8)
        self.assert_nothing_left(server)

    def test_a_killed_supervisor_leaves_no_process(self):
        server = self.start()
        server.address()
        server.process.kill()
        self.assertTrue(wait_until(lambda: not server.processes(), 10),
                        server.processes())

    def test_a_killed_coordinator_ends_the_server(self):
        server = self.start()
        server.address()
        os.kill(server.family()["coordinator"][0], signal.SIGKILL)
        self.assertEqual(server.process.wait(20), 1)
        self.assertIn("coordinator", server.errors())
        self.assert_nothing_left(server)

    def test_serves_over_loopback_tcp(self):
        with tempfile.NamedTemporaryFile("w") as hosts:
            hosts.write("localhost slots=2\n")
            hosts.flush()
            server = self.start("--hostfile", hosts.name, "--control-host", "127.0.0.1",
                                "--mpirun-arg=--mca", "--mpirun-arg=btl",
                                "--mpirun-arg=tcp,self")
            self.assert_answers(server.address())
            self.assertEqual(server.stop(), 0, server.errors())
        self.assert_nothing_left(server)

    def test_a_taken_port_is_one_message(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            server = self.start(listen=address)
            self.assertEqual(server.process.wait(20), 69)
            self.assertEqual(len(server.errors().splitlines()), 1, server.errors())
            self.assertIn(address, server.errors())
        self.assert_nothing_left(server)

    def test_refuses_what_cannot_work_in_one_sentence(self):
        for flags, status in ((["--model", "/no/such/model"], 66),
                              (["--model", MODEL, "--data-parallel", "3"], 64),
                              (["--model", MODEL, "--kv-memory", "1"], 78),
                              (["--model", MODEL, "--listen", "0.0.0.0:0"], 64),
                              (["--model", MODEL, "--hostfile", "/no/such/file"], 66)):
            with self.subTest(flags=flags):
                done = subprocess.run([PROGRAM, "serve", "-n", "2", *flags], capture_output=True,
                                      text=True, timeout=60)
                self.assertEqual(done.returncode, status, done.stderr)
                self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
                self.assertEqual(done.stdout, "")

    @unittest.skipUnless(importlib.util.find_spec("grpc_reflection"), "needs grpcio-reflection")
    def test_a_client_not_written_here_needs_only_reflection(self):
        server = self.start()
        done = subprocess.run([sys.executable, GRPCIO_CLIENT, server.address()],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_chat_says_when_there_is_no_server(self):
        status, _, errors = chat("127.0.0.1:1", "text")
        self.assertEqual(status, 69)
        self.assertEqual(len(errors.splitlines()), 1, errors)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
