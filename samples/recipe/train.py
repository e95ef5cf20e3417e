"""Train the small PaliGemma 2 of samples/demo-model on a CPU.

usage: python train.py START_DIR OUT_DIR MINUTES [--lr 6e-4] [--grid 64] [--fast] [--crowded]

START_DIR is a snapshot folder (config.json, tokenizer.json, model.safetensors); if it also holds the
training.pt that this script leaves behind, its f32 weights and its helper head are taken up again.
The learning rate rises for 100 steps and then falls to zero over MINUTES. Every few minutes the
averaged weights are measured on scenes that training never sees, and kept in OUT_DIR when they are
the best so far.  `--fresh` starts from random weights with START_DIR's architecture.

What makes so small a model learn to localise in about two hours of two CPU cores:

- A helper head on the vision tower says for each of the 8x8 patches which labels are on it, and the
  box of the object. Without this dense signal the answer's loss alone does not localise at all in
  20 minutes. The head is thrown away in the end; the checkpoint is plain PaliGemma 2.
- From scratch the tower learns alone first (`--fresh` spends 18 % of the time on it), then all.
- Coordinates are rounded to `--grid` steps. With 1024 values an unsure model spreads a box token over
  so many neighbours that "end of answer" beats each of them and the answer is empty. Start with 32;
  64 once it is sure. Targets are soft over the neighbouring values, ever harder as training goes on.
- A coordinate weighs the more the smaller the object is in its direction, as in the IoU.
- The matrices of the layers are trained with Muon, all else with AdamW; the loss then fell in clearly fewer
  steps than with AdamW alone (seen in one run each, not studied).
- Answers follow the order of the asked labels, then top to bottom, then left to right.
- Each picture is asked about twice: the tower's work and the drawing are shared.
- An exponential average of the weights is what is measured and saved.
"""

import argparse
import io
import json
import math
import os
import random
import shutil
import time
from queue import Full

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, PaliGemmaForConditionalGeneration

import evaluate
from world import LABELS, draw_street, draw_things, fresh_scene, jitter, random_things

PICTURES, PROMPTS = 16, 2
"""A batch: so many pictures, so many prompts about each."""
PATCHES = 8
IMAGE_TOKENS = PATCHES * PATCHES
PAD, EOS, BOS = 0, 1, 2
STREETS = 300
"""How many backgrounds are kept; each scene replaces one of them with probability `RENEW`."""
RENEW = 0.25
SIZES = [(480, 270)] * 6 + [(640, 360)] * 3 + [(1280, 720)]
"""Streets are drawn at several sizes, so that the model does not depend on the sharpness of one."""
HARD = ["bird", "traffic light"]
"""Labels that `--crowded` draws twice as often."""
VALIDATION_SEED = 4242


# ------------------------------------------------------------------------------------------- data


def training_scene(rng, streets, crowded=False):
    """A picture as the model sees it, and its objects. Wilder than `fresh_scene`: flipped and reused
    streets, compression artefacts, wider ranges of sizes, one object in ten at an impossible place."""
    if rng.random() < RENEW:
        streets[rng.randrange(len(streets))] = draw_street(rng, *rng.choice(SIZES))
    image = rng.choice(streets)
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image.copy()
    kind = {"counts": (1, 2, 3, 5, 6), "labels": LABELS + HARD} if crowded else {}
    things = random_things(rng, at_edge=0.25, anywhere=0.10, margin=0.16, **kind)
    draw_things(image, things)
    if rng.random() < 0.15:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(40, 92))
        image = Image.open(packed)
    image = image.convert("RGB").resize((evaluate.SIDE, evaluate.SIDE), Image.Resampling.BICUBIC)
    return np.asarray(jitter(rng, image)), things


def ask(rng, things, crowded=False):
    """The labels of one prompt: all ten in a third of the prompts or in half, else one to nine of them."""
    if rng.random() < (0.5 if crowded else 0.35):
        return rng.sample(LABELS, len(LABELS))
    present = sorted({thing.label for thing in things})
    labels, count = [], rng.choice([1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9])
    while len(labels) < count:
        pool = [label for label in (present if rng.random() < 0.7 else LABELS) if label not in labels]
        labels.append(rng.choice(pool or [label for label in LABELS if label not in labels]))
    return labels


def location(value, grid):
    return f"<loc{min(1023, max(0, round(value * grid) * (1024 // grid))):04d}>"


def sorted_answer(things, labels):
    """The objects of an answer in its order."""
    asked = [thing for thing in things if thing.label in labels and thing.counts()]
    return sorted(asked, key=lambda thing: (labels.index(thing.label), thing.box()[0], thing.box()[1]))


def answer_text(things, labels, grid):
    """The wanted answer, coordinates rounded to `grid` steps."""
    asked = sorted_answer(things, labels)
    return " ; ".join("".join(location(v, grid) for v in thing.box()) + " " + thing.label for thing in asked)


def weights(things, labels):
    """How much each coordinate of the answer counts: an error is as bad as it is large for the object."""
    result = []
    for thing in sorted_answer(things, labels):
        y0, x0, y1, x1 = thing.box()
        across, along = (min(2.5, max(0.6, 0.25 / max(extent, 0.01))) for extent in (y1 - y0, x1 - x0))
        result += [across, along, across, along]
    return result


def dense_targets(things):
    """What the helper head learns: per patch the labels on it, whether it is owned, and the owner's box."""
    target = np.zeros((len(LABELS) + 5, PATCHES, PATCHES), np.float32)
    for thing in things:
        if not thing.counts():
            continue
        y0, x0, y1, x1 = box = thing.box()
        rows = slice(int(y0 * PATCHES), min(PATCHES - 1, int(y1 * PATCHES - 1e-6)) + 1)
        columns = slice(int(x0 * PATCHES), min(PATCHES - 1, int(x1 * PATCHES - 1e-6)) + 1)
        target[LABELS.index(thing.label), rows, columns] = 1
        target[len(LABELS), rows, columns] = 1
        target[len(LABELS) + 1 :, rows, columns] = np.array(box, np.float32)[:, None, None]
    return target


def make_batch(rng, streets, tokenizer, grid, crowded=False):
    """Pictures, token ids, the length of each prompt, the wanted next tokens, the weights of the wanted
    coordinates in reading order, the dense targets.

    The rows of the prompts about one picture are neighbours."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    pictures, rows, weight, dense = [], [], [], []
    for _ in range(PICTURES):
        picture, things = training_scene(rng, streets, crowded)
        for _ in range(PROMPTS):
            labels = ask(rng, things, crowded)
            separator = " ; " if rng.random() < 0.6 else "; "
            prompt = [BOS] + encode(evaluate.prompt_text(labels, separator))
            rows.append((prompt, encode(answer_text(things, labels, grid)) + [EOS]))
            weight += weights(things, labels)
        pictures.append(picture)
        dense.append(dense_targets(things))
    length = -(-max(len(prompt) + len(answer) for prompt, answer in rows) // 8) * 8  # few distinct shapes
    ids = np.full((len(rows), length), PAD)
    prefix = np.zeros(len(rows), int)
    wanted = np.full((len(rows), length), -100)
    for number, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[number, :end] = prompt + answer
        wanted[number, len(prompt) - 1 : end - 1] = answer
        prefix[number] = len(prompt)
    return np.stack(pictures), ids, prefix, wanted, np.array(weight, np.float32), np.stack(dense)


def draw_forever(queue, seed, tokenizer_path, grid, crowded):
    """The drawing process: keeps the queue full, and ends when its parent has."""
    torch.set_num_threads(1)
    parent = os.getppid()
    rng, tokenizer = random.Random(seed), Tokenizer.from_file(tokenizer_path)
    streets = [draw_street(rng, *rng.choice(SIZES)) for _ in range(STREETS)]
    while os.getppid() == parent:
        try:
            queue.put(make_batch(rng, streets, tokenizer, grid, crowded), timeout=60)
        except Full:  # the trainer is busy measuring, or gone
            pass


def validation_scenes(count):
    """Fresh scenes at full size, squeezed as in use."""
    rng, images, scenes = random.Random(VALIDATION_SEED), [], []
    for _ in range(count):
        image, things = fresh_scene(rng)
        images.append(evaluate.squeeze(image))
        record = lambda thing: {"label": thing.label, "box": thing.box()}
        scenes.append(
            {
                "objects": [record(thing) for thing in things if thing.counts()],
                "edge": [record(thing) for thing in things if not thing.counts()],
            }
        )
    return images, scenes


# ------------------------------------------------------------------------------------------ model


def hub_name(name):
    """A parameter's name in a hub snapshot of PaliGemma, from its name inside transformers."""
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name.replace("language_model.", "language_model.model.", 1)


def save_snapshot(state, start, out):
    """A hub-like snapshot of these weights in f16; the weights' file is replaced in one step."""
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        if os.path.abspath(start) != os.path.abspath(out):
            shutil.copyfile(os.path.join(start, name), os.path.join(out, name))
    tensors = {
        hub_name(name): value.to(torch.float16).contiguous() for name, value in state.items() if name != "lm_head.weight"
    }
    partial = os.path.join(out, "model.safetensors.partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, os.path.join(out, "model.safetensors"))


def refine_grid(model, first_location, old, new):
    """Give the coordinates that a finer grid adds the mean of their neighbours' embeddings."""
    table = model.model.language_model.embed_tokens.weight
    index = lambda number, grid: first_location + min(1023, number * (1024 // grid))
    with torch.no_grad():
        while old < new:
            for number in range(1, 2 * old, 2):
                pair = table[index(number - 1, 2 * old)] + table[index(number + 1, 2 * old)]
                table[index(number, 2 * old)] = pair / 2
            old *= 2


def smooth_locations(model, first_location):
    """A fresh model's coordinate embeddings start as smooth functions of the coordinate."""
    table = model.model.language_model.embed_tokens.weight
    width = table.shape[1]
    frequency = torch.arange(width // 4)
    angle = torch.linspace(0, 1, 1024)[:, None] * frequency[None] * math.pi
    waves = torch.cat([angle.cos(), angle.sin()], 1) * torch.exp(-frequency / 12.0).repeat(2)[None]
    with torch.no_grad():
        table[first_location : first_location + 1024] = torch.randn(1024, width) * 0.002
        table[first_location : first_location + 1024, : width // 2] += waves * 0.06


class Trainer(torch.nn.Module):
    """The model with its helper head; `forward` gives the three losses."""

    def __init__(self, model, grid, first_location):
        super().__init__()
        self.model = model
        self.helper = torch.nn.Linear(model.config.vision_config.hidden_size, len(LABELS) + 4)
        self.first_location = first_location
        self.register_buffer("values", torch.tensor([min(1023, n * (1024 // grid)) for n in range(grid + 1)]), False)
        self.step_size = 1024 // grid

    def helper_loss(self, seen, dense):
        guess = self.helper(seen).float().transpose(1, 2).reshape(len(dense), -1, PATCHES, PATCHES)
        labels, owned, boxes = dense[:, : len(LABELS)], dense[:, len(LABELS) : len(LABELS) + 1], dense[:, len(LABELS) + 1 :]
        present = F.binary_cross_entropy_with_logits(guess[:, : len(LABELS)], labels, pos_weight=torch.tensor(4.0))
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2, 1, 1)
        weight = (0.25 / size.clamp(min=0.01)).clamp(0.6, 2.5) * owned
        off = F.smooth_l1_loss(guess[:, len(LABELS) :], boxes, reduction="none", beta=0.02) * weight
        return present + 4 * off.sum() / (weight.sum() + 1)

    def logits(self, seen, ids, prefix, wanted):
        """The logits at the places where a next token is wanted."""
        place = torch.arange(IMAGE_TOKENS + ids.shape[1])
        # picture and prompt see each other both ways, the answer sees what comes before it
        allowed = (place[None, None, :] <= place[None, :, None]) | (
            place[None, None, :] < (IMAGE_TOKENS + prefix)[:, None, None]
        )
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)[:, None]
        hidden = self.decode(seen, ids, mask, (place + 1)[None])
        logits = self.model.lm_head(hidden[wanted >= 0]).float()
        cap = self.model.config.text_config.final_logit_softcapping
        return torch.tanh(logits / cap) * cap if cap else logits

    def decode(self, seen, ids, mask, position):
        """The decoder's output over the text."""
        inner = self.model.model
        text = inner.get_input_embeddings()(ids)
        picture = inner.multi_modal_projector(seen).to(text.dtype).repeat_interleave(PROMPTS, 0)
        hidden = inner.language_model(
            inputs_embeds=torch.cat([picture, text], 1),
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            position_ids=position,
            use_cache=False,
        ).last_hidden_state
        return hidden[:, IMAGE_TOKENS:]

    def answer_losses(self, logits, wanted, weight, softness):
        """Words and the end of the answer as usual; coordinates against their neighbourhood."""
        wanted = wanted[wanted >= 0]
        is_location = (wanted >= self.first_location) & (wanted < self.first_location + 1024)
        words = F.cross_entropy(logits[~is_location], wanted[~is_location])
        if not is_location.any():
            return words, torch.zeros(()), torch.zeros(())
        value = (wanted[is_location] - self.first_location).float()[:, None]
        width = softness * self.step_size
        soft = torch.exp(-((self.values[None] - value) ** 2) / (2 * width * width))
        soft = soft / soft.sum(1, keepdim=True)
        logged = F.log_softmax(logits[is_location], -1)
        each = -(soft * logged[:, self.first_location + self.values]).sum(1)
        places = (each * weight).sum() / weight.sum()
        guess = logged[:, self.first_location : self.first_location + 1024].argmax(1)
        return words, places, (guess - value[:, 0]).abs().mean()

    def see(self, pictures):
        return self.model.model.vision_tower(pictures).last_hidden_state


class Muon:
    """Momentum whose updates are made orthogonal, for the matrices of the layers, equal shapes together.

    torch.optim.Muon does the same one matrix after another, which is slow for many small ones. The
    updates are scaled to the size of AdamW's, so one learning rate serves both.
    """

    def __init__(self, parameters, momentum=0.95, weight_decay=0.02):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
        self.moving = {id(p): torch.zeros_like(p) for group in self.groups.values() for p in group}

    @torch.no_grad()
    def step(self, rate):
        for shape, everything in self.groups.items():
            group = [parameter for parameter in everything if parameter.grad is not None]
            if not group:
                continue
            updates = []
            for parameter in group:
                moving = self.moving[id(parameter)]
                moving.lerp_(parameter.grad, 1 - self.momentum)
                update = parameter.grad.lerp(moving, self.momentum)
                updates.append(update.T if update.shape[0] > update.shape[1] else update)
            updates = self.orthogonal(torch.stack(updates))
            for parameter, update in zip(group, updates):
                update = update.T if parameter.shape[0] > parameter.shape[1] else update
                parameter.mul_(1 - rate * self.weight_decay)
                parameter.add_(update.to(parameter.dtype), alpha=-rate * 0.2 * max(shape) ** 0.5)

    @staticmethod
    def orthogonal(x):
        """Newton-Schulz: towards the nearest orthogonal matrices."""
        x = x.bfloat16()
        x = x / (x.float().norm(dim=(1, 2), keepdim=True).bfloat16() + 1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
        return x


def measure(model, tokenizer, state, images, scenes):
    """Precision and recall of f16-rounded weights on the validation scenes, for the three ways of asking."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.half().float() for name, value in state.items()})
    model.eval()
    result = {}
    subset = evaluate.ask_subset(scenes, 5)
    for name, asked, separator in (("all", evaluate.ask_all(scenes), " ; "), ("comma", subset, "; ")):
        found = evaluate.answers(model, tokenizer, images, [evaluate.prompt_text(labels, separator) for labels in asked])
        *counts, faults = evaluate.score(scenes, asked, found)
        result[name] = (*evaluate.rates(*counts), faults)
    model.load_state_dict(own)
    model.train()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start")
    parser.add_argument("out")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--grid", type=int, default=64, help="steps a coordinate is rounded to")
    parser.add_argument("--old-grid", type=int, help="the start's grid, if it was coarser")
    parser.add_argument("--crowded", action="store_true", help="more objects in a scene, more of the hard labels")
    parser.add_argument("--fresh", action="store_true", help="random weights instead of the start's")
    parser.add_argument("--fast", action="store_true", help="bf16 autocast and torch.compile (needs g++)")
    parser.add_argument("--measure-every", type=float, default=6, help="minutes")
    parser.add_argument("--validation", type=int, default=150, help="scenes")
    options = parser.parse_args()

    os.makedirs(options.out, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    tokenizer_path = os.path.join(options.start, "tokenizer.json")
    tokenizer = Tokenizer.from_file(tokenizer_path)
    first_location = tokenizer.token_to_id("<loc0000>")
    images, scenes = validation_scenes(options.validation)

    if options.fresh:
        config = AutoConfig.from_pretrained(options.start, attn_implementation="eager")
        model = PaliGemmaForConditionalGeneration(config)
        smooth_locations(model, first_location)
    else:
        model = PaliGemmaForConditionalGeneration.from_pretrained(
            options.start, dtype=torch.float32, attn_implementation="eager"
        )
    trainer = Trainer(model, options.grid, first_location)
    kept = os.path.join(options.start, "training.pt")
    helper_ready = not options.fresh and os.path.exists(kept)
    if helper_ready:
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        trainer.helper.load_state_dict(state["helper"])
    if options.old_grid:
        refine_grid(model, first_location, options.old_grid, options.grid)

    if options.fast:
        trainer.see = torch.compile(trainer.see)
        trainer.decode = torch.compile(trainer.decode, dynamic=True)
    model.train()
    parameters = dict(trainer.named_parameters())
    matrices = [p for name, p in parameters.items() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in parameters.items() if not (".layers." in name and p.ndim == 2)]
    muon = Muon(matrices)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=options.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    parameters = list(parameters.values())
    current = model.state_dict()  # shares the memory of the weights
    average = {name: value.detach().clone() for name, value in current.items()}

    queue = mp.Queue(8)
    drawing = (queue, int(time.time()), tokenizer_path, options.grid, options.crowded)
    drawer = mp.Process(target=draw_forever, args=drawing, daemon=True)
    drawer.start()

    begun = told = measured = time.time()
    best, step, running, first_steps = 0.0, 0, {}, 0
    done = False
    while not done:
        part = (time.time() - begun) / 60 / options.minutes
        done = part >= 1
        rate = options.lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1, part)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pictures, ids, prefix, wanted, weight, dense = (torch.from_numpy(array) for array in queue.get())
        pixels = pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

        with torch.autocast("cpu", torch.bfloat16, enabled=options.fast):
            seen = trainer.see(pixels)
            if options.fresh and part < 0.18:  # the tower alone
                losses = {"helper": trainer.helper_loss(seen, dense)}
                loss = losses["helper"]
            else:
                logits = trainer.logits(seen, ids, prefix, wanted)
                softness = max(0.3, 0.5 * (1 - 1.3 * part))
                words, places, off = trainer.answer_losses(logits, wanted, weight, softness)
                # a new helper head must not disturb a trained tower: it learns by itself for a while
                young = not options.fresh and not helper_ready and step < 80
                helper = trainer.helper_loss(seen.detach() if young else seen, dense)
                loss = words + places + helper * (2.0 if young else 0.5)
                losses = {"words": words, "places": places, "helper": helper, "off": off / 1024}
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        muon.step(rate)
        step += 1

        keep = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in current.items():
                average[name].lerp_(value, 1 - keep)
        for name, value in losses.items():
            value = float(value.detach())
            running[name] = 0.98 * running.get(name, value) + 0.02 * value
        if time.time() - told > 60:
            told = time.time()
            figures = " ".join(f"{name} {value:.4f}" for name, value in running.items())
            print(f"{(told - begun) / 60:6.1f} min step {step} lr {rate:.1e} queue {queue.qsize()} {figures}", flush=True)
        if done or time.time() - measured > options.measure_every * 60:
            result = measure(model, tokenizer, average, images, scenes)
            text = "  ".join(f"{name} P {p:.3f} R {r:.3f}" for name, (p, r, _) in result.items())
            worst = min(min(p, r) for p, r, _ in result.values())
            mean = sum(p + r for p, r, _ in result.values()) / 4
            print(f"measured at step {step}: {text}  {dict(result['all'][2].most_common(8))}", flush=True)
            if worst + mean > best:
                best = worst + mean
                save_snapshot(average, options.start, options.out)
                state = {"model": average, "helper": trainer.helper.state_dict()}
                torch.save(state, os.path.join(options.out, "training.pt"))
                with open(os.path.join(options.out, "measured.json"), "w") as file:
                    json.dump({name: {"precision": p, "recall": r} for name, (p, r, _) in result.items()}, file)
            measured = time.time()
    drawer.kill()


if __name__ == "__main__":
    main()
