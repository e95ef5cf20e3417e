"""Make pillow.json: what Pillow's bicubic makes of drawn pictures of many sizes, the 4K frame among them.

usage: python pillow.py > pillow.json        made with Pillow 13.0.0 and numpy 2.4.6

The tests of src/model/resize.rs draw the same pictures (gradients, hard edges, noise, all of them by whole
numbers) and must come to the same bytes: `fnv1a` is the 64-bit FNV-1a hash of all of them, row by row, and
`points` are some of them, [y, x, channel, value], which show where a difference is and how large.
"""

import json

import numpy as np
from PIL import Image

SIZES = [
    # width, height, sides
    (3840, 2160, (224, 448, 896)),
    (2160, 3840, (224,)),
    (1920, 1080, (224, 448)),
    (641, 359, (224, 448)),
    (359, 641, (224,)),
    (64, 48, (224, 896)),
    (224, 224, (224, 448)),
    (225, 223, (224,)),
    (3000, 10, (224,)),
    (10, 3000, (224,)),
    (2000, 7000, (224,)),
    (1, 1, (224,)),
    (2, 3, (224,)),
    (1, 500, (224,)),
]


def drawn(width, height):
    """The picture as [height, width, 3]. Whole numbers of 32 bits that wrap around, as in the test."""
    y, x, c = np.indices((height, width, 3), dtype=np.uint32)
    noise = ((x * 73856093) ^ (y * 19349663) ^ (c * 83492791)) * np.uint32(2654435761) >> 24
    slope = (x * 255 // width + y * 255 // height + c * 85) % 256
    checks = (x // 37 + y // 23 + c) % 2 * 255
    rough = np.where(noise < 128, slope // 2, 255 - slope // 2)
    kind = (x * 8 // width + y * 4 // height) % 4
    return np.choose(kind, [slope, checks, noise, rough]).astype(np.uint8)


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def case(width, height, side):
    picture = Image.fromarray(drawn(width, height))
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
    places = [(n * 7919 % side, n * 104729 % side, n % 3) for n in range(24)]
    points = [[*place, int(pixels[place])] for place in places]
    digest = f"{fnv1a(pixels.tobytes()):016x}"
    return {"width": width, "height": height, "side": side, "fnv1a": digest, "points": points}


if __name__ == "__main__":
    cases = [case(width, height, side) for width, height, sides in SIZES for side in sides]
    print("[\n" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in cases) + "\n]")
