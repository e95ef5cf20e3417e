"""Precision and recall of a model on drawn scenes or on the clip, with transformers.

usage: python evaluate.py MODEL_DIR SCENES_DIR            scenes and truth.json from draw_street.py scenes
       python evaluate.py MODEL_DIR CLIP.mp4 TRUTH.json   every fifth frame (--every); needs ffmpeg

Three ways of asking, each answered by plain greedy decoding:
  all      all ten labels at once, "detect person ; cat ; ..."
  subset   a random one to five labels per picture, present ones and absent ones
  comma    the same subsets written "detect person; cat", the other separator in use

An answer counts when an object of the same label overlaps it with IoU >= 0.5; one to one, the order
of the answer decides. Only asked labels are in the truth. The weights are used as stored (f16
values), the arithmetic is f32. `--free-edge` also reports figures in which objects of which less than
half is visible (drawn, but not in the truth) neither hurt nor help when the model names them.
"""

import argparse
import json
import os
import re
import subprocess
from collections import defaultdict

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import PaliGemmaForConditionalGeneration

from matching import ask_all, ask_subset, rates, score

SIDE = 224
ANSWER = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*([^;<]+)")
BOS = 2


def squeeze(image):
    """What the model sees of a frame: the whole of it, squeezed to a square, bicubic, as u8."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def to_pixels(images):
    """A batch of u8 pictures as the model's input: channels first, -1..1."""
    stacked = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    return torch.from_numpy(stacked).float() / 127.5 - 1


def prompt_text(labels, separator=" ; "):
    return "detect " + separator.join(labels) + "\n"


def parse(text):
    """The answer's objects: (label, box), boxes in 0..1."""
    return [(label.strip(), tuple(int(v) / 1024 for v in box)) for *box, label in ANSWER.findall(text)]


def answers(model, tokenizer, images, prompts, batch=25, max_new_tokens=64):
    """Greedy answers. Prompts of one length share a batch, so nothing has to be padded."""
    image_token = model.config.image_token_id
    image_tokens = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    rows = [[image_token] * image_tokens + [BOS] + tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        groups[len(row)].append(number)
    result = [None] * len(rows)
    for length, numbers in groups.items():
        for start in range(0, len(numbers), batch):
            part = numbers[start : start + batch]
            ids = torch.tensor([rows[number] for number in part])
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids,
                    pixel_values=to_pixels([images[number] for number in part]),
                    attention_mask=torch.ones_like(ids),
                    token_type_ids=torch.zeros_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                )
            for number, row in zip(part, out[:, length:].tolist()):
                result[number] = parse(tokenizer.decode(row, skip_special_tokens=True))
    return result


def load_model(folder):
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def load_scenes(folder):
    with open(os.path.join(folder, "truth.json")) as file:
        scenes = json.load(file)["scenes"]
    return [squeeze(Image.open(os.path.join(folder, scene["image"]))) for scene in scenes], scenes


def load_clip(path, truth_path, every):
    """Every so-manyth decoded frame of the clip, with its truth."""
    with open(truth_path) as file:
        truth = json.load(file)
    width, height = truth["width"], truth["height"]
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    images, scenes = [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as decoder:
        for number, frame in enumerate(truth["frames"]):
            data = decoder.stdout.read(width * height * 3)
            if number % every == 0:
                images.append(squeeze(Image.frombytes("RGB", (width, height), data)))
                scenes.append(frame)
    return images, scenes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source", help="a folder of scenes, or a clip")
    parser.add_argument("truth", nargs="?", help="the clip's truth")
    parser.add_argument("--every", type=int, default=5, help="of the clip, every so many frames")
    parser.add_argument("--seed", type=int, default=7, help="for the random subsets asked")
    parser.add_argument("--free-edge", action="store_true")
    parser.add_argument("--faults", action="store_true", help="list what went wrong")
    options = parser.parse_args()

    model, tokenizer = load_model(options.model)
    if options.truth:
        images, scenes = load_clip(options.source, options.truth, options.every)
    else:
        images, scenes = load_scenes(options.source)
    subset = ask_subset(scenes, options.seed)
    for name, asked, separator in (("all", ask_all(scenes), " ; "), ("subset", subset, " ; "), ("comma", subset, "; ")):
        found = answers(model, tokenizer, images, [prompt_text(labels, separator) for labels in asked])
        hits, false, missed, faults = score(scenes, asked, found)
        precision, recall = rates(hits, false, missed)
        print(f"{name:7} precision {precision:.3f} recall {recall:.3f}  ({len(scenes)} pictures, {hits + missed} objects)")
        if options.free_edge:
            precision, recall = rates(*score(scenes, asked, found, free_edge=True)[:3])
            print(f"{'':7} precision {precision:.3f} recall {recall:.3f}  with objects under half visible left out")
        if options.faults:
            for fault, count in faults.most_common():
                print(f"        {count:4} {fault}")


if __name__ == "__main__":
    main()
