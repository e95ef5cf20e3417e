#!/usr/bin/env python3
"""The package as a person gets it: installed with apt on a Debian that has only what the package asks for, started by
systemd with the whole sandbox, asked, reloaded, frozen, killed, stopped, upgraded, removed and purged.

`service.py PALISADE.deb` prints a line for each thing that holds, and ends with 1 at the first that does not. Where a machine
cannot be had (no root, no systemd-nspawn, no namespaces) it says SKIPPED and ends with 0.
"""

import json
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time

from machine import Failed, Machine, Skipped, able, base, run

# Beside what the package depends on: the broker, who listens to it, and what reads the manual.
EXTRA = ["mosquitto", "mosquitto-clients", "ca-certificates"]
CACHE = pathlib.Path(__file__).resolve().parents[2] / "target" / "service"
CONFIG = "/etc/palisade/palisade.toml"
UNIT = "palisade.service"
PASSWORD = "s3cr3t-of-the-broker"
TOKEN = "s3cr3t-of-the-console"

# Many starts in a short time; the rest of the unit stays as it is shipped.
DROP_IN = "[Service]\nRestartSec=1\n[Unit]\nStartLimitBurst=50\n"
# A minute is too long for a test. Only where the process is frozen on purpose: it tells each 15 s that it is alive.
WATCHDOG = "[Service]\nWatchdogSec=20\n"

STREET = """
[[camera]]
id = "street"
uri = "/usr/share/palisade/street.mp4"
loop = true
labels = ["person", "cat", "dog", "car", "bus", "truck", "bicycle", "bird", "horse", "traffic light"]
interval = 0.25
"""


def config(yard_interval="0.5", more=""):
    return f"""[model]
path = "/usr/share/palisade/demo-model"
{STREET}
[[camera]]
id = "yard"
uri = "/usr/share/palisade/street.mp4"
loop = true
labels = ["person", "car"]
interval = {yard_interval}

[output.file]
path = "/var/lib/palisade/video/{{camera}}.mp4"

[mqtt]
host = "127.0.0.1"
username = "palisade"
password_file = "/etc/palisade/credentials/mqtt"

[console]
listen = "127.0.0.1:8600"
token_file = "/etc/palisade/credentials/console"
{more}"""


class Listener:
    """Everything that the broker tells."""

    def __init__(self, machine, *topics):
        command = ["mosquitto_sub", "-h", "127.0.0.1", "-u", "palisade", "-P", PASSWORD, "-F", "%j"]
        for topic in topics:
            command += ["-t", topic]
        self.process = subprocess.Popen(machine.inside(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.messages = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            try:
                message = json.loads(line.decode(), strict=False)
            except ValueError:
                # A picture.
                continue
            self.messages.put((message["topic"], message["payload"], bool(message.get("retain"))))

    def next(self, what, fits, limit=60):
        """The next message for which `fits` gives something, and that; what is not fitting is left behind."""
        until = time.monotonic() + limit
        seen = []
        while (left := until - time.monotonic()) > 0:
            try:
                message = self.messages.get(timeout=left)
            except queue.Empty:
                break
            if found := fits(*message):
                return found
            seen.append(message)
        raise Failed(f"no {what} within {limit} s; the last of {len(seen)} messages: {seen[-3:]}")

    def waiting(self):
        """What has come and was not looked at."""
        found = []
        while not self.messages.empty():
            found.append(self.messages.get())
        return found

    def close(self):
        self.process.kill()
        self.process.wait()


def detection(camera):
    def fits(topic, payload, _):
        return json.loads(payload) if topic == f"palisade/{camera}/detections" else None

    return fits


class Service:
    """The unit in the machine."""

    def __init__(self, machine):
        self.machine = machine

    def ctl(self, what, limit=60):
        return self.machine.sh(f"systemctl {what} {UNIT}", limit=limit)

    def show(self, name):
        return self.machine.sh(f"systemctl show {UNIT} -p {name} --value").strip()

    def expect(self, name, value, limit=60):
        """Waits until a property has a value."""
        until = time.monotonic() + limit
        while (found := self.show(name)) != value:
            if time.monotonic() > until:
                raise Failed(f"{name} is {found} after {limit} s; should be {value}\n{self.journal()[-3000:]}")
            time.sleep(0.2)

    def journal(self, since=None):
        after = f" --after-cursor='{since}'" if since else ""
        return self.machine.sh(f"journalctl -u {UNIT} -o cat --no-pager{after}")

    def cursor(self):
        """Where the journal is now."""
        line = self.machine.sh("journalctl -n 1 -o json --output-fields=MESSAGE --no-pager")
        return json.loads(line)["__CURSOR"]

    def expect_told(self, since, words, limit=30):
        until = time.monotonic() + limit
        while words not in (told := self.journal(since)):
            if time.monotonic() > until:
                raise Failed(f"the journal does not say {words!r} within {limit} s; it says:\n{told[-3000:]}")
            time.sleep(0.2)


def http(machine, path, token=None):
    """Status and body of a page, asked for in the machine's network."""
    script = (
        "import sys, urllib.request, urllib.error\n"
        "request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]} if sys.argv[2] else {})\n"
        "try:\n    answer = urllib.request.urlopen(request, timeout=20)\nexcept urllib.error.HTTPError as error:\n    answer = error\n"
        "sys.stdout.buffer.write(str(answer.status).encode() + b'\\n' + answer.read())\n"
    )
    enter = ["nsenter", f"--target={machine.pid}", "--net", sys.executable, "-c", script, f"http://127.0.0.1:8600{path}", token or ""]
    done = subprocess.run(enter, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    if done.returncode:
        raise Failed(f"{path} cannot be asked for: {done.stderr.decode(errors='replace')[-500:]}")
    status, _, body = done.stdout.partition(b"\n")
    return int(status), body


def installs(machine, service, deb):
    """apt installs it without a network, so nothing is missing among what it depends on; it is not started"""
    shutil.copy(deb, machine.root / "root/palisade.deb")
    told = machine.sh("apt-get install -y -q /root/palisade.deb", limit=180)
    if "demo.toml" not in told:
        raise Failed(f"the installation does not say how to go on:\n{told}")
    state = machine.sh(f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}", check=False).split()
    if state != ["inactive", "disabled"]:
        raise Failed(f"the unit is {state} after the installation")
    found = machine.sh("stat -c '%a %U %G' /etc/palisade/credentials; getent passwd palisade | cut -d: -f6,7").split("\n")[:2]
    if found != ["700 root root", "/var/lib/palisade:/usr/sbin/nologin"]:
        raise Failed(f"credentials folder and account are {found}")
    for path in ("man/man1/palisade.1.gz", "man/man5/palisade.toml.5.gz", "bash-completion/completions/palisade", "palisade/demo.toml"):
        if not (machine.root / "usr/share" / path).exists():
            raise Failed(f"/usr/share/{path} is missing")
    machine.sh("palisade --version && palisade check --config /usr/share/palisade/demo.toml")


def refuses(machine, service, deb):
    """unconfigured it refuses to start, once, and says what is missing"""
    since = service.cursor()
    if "failed" not in machine.sh(f"systemctl start {UNIT}", check=False):
        raise Failed("an unconfigured service starts")
    service.expect_told(since, "camera is missing")
    service.expect("ActiveState", "failed")
    if service.show("NRestarts") != "0" or service.show("ExecMainStatus") != "78":
        raise Failed(f"it was started again: {service.show('NRestarts')} restarts, exit code {service.show('ExecMainStatus')}")


def demo(machine, service, deb):
    """two commands later the sample clip is on the page"""
    machine.sh(f"cp /usr/share/palisade/demo.toml {CONFIG} && systemctl enable --now palisade", limit=120)
    service.expect("ActiveState", "active")
    status, page = http(machine, "/")
    if status != 200 or b"<title>" not in page:
        raise Failed(f"the page answers {status}: {page[:300]}")
    status, cameras = http(machine, "/api/v1/cameras")
    if status != 200 or [camera["id"] for camera in json.loads(cameras)["cameras"]] != ["street"]:
        raise Failed(f"the cameras are {status}: {cameras[:300]}")
    until = time.monotonic() + 60
    while True:
        status, picture = http(machine, "/live/street.jpg")
        if status == 200 and picture[:2] == b"\xff\xd8":
            break
        if time.monotonic() > until:
            raise Failed(f"there is no picture of the camera after a minute: {status} {picture[:200]}")
        time.sleep(0.5)


def credentials(machine, service, deb):
    """passwords reach it from a folder that it cannot read; detections arrive at the broker"""
    machine.write("/etc/mosquitto/conf.d/test.conf", "listener 1883 127.0.0.1\nallow_anonymous false\npassword_file /etc/mosquitto/passwords\n")
    machine.sh(f"mosquitto_passwd -b -c /etc/mosquitto/passwords palisade {PASSWORD} && chown mosquitto /etc/mosquitto/passwords")
    machine.sh("systemctl restart mosquitto")
    for name, secret in (("mqtt", PASSWORD), ("console", TOKEN), ("hf_token", "hf_s3cr3t")):
        machine.write(f"/etc/palisade/credentials/{name}", secret + "\n", 0o600)
    machine.write(f"/etc/systemd/system/{UNIT}.d/test.conf", DROP_IN)
    machine.write(CONFIG, config())
    machine.sh(f"palisade check --config {CONFIG}")
    listener = Listener(machine, "palisade/#")
    try:
        machine.sh("systemctl daemon-reload")
        service.ctl("restart", limit=120)
        for camera in ("street", "yard"):
            listener.next(f"detections of {camera}", detection(camera))
        found = listener.next("an object", lambda topic, payload, _: topic.endswith("/detections") and json.loads(payload)["detections"])
        if not found[0]["label"]:
            raise Failed(f"an object without a label: {found}")
    finally:
        listener.close()
    if http(machine, "/live/street.jpg")[0] != 401 or http(machine, "/live/street.jpg", TOKEN)[0] != 200:
        raise Failed("the console does not ask for the token, or does not take it")
    pid = service.show("MainPID")
    environment = dict(entry.partition("=")[::2] for entry in machine.sh(f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines())
    token = machine.sh(f"cat /proc/{pid}/root{environment['HF_TOKEN_PATH']}").strip()
    if token != "hf_s3cr3t":
        raise Failed(f"HF_TOKEN_PATH is {environment['HF_TOKEN_PATH']} and holds {token!r}")
    told = machine.sh("journalctl --no-pager -o verbose")
    for secret in (PASSWORD, TOKEN, "hf_s3cr3t"):
        if secret in told:
            raise Failed(f"{secret} stands in the journal")


def journal(machine, service, deb):
    """the journal has its lines with fields"""
    lines = [json.loads(line) for line in machine.sh(f"journalctl -u {UNIT} -o json --no-pager").splitlines()]
    running = [line for line in lines if line.get("MESSAGE") == "running"]
    wanted = {"PRIORITY", "SYSLOG_IDENTIFIER", "PALISADE_MODEL", "PALISADE_CAMERAS", "PALISADE_STAGE", "TARGET", "_SYSTEMD_UNIT"}
    if not running or not wanted <= running[-1].keys():
        raise Failed(f"the line has {sorted(running[-1]) if running else None}")
    said = [running[-1][name] for name in ("PALISADE_CAMERAS", "SYSLOG_IDENTIFIER", "PALISADE_STAGE")]
    if said != ["2", "palisade", "daemon"]:
        raise Failed(f"the line says {running[-1]}")
    if len(running) != len({line["_PID"] for line in running}):
        raise Failed("a line is there twice")
    if not any(line.get("PALISADE_STAGE") == "source" and line.get("PALISADE_CAMERA") == "street" for line in lines):
        raise Failed("no line of the sources names its camera and its stage")


def noexec(machine, service, deb):
    """it runs where no folder but its own allows programs, with memory that is never writable and executable at once"""
    script = "for place in /var /tmp /dev/shm; do mount --bind $place $place; mount -o remount,bind,noexec $place; done; mount -o remount,noexec /run"
    machine.sh(script)
    try:
        service.ctl("restart", limit=120)
        listener = Listener(machine, "palisade/+/detections")
        try:
            listener.next("detections", detection("street"))
        finally:
            listener.close()
        pid = service.show("MainPID")
        maps = machine.sh(f"grep orcexec /proc/{pid}/maps", check=False)
        if "/run/palisade/orcexec" not in maps or "rwx" in machine.sh(f"cat /proc/{pid}/maps"):
            raise Failed(f"GStreamer's compiled code is not where it should be: {maps}")
    finally:
        machine.sh("for place in /var /tmp /dev/shm; do umount --lazy $place; done; mount -o remount,exec /run")
    service.ctl("restart", limit=120)


def reloads(machine, service, deb):
    """a reload changes one camera and leaves the other alone: same run, no number missing, no change of its state"""
    pid, since = service.show("MainPID"), service.cursor()
    listener = Listener(machine, "palisade/#")
    try:
        # The daemon may just have been started: the state of a camera may come behind its first detections.
        stands, found = {}, {}

        def settled(topic, payload, retained):
            _, camera, what = (topic.split("/") + ["", ""])[:3]
            if what == "status":
                stands[camera] = json.loads(payload)["state"]
            if what == "detections":
                found[camera] = json.loads(payload)
            return {"street", "yard"} <= found.keys() and all(stands.get(camera) == "running" for camera in ("street", "yard"))

        listener.next("both cameras running and looked at", settled)
        before = found["street"]
        listener.waiting()
        machine.write(CONFIG, config(yard_interval="1.0").replace('["person", "car"]', '["person", "dog"]'))
        service.ctl("reload", limit=60)

        seen, states = [before["seq"]], []

        def changed(topic, payload, retained):
            if topic == "palisade/street/detections":
                message = json.loads(payload)
                if message["run"] != before["run"]:
                    raise Failed("street has another run after the reload")
                seen.append(message["seq"])
            if topic == "palisade/street/status" and not retained:
                states.append(payload)
            return topic == "palisade/yard/detections" and "dog" in json.loads(payload)["prompt"]

        listener.next("detections of yard with the new prompt", changed)
        last = seen[-1]
        listener.next("detections of street afterwards", lambda *message: changed(*message) is None or seen[-1] > last + 4)
        # What was thrown away by `waiting` lies between the first and the second.
        gaps = [(a, b) for a, b in zip(seen[1:], seen[2:]) if b != a + 1]
        if gaps or states:
            raise Failed(f"street was touched: gaps {gaps}, states {states}")
    finally:
        listener.close()
    service.expect("ActiveState", "active")
    if service.show("MainPID") != pid:
        raise Failed(f"the process is another one\n{service.journal(since)}")


def keeps(machine, service, deb):
    """a reload of a file with mistakes keeps what runs, and the journal says why"""
    pid, since = service.show("MainPID"), service.cursor()
    machine.write(CONFIG, config() + "\n[recrod]\ndir = 1\n")
    machine.sh(f"systemctl reload {UNIT}", check=False)
    service.expect_told(since, "recrod is not a known key")
    listener = Listener(machine, "palisade/#")
    try:
        listener.next("detections of yard as before", lambda *m: (found := detection("yard")(*m)) and "dog" in found["prompt"])
    finally:
        listener.close()
    service.expect("ActiveState", "active")
    if service.show("MainPID") != pid:
        raise Failed(f"it has not gone on\n{service.journal(since)}")
    if "not taken over" not in service.show("StatusText"):
        raise Failed(f"systemctl status says nothing of it: {service.show('StatusText')}")
    machine.write(CONFIG, config())


def again(machine, service, pid, before, how):
    """Waits until the service has a new process that tells of detections."""
    until = time.monotonic() + 120
    while not (service.show("MainPID") not in ("0", pid) and service.show("ActiveState") == "active"):
        if time.monotonic() > until:
            raise Failed(f"it was not started anew within two minutes after {how}\n{service.journal()[-3000:]}")
        time.sleep(0.2)
    if int(service.show("NRestarts")) <= before:
        raise Failed("the service manager counts no restart")
    listener = Listener(machine, "palisade/+/detections")
    try:
        listener.next(f"detections after {how}", detection("street"))
    finally:
        listener.close()


def frozen(machine, service, deb):
    """a process that is frozen is found by the watchdog and started anew"""
    drop_in = f"/etc/systemd/system/{UNIT}.d/watchdog.conf"
    machine.write(drop_in, WATCHDOG)
    machine.sh("systemctl daemon-reload")
    service.ctl("restart", limit=120)
    pid, restarts, since = service.show("MainPID"), int(service.show("NRestarts")), service.cursor()
    machine.sh(f"kill -STOP {pid}")
    again(machine, service, pid, restarts, "SIGSTOP")
    if "Watchdog timeout" not in service.journal(since):
        raise Failed(f"it was not the watchdog: {service.journal(since)}")
    machine.sh(f"rm {drop_in} && systemctl daemon-reload")
    service.ctl("restart", limit=120)


def killed(machine, service, deb):
    """a process that is killed is started anew"""
    pid, restarts = service.show("MainPID"), int(service.show("NRestarts"))
    machine.sh(f"kill -KILL {pid}")
    again(machine, service, pid, restarts, "SIGKILL")


def upgrades(machine, service, deb):
    """an upgrade keeps the configuration and starts what ran"""
    pid = service.show("MainPID")
    machine.sh("apt-get install -y -q --reinstall /root/palisade.deb", limit=180)
    service.expect("ActiveState", "active")
    if service.show("MainPID") == pid:
        raise Failed("the old process runs on")
    if (machine.root / CONFIG.lstrip("/")).read_text() != config():
        raise Failed("the configuration was written over")


def stops(machine, service, deb):
    """a stop leaves files that can be played, and says offline"""
    listener = Listener(machine, "palisade/+/detections")
    try:
        for _ in range(8):
            listener.next("detections", detection("street"))
    finally:
        listener.close()
    begin = time.monotonic()
    service.ctl("stop", limit=30)
    if service.show("Result") != "success":
        raise Failed(f"the stop ended with {service.show('Result')} after {time.monotonic() - begin:.1f} s")
    listener = Listener(machine, "palisade/status")
    try:
        listener.next("`offline`, retained", lambda topic, payload, retained: retained and payload == "offline")
    finally:
        listener.close()
    files = sorted((machine.root / "var/lib/palisade/video").glob("*.mp4"))
    if not files:
        raise Failed("there is no video")
    for file in files:
        entries = "stream=codec_name,nb_read_frames"
        told = run("ffprobe", "-v", "error", "-count_frames", "-show_entries", entries, "-of", "csv=p=0", str(file))
        if not told.startswith("h264,") or int(told.strip().split(",")[1]) < 1:
            raise Failed(f"{file.name} cannot be played: {told}")


def removes(machine, service, deb):
    """a removal keeps what was made"""
    machine.sh("apt-get remove -y -q palisade", limit=120)
    for path in ("var/lib/palisade/video", "etc/palisade/palisade.toml", "etc/palisade/credentials/mqtt"):
        if not (machine.root / path).exists():
            raise Failed(f"/{path} has gone")


def purges(machine, service, deb):
    """a purge leaves nothing: no file, no folder, no account"""
    machine.sh("rm -r /etc/systemd/system/palisade.service.d /root/palisade.deb && apt-get purge -y -q palisade", limit=120)
    places = "-path /proc -o -path /sys -o -path /var/log/apt -o -path /var/log/journal -o -path /run/systemd"
    left = machine.sh(rf"find / \( {places} \) -prune -o -iname '*palisade*' -print", check=False).split()
    if left:
        raise Failed(f"left behind: {left}")
    accounts = machine.sh("getent passwd palisade; getent group palisade", check=False).strip()
    known = machine.sh("systemctl daemon-reload; systemctl list-unit-files --no-legend 'palisade*'", check=False).strip()
    if accounts or known:
        raise Failed(f"left behind: {accounts} {known}")


CHECKS = [installs, refuses, demo, credentials, journal, noexec, reloads, keeps, frozen, killed, upgrades, stops, removes, purges]


def main():
    deb = pathlib.Path(sys.argv[1])
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        able()
        if not deb.exists():
            raise Failed(f"{deb} is missing; make deb builds it")
        depends = run("dpkg-deb", "-f", str(deb), "Depends").strip()
        with Machine(base(CACHE, depends, EXTRA)) as machine:
            service = Service(machine)
            chosen = sys.argv[2:]
            for check in CHECKS:
                if check.__name__ in chosen:
                    continue
                since = time.monotonic()
                try:
                    check(machine, service, deb)
                except Failed as failure:
                    raise Failed(f"{check.__name__}: {check.__doc__}: {failure}") from failure
                print(f"service: {check.__doc__} ({time.monotonic() - since:.1f} s)", flush=True)
    except Skipped as why:
        print(f"service: SKIPPED, the installed service was not tested: {why}", flush=True)
        return 0
    except (Failed, subprocess.TimeoutExpired) as failure:
        print(f"service: FAILED: {failure}", flush=True)
        return 1
    print(f"service: {len(CHECKS) - len(sys.argv[2:])} checks passed in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
