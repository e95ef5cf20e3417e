"""What each weight type costs in quality: precision and recall of palisade itself on fresh street scenes.

usage: python quality.py [--palisade PROGRAM] [--model DIR] [--scenes DIR] [--count 300] [--seed 31337] [TYPE ...]

Draws the scenes of draw_street.py (once; a folder that holds them is used again), asks `palisade detect` for all ten
labels on each with every weight type, and prints a Markdown table: precision and recall as evaluate.py counts them, how
many answers are word for word those of f32, and the median time a picture. A type that the program does not know is
passed over with a line on standard error. Exits with 1 where auto, or q4k, loses more than a point of either against f32.

Needs numpy and Pillow (Debian: python3-numpy python3-pil) and the font fonts-noto-color-emoji, no torch. The scenes of
another release of Pillow may differ in a pixel here and there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import PIL

from draw_street import draw_scenes
from matching import ask_all, rates, score
from world import LABELS

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TYPES = ["f32", "f16", "bf16", "q8_0", "q6k", "q4k", "auto"]
CHOSEN = ["auto", "q4k"]
"""What may be used without being asked for: auto is f32 for a model as small as this one and q4k for a large one."""
POINT = 0.01
BAD_USAGE = 2
"""The exit code for arguments that the program does not know."""


def load_scenes(folder, count, seed):
    """The scenes in a folder with their pictures' paths; drawn first where they are not there, or are others."""
    truth = os.path.join(folder, "truth.json")
    known = None
    if os.path.exists(truth):
        with open(truth) as file:
            known = json.load(file)
    if known is None or (known["seed"], len(known["scenes"])) != (seed, count):
        print(f"drawing {count} scenes into {folder}", file=sys.stderr)
        draw_scenes(folder, count, seed)
        with open(truth) as file:
            known = json.load(file)
    scenes = known["scenes"]
    return scenes, [os.path.join(folder, scene["image"]) for scene in scenes]


def answers(program, model, kind, images):
    """The program's JSON objects, one a picture; None where it does not know the weight type."""
    command = [program, "detect", "--model", model, "--labels", ",".join(LABELS), "--dtype", kind, "--json", *images]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == BAD_USAGE and "--dtype" in done.stderr:
        print(f"{kind}: passed over, this program does not know it", file=sys.stderr)
        return None
    if done.returncode:
        sys.exit(f"{kind}: palisade failed: {done.stderr.strip()}")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    if len(objects) != len(images):
        sys.exit(f"{kind}: {len(objects)} answers for {len(images)} pictures")
    return objects


def objects_of(answer):
    """(label, box) of each detection, the box as 1024ths in 0..1 as evaluate.py reads them."""
    return [(one["label"], tuple(loc / 1024 for loc in one["locs"])) for one in answer["detections"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help=f"default: {' '.join(TYPES)}")
    parser.add_argument("--palisade", default=os.path.join(ROOT, "target", "release", "palisade"))
    parser.add_argument("--model", default=os.path.join(ROOT, "samples", "demo-model"))
    parser.add_argument("--scenes", default=os.path.join(ROOT, "out", "quality"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=31337)
    options = parser.parse_args()

    scenes, images = load_scenes(options.scenes, options.count, options.seed)
    asked = ask_all(scenes)
    exact, table = None, {}
    for kind in ["f32", *(kind for kind in options.types or TYPES if kind != "f32")]:
        told = answers(options.palisade, options.model, kind, images)
        if told is None:
            continue
        exact = exact or told
        hits, false, missed, _ = score(scenes, asked, [objects_of(answer) for answer in told])
        same = sum(answer["raw"] == other["raw"] for answer, other in zip(told, exact))
        millis = statistics.median(answer["latency_ms"]["inference"] for answer in told)
        table[kind] = (*rates(hits, false, missed), same / len(told), millis, hits + missed)

    objects = table["f32"][4]
    print(f"{len(scenes)} scenes, seed {options.seed}, {objects} objects, drawn with Pillow {PIL.__version__}\n")
    print("| `dtype` | Precision | Recall | Answers equal to f32's | ms a picture |")
    print("|---|---|---|---|---|")
    for kind, (precision, recall, same, millis, _) in table.items():
        print(f"| {kind} | {precision:.3f} | {recall:.3f} | {same:.1%} | {millis:.0f} |")
    for kind in [kind for kind in CHOSEN if kind in table]:
        lost = max(exact - own for exact, own in zip(table["f32"][:2], table[kind][:2]))
        if lost > POINT:
            sys.exit(f"{kind} loses {100 * lost:.1f} points against f32; at most 1 is allowed")


if __name__ == "__main__":
    main()
