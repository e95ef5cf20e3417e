"""Draw the sample clip, or fresh scenes to test the model on.

usage: python draw_street.py clip OUT.mp4 TRUTH.json                     needs ffmpeg with libx264
       python draw_street.py scenes DIR [--count 300] [--seed 31337]     DIR/0000.jpg ... and DIR/truth.json
       python draw_street.py frame SECONDS OUT.png                       one frame of the clip

Both show the streets of world.py: the clip one of them with a fixed choreography, each scene a new one
drawn from the seed. Truth, of a frame or of a scene:

  objects   what counts: id, label, box [y_min, x_min, y_max, x_max] of the visible part in 0..1 of the
            frame, and the share of the object that is visible, 0.5 or more
  edge      what is drawn but does not count: objects of which less than half is in the frame

The clip's truth also lists `visits`: for each object the first and the last frame in which it counts.
"""

import argparse
import json
import math
import os
import random
import subprocess
from dataclasses import dataclass

from PIL import Image

from world import LABELS, MAX_OVERLAP, Thing, area, draw_street, draw_things, fresh_scene, intersection, sprite_width

WIDTH, HEIGHT, FPS, SECONDS = 1280, 720, 25, 30
STREET_SEED = 104
"""Which of the random streets the clip shows."""

PAVEMENT, ROAD = 0.62, 0.95  # where the feet are on the pavement, and the wheels on the road
PASSAGE = 1.2
"""Seconds that coming in and going out take: fast at the edge of the frame and slow inside it, so that
few frames show an object about half visible."""


@dataclass
class Visit:
    """One object's way through the clip; `comes` and `goes` are "left", "right" or "stays"."""

    label: str
    height: float
    bottom: float
    start: float
    comes: str
    near: float  # where its middle is once it has come in ...
    far: float  # ... and when it starts to go
    end: float
    goes: str
    bounce: float = 0.0

    def at(self, time):
        """The object at this time, or None when it is not there."""
        width = sprite_width(self.label, self.height)
        outside = {"left": -width / 2 - 0.01, "right": 1 + width / 2 + 0.01}
        into = self.start + PASSAGE if self.comes != "stays" else self.start
        out = self.end - PASSAGE if self.goes != "stays" else self.end
        if not self.start <= time < self.end:
            return None
        if time < into:  # slowing down
            part = 1 - (time - self.start) / PASSAGE
            middle = self.near + (outside[self.comes] - self.near) * part**2
            rightwards = self.comes == "left"
        elif time < out:
            middle = self.near + (self.far - self.near) * (time - into) / (out - into)
            rightwards = self.far > self.near if self.far != self.near else self.comes == "left"
        else:  # gathering speed
            part = (time - out) / PASSAGE
            middle = self.far + (outside[self.goes] - self.far) * part**2
            rightwards = self.goes == "right"
        hop = abs(math.sin(time * 7)) * self.bounce
        return Thing(self.label, self.bottom - self.height - hop, middle - width / 2, self.height, mirrored=rightwards)


CHOREOGRAPHY = [
    # label, height, bottom, start, comes from, to x, until x, end, goes to, bounce
    Visit("traffic light", 0.32, 0.42, 0.0, "stays", 0.86, 0.86, 30.0, "stays"),
    Visit("person", 0.36, PAVEMENT, 0.4, "left", 0.12, 0.42, 7.4, "right", 0.006),
    Visit("car", 0.29, ROAD, 2.4, "left", 0.44, 0.52, 8.2, "right"),
    Visit("bird", 0.27, 0.35, 4.6, "left", 0.18, 0.60, 11.0, "left", 0.02),
    Visit("bus", 0.35, ROAD + 0.02, 9.0, "right", 0.66, 0.50, 15.0, "left"),
    Visit("dog", 0.26, PAVEMENT, 8.2, "left", 0.16, 0.62, 14.6, "right", 0.012),
    Visit("cat", 0.25, PAVEMENT, 14.8, "left", 0.12, 0.50, 21.4, "right", 0.010),
    Visit("truck", 0.34, ROAD + 0.01, 15.6, "right", 0.68, 0.68, 28.0, "left"),  # parked for nine seconds
    Visit("horse", 0.34, ROAD, 17.4, "left", 0.14, 0.36, 23.2, "left", 0.016),
    Visit("bicycle", 0.29, PAVEMENT + 0.01, 21.6, "left", 0.14, 0.62, 27.4, "right"),
    Visit("bird", 0.27, 0.33, 23.4, "left", 0.14, 0.50, 28.4, "left", 0.02),
    Visit("person", 0.36, PAVEMENT, 27.2, "left", 0.12, 0.24, 30.0, "stays", 0.006),
    Visit("car", 0.29, ROAD, 27.8, "right", 0.64, 0.60, 30.0, "stays"),
]


def clip_things(frame):
    """The objects of one frame of the clip, those that count and those that do not."""
    things = []
    for number, visit in enumerate(CHOREOGRAPHY, start=1):
        thing = visit.at(frame / FPS)
        if thing and thing.visible() > 0:
            thing.id = number
            things.append(thing)
    return things


def record(thing):
    return {
        "id": thing.id,
        "label": thing.label,
        "box": [round(value, 4) for value in thing.box()],
        "visible": round(thing.visible(), 3),
    }


def truth_of(things):
    return {
        "objects": [record(thing) for thing in things if thing.counts()],
        "edge": [record(thing) for thing in things if not thing.counts()],
    }


def clip_street():
    """The clip's street, drawn twice as large and shrunk, for smooth edges."""
    street = draw_street(random.Random(STREET_SEED), 2 * WIDTH, 2 * HEIGHT)
    return street.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def draw_clip(path, truth_path):
    street, frames = clip_street(), []
    command = ["ffmpeg", "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}"]
    command += ["-r", str(FPS), "-i", "-", "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-c:v", "libx264"]
    command += ["-preset", "slow", "-crf", "22", "-profile:v", "high", "-pix_fmt", "yuv420p", "-bf", "0"]
    command += ["-g", str(FPS), "-keyint_min", str(FPS), "-sc_threshold", "0", "-colorspace", "bt709"]
    command += ["-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv", "-threads", "1"]
    command += ["-movflags", "+faststart", "-map_metadata", "-1", "-fflags", "+bitexact", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
        for number in range(FPS * SECONDS):
            things = clip_things(number)
            encoder.stdin.write(draw_things(street.copy(), things).tobytes())
            frames.append({"frame": number, "time": round(number / FPS, 2), **truth_of(things)})
        encoder.stdin.close()
    if encoder.returncode:
        raise SystemExit("ffmpeg failed")

    visits = []
    for number, visit in enumerate(CHOREOGRAPHY, start=1):
        seen = [frame["frame"] for frame in frames if any(item["id"] == number for item in frame["objects"])]
        visits.append({"id": number, "label": visit.label, "first_frame": seen[0], "last_frame": seen[-1]})
    head = {"video": os.path.basename(path), "width": WIDTH, "height": HEIGHT, "fps": FPS, "labels": LABELS}
    head["visits"] = visits
    write_truth(truth_path, head, "frames", frames)
    report(frames, visits)


def report(frames, visits):
    """What the clip shows, and how often objects overlap more than a fresh scene allows."""
    for visit in visits:
        first, last = visit["first_frame"] / FPS, visit["last_frame"] / FPS
        print(f"{visit['id']:3} {visit['label']:14} {first:5.2f} s to {last:5.2f} s")
    crowded = 0
    for frame in frames:
        boxes = [item["box"] for item in frame["objects"] + frame["edge"]]
        pairs = [(a, b) for n, a in enumerate(boxes) for b in boxes[:n]]
        crowded += any(intersection(a, b) > MAX_OVERLAP * min(area(a), area(b)) for a, b in pairs)
    most = max(len(frame["objects"]) for frame in frames)
    objects = sum(len(frame["objects"]) for frame in frames)
    print(f"{len(frames)} frames, {objects} objects in all, {most} at most, overlapping in {crowded} frames")


def write_truth(path, head, name, rows):
    """JSON with one frame or scene per line."""
    with open(path, "w") as file:
        file.write(json.dumps(head)[:-1] + f', "{name}": [\n')
        file.write(",\n".join(json.dumps(row, separators=(",", ":")) for row in rows))
        file.write("\n]}\n")


def draw_scenes(folder, count, seed):
    os.makedirs(folder, exist_ok=True)
    rng, scenes = random.Random(seed), []
    for number in range(count):
        image, things = fresh_scene(rng, WIDTH, HEIGHT)
        name = f"{number:04}.jpg"
        image.save(os.path.join(folder, name), quality=92)
        scenes.append({"image": name, **truth_of(things)})
    head = {"seed": seed, "width": WIDTH, "height": HEIGHT, "labels": LABELS}
    write_truth(os.path.join(folder, "truth.json"), head, "scenes", scenes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    clip = commands.add_parser("clip")
    clip.add_argument("out")
    clip.add_argument("truth")
    scenes = commands.add_parser("scenes")
    scenes.add_argument("folder")
    scenes.add_argument("--count", type=int, default=300)
    scenes.add_argument("--seed", type=int, default=31337)
    frame = commands.add_parser("frame")
    frame.add_argument("seconds", type=float)
    frame.add_argument("out")
    options = parser.parse_args()
    if options.command == "clip":
        draw_clip(options.out, options.truth)
    elif options.command == "scenes":
        draw_scenes(options.folder, options.count, options.seed)
    else:
        draw_things(clip_street(), clip_things(round(options.seconds * FPS))).save(options.out)


if __name__ == "__main__":
    main()
