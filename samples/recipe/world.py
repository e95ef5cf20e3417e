"""The synthetic street: emoji sprites, street backgrounds and random scenes.

Everything is laid out in fractions of the frame, so one street can be drawn at any size: 1280x720 for
the clip and the test scenes, 640x360 for training (after the squeeze to the model's 224x224 square
the two look alike, and the small one is four times cheaper to draw).

Boxes are (y_min, x_min, y_max, x_max) in 0..1 of the frame, the order PaliGemma answers in.

The rule for objects that straddle the edge of the frame: an object counts as present when at least
half of its area is visible (`COUNTS_FROM`), and its box is the visible part. Below that it is still
drawn but is not in the truth.

usage: python world.py OUT.png [COUNT]      a contact sheet of random scenes with their truth drawn in
"""

import functools
import math
import random
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
"""Debian and Ubuntu: package fonts-noto-color-emoji."""

FONT_SIZE = 109
"""The one size at which this bitmap font has pictures."""

EMOJI = {
    "person": "🚶",
    "cat": "🐈",
    "dog": "🐕",
    "car": "🚗",
    "bus": "🚌",
    "truck": "🚚",
    "bicycle": "🚲",
    "bird": "🐦",
    "horse": "🐎",
    "traffic light": "🚦",
}
LABELS = list(EMOJI)

HEIGHTS = {
    "person": (0.32, 0.50),
    "cat": (0.22, 0.36),
    "dog": (0.24, 0.40),
    "car": (0.24, 0.40),
    "bus": (0.32, 0.50),
    "truck": (0.30, 0.48),
    "bicycle": (0.26, 0.40),
    "bird": (0.20, 0.34),
    "horse": (0.32, 0.48),
    "traffic light": (0.26, 0.42),
}
"""How tall each label is drawn, as a share of the frame's height (a toy town, not to scale)."""

ASPECT = 16 / 9
COUNTS_FROM = 0.5
"""An object is present when at least this share of its area is visible."""

MAX_OVERLAP = 0.12
"""Two objects share at most this much of the smaller one's area."""


@functools.cache
def sprite(label, mirrored=False):
    """The emoji of a label as an RGBA picture, cropped to what is visible of it."""
    if mirrored:
        return sprite(label).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    font = ImageFont.truetype(FONT, FONT_SIZE)
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((12, 12), EMOJI[label], font=font, embedded_color=True)
    opaque = canvas.getchannel("A").point(lambda alpha: 255 if alpha > 40 else 0)
    return canvas.crop(opaque.getbbox())


def sprite_width(label, height):
    """The width, as a share of the frame's width, of a label drawn `height` tall."""
    picture = sprite(label)
    return height * picture.width / picture.height / ASPECT


# ---------------------------------------------------------------------------------------- objects


@dataclass
class Thing:
    """One object in a frame; `top`, `left`, `bottom` and `right` may reach outside of it."""

    label: str
    top: float
    left: float
    height: float
    mirrored: bool = False
    id: int = 0

    @property
    def width(self):
        return sprite_width(self.label, self.height)

    @property
    def bottom(self):
        return self.top + self.height

    @property
    def right(self):
        return self.left + self.width

    def box(self):
        """The visible part: (y_min, x_min, y_max, x_max), clipped to the frame."""
        clip = lambda value: min(1.0, max(0.0, value))
        return clip(self.top), clip(self.left), clip(self.bottom), clip(self.right)

    def visible(self):
        """The share of its area that is inside the frame."""
        return area(self.box()) / (self.height * self.width)

    def counts(self):
        return self.visible() >= COUNTS_FROM


def area(box):
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(a, b):
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a, b):
    shared = intersection(a, b)
    return shared / (area(a) + area(b) - shared + 1e-9)


@functools.cache
def shadow():
    """A soft dark ellipse, put under whatever stands on the ground."""
    picture = Image.new("L", (96, 32), 0)
    ImageDraw.Draw(picture).ellipse([10, 8, 86, 24], fill=110)
    return picture.filter(ImageFilter.GaussianBlur(5))


def draw_things(image, things):
    """Draw objects into a frame, the ones farther up (farther away) first."""
    width, height = image.size
    for thing in sorted(things, key=lambda thing: thing.bottom):
        pixel_w, pixel_h = max(2, round(thing.width * width)), max(2, round(thing.height * height))
        x, y = round(thing.left * width), round(thing.top * height)
        if thing.label == "traffic light":
            draw_pole(image, thing)
        elif thing.label != "bird":
            dark = shadow().resize((int(pixel_w * 1.1), max(3, int(pixel_h * 0.16))))
            image.paste((20, 20, 28), (x - int(pixel_w * 0.05), y + pixel_h - int(dark.height * 0.6)), dark)
        paste_exactly(image, thing)
    return image


def paste_exactly(image, thing):
    """Paste a sprite at fractions of a pixel, so that what moves slowly moves smoothly."""
    width, height = image.size
    margin = 12  # source pixels, more than one pixel of the smallest drawing
    picture = sprite(thing.label, thing.mirrored)
    padded = padded_sprite(thing.label, thing.mirrored, margin)
    left, top = math.floor(thing.left * width), math.floor(thing.top * height)
    right, bottom = math.ceil(thing.right * width), math.ceil(thing.bottom * height)
    per_x, per_y = picture.width / (thing.width * width), picture.height / (thing.height * height)
    source = (
        margin + (left - thing.left * width) * per_x,
        margin + (top - thing.top * height) * per_y,
        margin + (right - thing.left * width) * per_x,
        margin + (bottom - thing.top * height) * per_y,
    )
    drawn = padded.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=source)
    image.paste(drawn, (left, top), drawn)


@functools.cache
def padded_sprite(label, mirrored, margin):
    picture = sprite(label, mirrored)
    canvas = Image.new("RGBA", (picture.width + 2 * margin, picture.height + 2 * margin), (0, 0, 0, 0))
    canvas.paste(picture, (margin, margin))
    return canvas


def draw_pole(image, light):
    """The pole under a traffic light; not part of its box."""
    width, height = image.size
    middle, half = (light.left + light.right) / 2 * width, max(1.0, light.width * width * 0.05)
    foot = max(light.bottom + 0.06, 0.66) * height
    pen = ImageDraw.Draw(image)
    pen.rectangle([middle - half, light.bottom * height - 2, middle + half, foot], fill=(70, 74, 80))
    pen.rectangle([middle - 3 * half, foot - 2 * half, middle + 3 * half, foot], fill=(60, 63, 68))


# ------------------------------------------------------------------------------------ backgrounds

SKIES = [  # top of the sky, horizon, lit windows, the light on everything under the sky
    ((92, 164, 226), (206, 232, 246), (176, 206, 222), 1.00),  # clear day
    ((138, 178, 212), (232, 236, 232), (170, 196, 210), 0.97),  # pale morning
    ((150, 160, 172), (206, 210, 214), (186, 196, 200), 0.90),  # overcast
    ((96, 132, 190), (250, 206, 160), (252, 222, 160), 0.95),  # golden evening
    ((58, 70, 120), (222, 150, 140), (255, 220, 140), 0.78),  # dusk
]
WALLS = [(202, 120, 96), (222, 190, 148), (176, 182, 190), (232, 214, 186), (150, 96, 84), (130, 150, 168),
         (214, 160, 130), (188, 204, 190), (228, 224, 214), (168, 140, 120), (120, 128, 140), (236, 200, 120)]
AWNINGS = [(190, 60, 56), (60, 120, 90), (60, 96, 160), (220, 160, 60), (120, 80, 130)]
LEAVES = [(86, 140, 76), (110, 158, 82), (70, 120, 84), (150, 150, 70), (190, 130, 70)]


class Pen:
    """Draws in fractions of the frame, with a little colour wobble and the light of the hour."""

    def __init__(self, image, rng, light):
        self.draw, self.rng, self.light = ImageDraw.Draw(image), rng, light
        self.w, self.h = image.size

    def shade(self, colour, wobble=0, factor=1.0):
        shift = self.rng.randint(-wobble, wobble) if wobble else 0
        return tuple(int(min(255, max(0, (c + shift) * self.light * factor))) for c in colour)

    def rect(self, left, top, right, bottom, colour):
        x0, y0, x1, y1 = left * self.w, top * self.h, right * self.w - 1, bottom * self.h - 1
        if x1 >= x0 and y1 >= y0:
            self.draw.rectangle([x0, y0, x1, y1], fill=colour)

    def disc(self, x, y, radius, colour, flat=1.0):
        """A circle whose radius is a share of the frame's height; `flat` below 1 squashes it."""
        rx, ry = radius * self.h, radius * self.h * flat
        self.draw.ellipse([x * self.w - rx, y * self.h - ry, x * self.w + rx, y * self.h + ry], fill=colour)

    def polygon(self, points, colour):
        self.draw.polygon([(x * self.w, y * self.h) for x, y in points], fill=colour)


def draw_street(rng, width=1280, height=720):
    """A random street without objects. The same generator state gives the same street at any size."""
    top, horizon, lit, light = rng.choice(SKIES)
    light *= rng.uniform(0.92, 1.06)
    wall_line = rng.uniform(0.50, 0.58)  # where the houses meet the pavement
    kerb = wall_line + rng.uniform(0.09, 0.14)  # where the pavement meets the road

    fade = np.clip(np.linspace(0, 1, height) / wall_line, 0, 1)[:, None, None]
    sky = np.array(top) * (1 - fade) + np.array(horizon) * fade + rng.uniform(-8, 8)
    column = np.clip(sky, 0, 255).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(column, (height, width, 3))))
    pen = Pen(image, rng, light)

    draw_sky(pen, rng, horizon)
    left = rng.uniform(-0.12, 0.0)
    while left < 1:
        right = left + rng.uniform(0.10, 0.22)
        if rng.random() < 0.88:
            draw_house(pen, rng, left, right, wall_line, lit)
        else:  # a gap with a hedge
            pen.rect(left, wall_line - rng.uniform(0.06, 0.14), right, wall_line, pen.shade(rng.choice(LEAVES), 12))
        left = right

    stone = rng.randint(160, 200)
    pen.rect(0, wall_line, 1, kerb, pen.shade((stone, stone - 4, stone - 12)))
    slab, joint = rng.uniform(0.04, 0.08), pen.shade((stone - 22, stone - 26, stone - 34))
    for number in range(int(1 / slab) + 1):
        pen.rect(number * slab, wall_line, number * slab + 0.0016, kerb, joint)
    pen.rect(0, kerb, 1, kerb + 0.014, pen.shade((stone - 50, stone - 52, stone - 56)))

    draw_road(pen, rng, kerb + 0.014)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        draw_tree(pen, rng, rng.random(), wall_line + rng.uniform(0.01, 0.05))
    for _ in range(rng.choice([0, 0, 1, 2])):
        draw_lamp(pen, rng, rng.random(), kerb - 0.01)
    return image


def draw_sky(pen, rng, horizon):
    if rng.random() < 0.4:
        pen.disc(rng.random(), rng.uniform(0.06, 0.25), rng.uniform(0.03, 0.06), (255, 240, 196))
    for _ in range(rng.choice([0, 1, 2, 3, 4])):
        x, y, size = rng.random(), rng.uniform(0.04, 0.24), rng.uniform(0.025, 0.05)
        white = tuple(min(255, int(c * 0.4 + 255 * 0.6)) for c in horizon)
        for step in range(-2, 3):
            pen.disc(x + step * size * 0.5, y, size * (1.2 - 0.25 * abs(step)), white, 0.7)


def draw_house(pen, rng, left, right, ground, lit):
    wall = rng.choice(WALLS)
    face = pen.shade(wall, 14)
    roof_line = rng.uniform(0.10, 0.34)
    pen.rect(left, roof_line, right, ground, face)
    dark = pen.shade(wall, 0, 0.62)
    if rng.random() < 0.35:  # a gable
        pen.polygon([(left, roof_line), ((left + right) / 2, roof_line - rng.uniform(0.05, 0.10)), (right, roof_line)], dark)
    else:  # a cornice
        pen.rect(left - 0.004, roof_line - 0.014, right + 0.004, roof_line + 0.006, dark)

    floor = ground - 0.15
    columns, rows = rng.randint(2, 4), max(1, int((floor - roof_line) / rng.uniform(0.09, 0.13)))
    pane = pen.shade((70, 88, 108), 14)
    warm = tuple(min(255, int(c)) for c in lit)
    glowing, frame = rng.uniform(0.1, 0.6), pen.shade(wall, 0, 1.15)
    step_x, step_y = (right - left) / columns, (floor - roof_line - 0.02) / rows
    for row in range(rows):
        for column in range(columns):
            x, y = left + (column + 0.27) * step_x, roof_line + 0.025 + (row + 0.1) * step_y
            w, h = step_x * 0.46, step_y * 0.62
            pen.rect(x - 0.002, y - 0.004, x + w + 0.002, y + h + 0.004, frame)
            pen.rect(x, y, x + w, y + h, warm if rng.random() < glowing else pane)

    door = left + (right - left) * rng.uniform(0.08, 0.6)
    door_w = min(0.045, (right - left) * 0.3)
    if rng.random() < 0.45:  # a shop front with a striped awning
        glass_l, glass_r = left + 0.01, right - 0.01
        pen.rect(glass_l, floor + 0.055, glass_r, ground - 0.015, pen.shade(lit, 6, 0.9))
        colour, stripes = rng.choice(AWNINGS), 8
        for stripe in range(stripes):
            part = (glass_r - glass_l) / stripes
            tint = pen.shade(colour) if stripe % 2 else pen.shade((238, 232, 222))
            pen.rect(glass_l + stripe * part, floor + 0.02, glass_l + (stripe + 1) * part, floor + 0.06, tint)
    pen.rect(door, floor + 0.035, door + door_w, ground, pen.shade((96, 66, 50), 20))


def draw_road(pen, rng, top):
    grey = rng.randint(78, 120)
    pen.rect(0, top, 1, 1, pen.shade((grey, grey, grey + 6)))
    for _ in range(rng.choice([0, 1, 2])):  # mended patches
        x, y = rng.random(), rng.uniform(top + 0.02, 0.95)
        pen.rect(x, y, x + rng.uniform(0.05, 0.2), y + rng.uniform(0.02, 0.06), pen.shade((grey - 9, grey - 9, grey - 4)))
    paint = pen.shade((226, 224, 210), 10)
    lane = top + (1 - top) * rng.uniform(0.42, 0.58)
    dash, phase = rng.uniform(0.06, 0.11), rng.random()
    for number in range(-1, int(1 / dash) + 1):
        x = (number + phase) * dash
        pen.rect(x, lane, x + dash * 0.55, lane + 0.011, paint)
    if rng.random() < 0.4:
        pen.rect(0, top + 0.022, 1, top + 0.030, paint)
    if rng.random() < 0.35:  # a zebra crossing
        x = rng.uniform(0.05, 0.85)
        for stripe in range(7):
            y = top + 0.02 + (1 - top - 0.02) * stripe / 7
            pen.rect(x, y, x + 0.09, y + (1 - top) / 15, paint)


def draw_tree(pen, rng, x, ground):
    crown, size = pen.shade(rng.choice(LEAVES), 14), rng.uniform(0.07, 0.11)
    y = ground - rng.uniform(0.20, 0.30)
    pen.rect(x - 0.006, y, x + 0.006, ground, pen.shade((104, 78, 58), 8))
    for dx, dy, part in ((-0.5, 0.25, 0.75), (0.5, 0.25, 0.75), (0, -0.3, 0.9), (0, 0.2, 0.9)):
        pen.disc(x + dx * size / ASPECT, y + dy * size, size * part, crown)


def draw_lamp(pen, rng, x, ground):
    metal, top = pen.shade((62, 66, 72)), rng.uniform(0.14, 0.24)
    arm = rng.choice([-0.03, 0.03])
    pen.rect(x - 0.0025, top, x + 0.0025, ground, metal)
    pen.rect(min(x, x + arm), top, max(x, x + arm), top + 0.009, metal)
    pen.disc(x + arm, top + 0.018, 0.014, (255, 238, 190))


# ----------------------------------------------------------------------------------------- scenes


def random_thing(rng, label, anywhere=False, margin=0.0):
    """An object of this label at a place where such a thing would be (or anywhere at all).

    `margin` widens the ranges of sizes and places by that share. Training uses it, since what is at
    the very end of a range is seen from one side only, and then learnt badly.
    """
    smallest, tallest = HEIGHTS[label]
    height = rng.uniform(smallest * (1 - margin), tallest * (1 + margin / 2))
    if anywhere:
        top = rng.uniform(0, 1 - height)
    elif label == "traffic light":
        top = rng.uniform(0.10 - margin / 2, 0.32 + margin / 2)
    elif label == "bird" and rng.random() < 0.8:
        top = rng.uniform(0.02, 0.40)
    elif label in ("car", "bus", "truck"):
        top = rng.uniform(0.66, 0.98) - height
    else:
        top = rng.uniform(0.60, 0.98) - height
    thing = Thing(label, max(0.0, top), 0.0, height, mirrored=rng.random() < 0.5)
    thing.left = rng.uniform(0, 1 - thing.width)
    return thing


def straddle(rng, thing, avoid=None):
    """Push an object partly out of the frame; `avoid` is a band of visible shares not to draw."""
    share = rng.uniform(0.1, 0.95)
    while avoid and avoid[0] < share < avoid[1]:
        share = rng.uniform(0.1, 0.95)
    hidden = (1 - share) * thing.width
    thing.left = -hidden if rng.random() < 0.5 else 1 - thing.width + hidden


def random_things(rng, counts=(1, 3, 4, 3, 2), labels=LABELS, at_edge=0.2, anywhere=0.0, avoid=None, margin=0.0):
    """Zero to four objects that hardly overlap. `counts` weighs how many there are."""
    things = []
    for _ in range(rng.choices(range(len(counts)), counts)[0]):
        label = rng.choice(labels)
        for _attempt in range(12):
            thing = random_thing(rng, label, anywhere=rng.random() < anywhere, margin=margin)
            if rng.random() < at_edge:
                straddle(rng, thing, avoid)
            box = thing.box()
            room = lambda other: intersection(box, other) <= MAX_OVERLAP * min(area(box), area(other))
            if all(room(other.box()) for other in things):
                thing.id = len(things) + 1
                things.append(thing)
                break
    return things


def jitter(rng, image):
    """The camera: a little more or less light and contrast, sometimes a little noise."""
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.86, 1.10))
    if rng.random() < 0.3:
        image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.88, 1.10))
    if rng.random() < 0.2:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 4), (image.height, image.width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image


def fresh_scene(rng, width=1280, height=720):
    """A new street with new objects: what the tests of the model are made of.

    Objects of which 40 to 60 per cent are visible are not drawn here: whether such a thing counts is
    a matter of the rule above, not of sight. (The clip does show them, as they come and go.)
    """
    image = draw_street(rng, width, height)
    things = random_things(rng, avoid=(0.4, 0.6))
    return jitter(rng, draw_things(image, things)), things


def main():
    out, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 12
    rng, sheet = random.Random(1), Image.new("RGB", (4 * 480, (count + 3) // 4 * 270))
    for number in range(count):
        image, things = fresh_scene(rng, 1280, 720)
        pen = ImageDraw.Draw(image)
        for thing in things:
            y0, x0, y1, x1 = thing.box()
            colour = (255, 40, 40) if thing.counts() else (255, 255, 0)
            pen.rectangle([x0 * 1280, y0 * 720, x1 * 1280 - 1, y1 * 720 - 1], outline=colour, width=3)
        sheet.paste(image.resize((480, 270)), (number % 4 * 480, number // 4 * 270))
    sheet.save(out)


if __name__ == "__main__":
    main()
