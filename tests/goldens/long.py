"""Make CASE/long.json for every reference case: a prompt so long that picture, prompt and answer pass position 256.

usage: python long.py        made with torch 2.15.0, transformers 5.23.0 and tokenizers 0.23.3

Tables of positions kept in bfloat16 could not tell positions past 256 apart; with the window of pg2-sliding the
answer has also lost sight of the beginning. Weights and picture are the case's own, everything is computed in f32.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import PaliGemmaForConditionalGeneration, SiglipImageProcessorPil

HERE = Path(__file__).parent
LABELS = ["cat", "dog", "traffic light", "person", "car", "bus", "bird", "horse", "truck", "bicycle"]
TOKENS = 24


def long_answer(folder: Path) -> dict:
    suppressed = json.loads((folder / "expected.json").read_text())["suppressed_ids"]
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    prompt = "detect " + " ; ".join(LABELS * 14)
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    words = tokenizer.encode(prompt + "\n", add_special_tokens=False).ids
    ids = torch.tensor([[model.config.image_token_id] * patches + [2] + words])
    picture = Image.open(folder / "image.png").convert("RGB")
    pixels = SiglipImageProcessorPil.from_pretrained(folder)(images=picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        written = model.generate(
            input_ids=ids,
            pixel_values=pixels.float(),
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            suppress_tokens=suppressed,
            output_logits=True,
            return_dict_in_generate=True,
        )
    answer = written.sequences[0][ids.shape[1] :].tolist()
    logprobs = [float(torch.log_softmax(logits[0].double(), -1)[token]) for logits, token in zip(written.logits, answer)]
    return {
        "prompt": prompt,
        "suppressed_ids": suppressed,
        "prefix": ids.shape[1],
        "generated_ids": answer,
        "token_logprobs": [round(logprob, 6) for logprob in logprobs],
    }


for config in sorted(HERE.glob("*/config.json")):
    (config.parent / "long.json").write_text(json.dumps(long_answer(config.parent)) + "\n")
