"""What a crowd of viewers costs the cameras: looks a second with nobody, with 200 who watch live video, pages and events, and with as
many who take nothing of what they asked for. Prints a line of JSON; fails where a rate is more than 5 % lower than without them.

`make crowd` runs this, on a machine that does nothing else. SECONDS is the time of each measurement.
"""

import http.client
import json
import os
import socket
import sys
import threading
import time
import urllib.request

import parts

VIEWERS = 200
SECONDS = float(os.environ.get("SECONDS", "30"))
WAYS = ["/live/street.mjpeg", "/api/v1/stream", "/live/street.jpg", "/api/v1/cameras", "/"]

MORE = """
[console]
listen = "127.0.0.1:PORT"
"""


def looks(address):
    """How many frames of all cameras were looked at."""
    while True:
        try:
            with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith("palisade_frames_analysed_total"))
        except OSError:
            # Every place was taken.
            time.sleep(0.05)


def rate(address):
    begin, before = time.monotonic(), looks(address)
    time.sleep(SECONDS)
    after = looks(address)
    return (after - before) / (time.monotonic() - begin)


def watch(port, way, stop, reads, counts):
    """One viewer, who comes again when it is sent away."""
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
                stream.sendall(f"GET {way} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                if not reads:
                    stop.wait(2)
                    continue
                answer = http.client.HTTPResponse(stream)
                answer.begin()
                counts[answer.status] = counts.get(answer.status, 0) + 1
                while not stop.is_set() and answer.read(65536):
                    pass
        except (OSError, http.client.HTTPException):
            pass
        stop.wait(0.5)


def crowd(daemon, reads):
    stop, counts = threading.Event(), {}
    viewers = [threading.Thread(target=watch, args=(daemon.port, WAYS[n % len(WAYS)], stop, reads, counts)) for n in range(VIEWERS)]
    for viewer in viewers:
        viewer.start()
    time.sleep(3)
    try:
        return rate(daemon.address), counts
    finally:
        stop.set()
        for viewer in viewers:
            viewer.join()


def main():
    with parts.folder() as folder:
        daemon = parts.Daemon(folder, parts.MODEL + parts.cameras("street", "yard", interval=0.5) + MORE)
        try:
            time.sleep(5)
            alone = rate(daemon.address)
            watched, counts = crowd(daemon, True)
            stalled, _ = crowd(daemon, False)
        finally:
            daemon.stop()
    report = {"viewers": VIEWERS, "looks_a_second": {"alone": alone, "watched": watched, "stalled": stalled}, "answers": counts}
    print(json.dumps(report))
    return 0 if min(watched, stalled) >= 0.95 * alone else 1


if __name__ == "__main__":
    sys.exit(main())
