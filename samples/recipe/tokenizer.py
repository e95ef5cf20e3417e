"""The small model's tokenizer: shaped like Gemma's, with 1506 entries instead of 257216.

BPE with byte fallback and spaces written as "▁"; the 1024 <loc> and 128 <seg> tokens and the <image>
token come last, as in PaliGemma. The words are those of the prompts and of the ten labels; anything
else falls apart into letters or bytes, which the model has never been taught.

usage: python tokenizer.py OUT/tokenizer.json
"""

import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from world import LABELS

PROMPT_WORDS = ["detect", "segment", "caption", "en"]


def build():
    words = sorted({word for label in LABELS for word in label.split()} | set(PROMPT_WORDS))
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate(specials)}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for character in "\n▁;abcdefghijklmnopqrstuvwxyz":
        vocabulary.setdefault(character, len(vocabulary))

    merges = []
    for word in ["▁" + word for word in words] + ["▁;"]:
        left = word[0]  # a word is one token, built up letter by letter from its start
        for right in word[1:]:
            vocabulary.setdefault(left + right, len(vocabulary))
            if (left, right) not in merges:
                merges.append((left, right))
            left += right

    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(specials)
    plain = lambda text: AddedToken(text, normalized=False, special=False)
    tokenizer.add_tokens([plain(f"<loc{number:04d}>") for number in range(1024)])
    tokenizer.add_tokens([plain(f"<seg{number:03d}>") for number in range(128)])
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return tokenizer


if __name__ == "__main__":
    build().save(sys.argv[1])
