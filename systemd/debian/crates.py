#!/usr/bin/env python3
"""Lists the Rust crates that the program is linked with, and their licences with the notices that those ask to be kept.

Reads `cargo metadata` and the sources that cargo has downloaded; prints text. Licence files with the same text are printed once.
"""

import json
import pathlib
import subprocess
import sys

LICENCES = ("licen", "copying", "notice", "copyright", "unlicense")


def linked(metadata):
    """The packages that the program's own build takes, its tools and tests left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    waiting, found = [metadata["resolve"]["root"]], set()
    while waiting:
        package = waiting.pop()
        if package in found:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    found.remove(metadata["resolve"]["root"])
    return sorted((p for p in metadata["packages"] if p["id"] in found), key=lambda p: (p["name"], p["version"]))


def main():
    target = next(line.split()[1] for line in subprocess.check_output(["rustc", "-vV"], text=True).splitlines() if line.startswith("host"))
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    crates = linked(json.loads(subprocess.check_output(command)))
    texts = {}
    print("Rust crates that palisade is linked with. The licence texts follow the list.\n")
    for crate in crates:
        authors = ", ".join(crate["authors"]) or "see its licence"
        print(f"{crate['name']} {crate['version']}: {crate['license'] or crate['license_file']}; {authors}; {crate['repository'] or ''}")
        folder = pathlib.Path(crate["manifest_path"]).parent
        # Sources of others in C have theirs a folder below.
        for file in sorted([*folder.glob("*"), *folder.glob("*/*")]):
            if file.is_file() and file.name.lower().startswith(LICENCES) and file.suffix not in (".rs", ".c", ".h"):
                text = file.read_text(errors="replace").strip()
                texts.setdefault(" ".join(text.split()), (text, []))[1].append(f"{crate['name']} ({file.relative_to(folder)})")
    for text, names in texts.values():
        print(f"\n{'=' * 100}\n{', '.join(names)}\n\n{text}")
    return 0 if crates else 1


if __name__ == "__main__":
    sys.exit(main())
