"""What the browser tests start: a broker, the daemon, Chromium; and how they wait."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
PALISADE = Path(os.environ.get("PALISADE") or ROOT / "target/release/palisade").resolve()

# For what comes at all: the machine may be busy with ten other things.
LONG = int(os.environ.get("PALISADE_BROWSER_SECONDS", "120"))


def until(what, ask, seconds=LONG):
    """Waits for `ask` to give something true, and gives it."""
    end = time.monotonic() + seconds
    while True:
        got = ask()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s there is still no {what}")
        time.sleep(0.2)


def free_port():
    """One that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def find(*names):
    """The first of these programs that there is."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    raise SystemExit(f"none of these is installed: {', '.join(names)}")


def frame(second, to):
    """A picture of the sample clip."""
    command = [find("ffmpeg"), "-v", "error", "-y", "-ss", str(second), "-i", SAMPLES / "street.mp4", "-frames:v", "1", to]
    subprocess.run(command, check=True)
    return to


class Process:
    """A program whose output goes to a file, and that ends with the block."""

    def __init__(self, name, command, folder, env=None):
        self.name = name
        self.log = Path(folder) / f"{name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(env or {})})

    def lives(self):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended by itself:\n{self.log.read_text()[-4000:]}")
        return True

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Broker(Process):
    """mosquitto on a port of its own."""

    def __init__(self, folder):
        self.port = free_port()
        config = Path(folder) / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser {'root' if os.geteuid() == 0 else 'nobody'}\n")
        super().__init__("mosquitto", [find("mosquitto"), "-c", config], folder)
        until("broker", lambda: self.lives() and listens(self.port))


class Ear:
    """Every message below a topic, from now on."""

    def __init__(self, port, topic):
        command = [find("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(port), "-v", "-t", topic]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.heard = []
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self):
        for line in self.process.stdout:
            self.heard.append(line.rstrip("\n"))

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.thread.join()
        self.process.stdout.close()


def listens(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


class Daemon:
    """palisade with a configuration of the test's, on a port of its own; may be stopped and begun anew."""

    def __init__(self, folder, config, env=None):
        self.folder = Path(folder)
        self.port = free_port()
        self.env = env
        self.config = self.folder / "palisade.toml"
        self.config.write_text(config.replace("PORT", str(self.port)))
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.begin()

    def begin(self):
        self.process = Process("palisade", [PALISADE, "run", "--config", self.config], self.folder, self.env)
        until("readiness", lambda: self.process.lives() and self.ready())

    def ready(self):
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        self.process.stop()


def cameras(*ids, prompt="detect person; cat; dog; car; bus; truck; bicycle; bird; horse; traffic light", interval=0.5, more=""):
    """The sample clip, over and over, as cameras."""
    one = '[[camera]]\nid = "{}"\nuri = "{}"\nprompt = "{}"\ninterval = {}\nloop = true\n{}\n'
    return "\n".join(one.format(name, SAMPLES / "street.mp4", prompt, interval, more) for name in ids)


MODEL = f'[model]\npath = "{SAMPLES / "demo-model"}"\n'


def folder():
    """One that is gone with the test."""
    return tempfile.TemporaryDirectory(prefix="palisade-browser-")

