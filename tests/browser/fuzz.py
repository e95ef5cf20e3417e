"""The API against its own description: schemathesis asks what the description allows and much that it does not, and no answer may be
a failure of the server's own. The two streams without an end are left out.

`make test-browser` runs this. PALISADE names another daemon, EXAMPLES how much is asked of each operation.
"""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import parts

ENDLESS = ("/api/v1/stream", "/live/{camera}.mjpeg", "/live/{id}.mjpeg")

MORE = """
[console]
listen = "127.0.0.1:PORT"
control = true
state_dir = "FOLDER/state"
[events]
database = "FOLDER/events.sqlite"
[events.snapshots]
dir = "FOLDER/objects"
[record]
dir = "FOLDER/clips"
"""


def main():
    tool = Path(sys.executable).with_name("schemathesis")
    with parts.folder() as folder:
        config = parts.MODEL + parts.cameras("street", more='record = "events"') + MORE.replace("FOLDER", folder)
        daemon = parts.Daemon(folder, config)
        try:
            with urllib.request.urlopen(f"{daemon.address}/api/v1/openapi.json", timeout=10) as answer:
                operations = json.load(answer)["paths"]
            command = [tool, "run", f"{daemon.address}/api/v1/openapi.json", "--url", daemon.address, "--no-color"]
            command += ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--generation-deterministic"]
            command += ["--max-examples", os.environ.get("EXAMPLES", "25"), "--request-timeout", "30", "--suppress-health-check", "all"]
            for path in ENDLESS:
                if path in operations:
                    command += ["--exclude-path", path]
            ran = subprocess.run(command, cwd=folder)
            daemon.process.lives()
            if not daemon.ready():
                raise SystemExit("the daemon answers no longer")
            return ran.returncode
        finally:
            daemon.stop()
            print(daemon.process.log.read_text()[-2000:], file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
