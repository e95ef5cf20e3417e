"""What is asked of a scene, and how well an answer matches what is there. For evaluate.py and quality.py.

An answer counts when an object of the same label overlaps it with IoU >= 0.5; one to one, the order of the answer
decides. Only asked labels are in the truth.
"""

import random
from collections import Counter

from world import LABELS, iou


def ask_all(scenes):
    return [list(LABELS) for _ in scenes]


def ask_subset(scenes, seed):
    """One to five labels per scene, each present with probability 3/4 as long as there are any."""
    rng, asked = random.Random(seed), []
    for scene in scenes:
        present = sorted({item["label"] for item in scene["objects"]})
        absent = [label for label in LABELS if label not in present]
        labels = []
        for _ in range(rng.choice([1, 1, 2, 2, 3, 4, 5])):
            pool = [label for label in (present if present and rng.random() < 0.75 else absent) if label not in labels]
            if pool:
                labels.append(rng.choice(pool))
        asked.append(labels)
    return asked


def score(scenes, asked, found, free_edge=False):
    """Counts of hits, false answers and missed objects, and what went wrong, by kind."""
    hits = false = missed = 0
    faults = Counter()
    for scene, labels, answer in zip(scenes, asked, found):
        truth = [item for item in scene["objects"] if item["label"] in labels]
        edge = [item for item in scene.get("edge", []) if item["label"] in labels]
        used = set()
        for label, box in answer:
            best = max(
                ((iou(box, item["box"]), n) for n, item in enumerate(truth) if item["label"] == label and n not in used),
                default=(0, -1),
            )
            if best[0] >= 0.5:
                hits += 1
                used.add(best[1])
                continue
            if any(iou(box, item["box"]) >= 0.3 and item["label"] == label for item in edge):
                faults["named an object less than half visible"] += 1
                if free_edge:
                    continue
            elif any(iou(box, item["box"]) >= 0.5 and item["label"] == label for item in truth):
                faults["same object twice"] += 1
            elif best[0] > 0.1:
                faults["box off"] += 1
            else:
                close = [item["label"] for item in scene["objects"] if iou(box, item["box"]) >= 0.4]
                faults[f"{close[0]} called {label}" if close else f"no such {label}"] += 1
            false += 1
        missed += len(truth) - len(used)
        for number, item in enumerate(truth):
            if number not in used:
                faults[f"missed {item['label']}"] += 1
    return hits, false, missed, faults


def rates(hits, false, missed):
    return hits / max(1, hits + false), hits / max(1, hits + missed)
