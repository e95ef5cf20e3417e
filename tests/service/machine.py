"""A Debian of its own that boots: an overlay on a tree that is made once, below systemd-nspawn, without a network.

Several may run at once: each has a name, a folder, an overlay and control groups of its own, and takes all of them along.
"""

import ctypes
import fcntl
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import uuid

MIRROR = os.environ.get("PALISADE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
SECURITY = os.environ.get("PALISADE_DEBIAN_SECURITY_MIRROR", "http://deb.debian.org/debian-security")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(Exception):
    """A sentence that says what is not as it should be."""


class Skipped(Exception):
    """This machine cannot have another one in it."""


def fetch(*command, limit):
    """Runs a command that needs Debian's mirrors. That they cannot be had says nothing of what is tested."""
    try:
        return run(*command, limit=limit)
    except (Failed, subprocess.TimeoutExpired) as why:
        raise Skipped(f"a Debian could not be had: {why}") from why


def run(*command, limit=60, check=True, **more):
    """Runs a command on this machine and gives its output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit, **more)
    text = done.stdout.decode(errors="replace")
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{text[-3000:]}")
    return text


def suite():
    """The Debian that this machine runs: a program that is built here is for that one."""
    release = dict(line.partition("=")[::2] for line in pathlib.Path("/etc/os-release").read_text().splitlines())
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        raise Skipped(f"this is no release of Debian but {release.get('PRETTY_NAME', 'something else')}")
    return release["VERSION_CODENAME"]


def able():
    """Whether there can be a machine in this one at all."""
    suite()
    if os.geteuid() != 0:
        raise Skipped("not root")
    for program in ("systemd-nspawn", "debootstrap", "nsenter", "unshare", "ffprobe"):
        if shutil.which(program) is None:
            raise Skipped(f"{program} is not installed")
    if subprocess.run(["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "mount", "-t", "tmpfs", "x", "/mnt"]).returncode:
        raise Skipped("namespaces and mounts are not allowed here")
    if not groups():
        raise Skipped("control groups cannot be made here")


def groups():
    """The roots of the hierarchies of control groups that a service manager needs and may write to."""
    root = pathlib.Path("/sys/fs/cgroup")
    places = [root] if (root / "cgroup.controllers").exists() else [root / "systemd", root / "unified"]
    return [place for place in places if place.is_dir() and os.access(place, os.W_OK)]


def base(cache, depends, extra):
    """The tree below every machine: Debian, what the package depends on, and `extra`; nothing else. Made once."""
    name = suite()
    wanted = "\n".join([name, depends, *extra])
    tree = cache / f"base-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if tree.exists():
            return tree
        making = cache / "making"
        shutil.rmtree(making, ignore_errors=True)
        print(f"making a Debian in {tree} (once; some minutes)", flush=True)
        fetch("debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus", name, str(making), MIRROR, limit=900)
        sources = f"deb {MIRROR} {name} main\ndeb {MIRROR} {name}-updates main\ndeb {SECURITY} {name}-security main\n"
        (making / "etc/apt/sources.list").write_text(sources)
        # What a crash would lose is made anew.
        (making / "etc/dpkg/dpkg.cfg.d/fast").write_text("force-unsafe-io\n")
        # No service is started in a tree that has not booted.
        policy = making / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        apt = ["chroot", str(making), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "--no-install-recommends"]
        fetch(*apt, "update", limit=300)
        fetch(*apt, "install", *extra, limit=900)
        # What the package depends on must be there to be had; this needs no network.
        run(*apt, "satisfy", "--simulate", depends, limit=120)
        fetch(*apt, "satisfy", depends, limit=1800)
        run(*apt, "clean")
        policy.unlink()
        (making / "etc/resolv.conf").write_text("")
        making.rename(tree)
    return tree


class Machine:
    """A booted machine; `with` takes it down."""

    def __init__(self, tree):
        self.name = f"palisade-{uuid.uuid4().hex[:12]}"
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.root = self.folder / "root"
        self.groups = []
        self.nspawn = None
        self.pid = None
        try:
            self._mount(tree)
            self._boot()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _mount(self, tree):
        for name in ("root", "upper", "work"):
            (self.folder / name).mkdir()
        # An overlay on an overlay is refused by some kernels: then the upper part is in memory.
        for attempt in ("disk", "memory"):
            if attempt == "memory":
                memory = self.folder / "memory"
                memory.mkdir()
                run("mount", "-t", "tmpfs", "-o", "size=2g", self.name, str(memory))
                for name in ("upper", "work"):
                    (memory / name).mkdir()
            above = self.folder if attempt == "disk" else self.folder / "memory"
            options = f"lowerdir={tree},upperdir={above}/upper,workdir={above}/work"
            done = subprocess.run(["mount", "-t", "overlay", self.name, "-o", options, str(self.root)], stderr=subprocess.PIPE)
            if done.returncode == 0:
                return
        raise Skipped(f"overlays cannot be mounted here: {done.stderr.decode().strip()}")

    def _boot(self):
        for place in groups():
            group = place / self.name
            group.mkdir()
            self.groups.append(group)

        def enter():
            # PR_SET_PDEATHSIG: should this process be killed, the machine goes too.
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
            for group in self.groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        command = ["systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--private-network", "--link-journal=no"]
        command += ["--resolv-conf=off", "--timezone=off", f"--machine={self.name}", f"--directory={self.root}", "--console=pipe"]
        log = open(self.folder / "boot.log", "wb")
        self.nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=enter, start_new_session=True)
        log.close()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self.nspawn.poll() is not None:
                # Nothing that is tested is in it yet.
                raise Skipped(f"systemd-nspawn ended with {self.nspawn.returncode}: {self.boot_log()}")
            child = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split()
            if child:
                self.pid = int(child[0])
                state = self.sh("systemctl is-system-running", check=False).strip()
                # Some unit of Debian's may fail on some kernel; what is tested says itself what it needs.
                if state in ("running", "degraded"):
                    return
            time.sleep(0.2)
        raise Skipped(f"the machine has not come up within two minutes: {self.boot_log()}")

    def boot_log(self):
        return (self.folder / "boot.log").read_text(errors="replace")[-2000:]

    def inside(self, *command):
        """The command line that runs a command in the machine."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]
        return [*enter, "/usr/bin/env", "-i", "-C", "/", f"PATH={PATH}", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", *command]

    def sh(self, script, limit=60, check=True):
        """Runs a shell script in the machine and gives its output."""
        done = subprocess.run(
            self.inside("sh", "-c", script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit
        )
        text = done.stdout.decode(errors="replace")
        if check and done.returncode != 0:
            raise Failed(f"in the machine, `{script}` ended with {done.returncode}:\n{text[-3000:]}")
        return text

    def write(self, path, text, mode=0o644):
        """Writes a file in the machine."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def close(self):
        """Ends everything in the machine, at once, and removes what was made for it."""
        if self.pid is not None:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.nspawn is not None:
            try:
                self.nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait()
        for group in self.groups:
            remove_group(group)
        for mount in (self.root, self.folder / "memory"):
            if os.path.ismount(mount):
                for _ in range(50):
                    if subprocess.run(["umount", str(mount)], stderr=subprocess.DEVNULL).returncode == 0:
                        break
                    time.sleep(0.2)
                else:
                    subprocess.run(["umount", "--lazy", str(mount)])
        if not os.path.ismount(self.root):
            shutil.rmtree(self.folder, ignore_errors=True)


def remove_group(group):
    """A control group with those below it; what is still in them is on its way out."""
    for _ in range(50):
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                pass
        if not group.exists():
            return
        time.sleep(0.1)
