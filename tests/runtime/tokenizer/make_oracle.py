#!/usr/bin/env python3
"""Writes what the sentencepiece library makes of varied texts and token sequences.

  make_oracle.py MODEL OUT.json [--texts N] [--sequences N] [--seed S]

Needs the PyPI package sentencepiece. The file holds the texts with their tokens, and token
sequences with their text:

  {"texts": [{"text": "...", "tokens": [...], "decoded": "..."}],
   "sequences": [{"tokens": [...], "decoded": "..."}]}
"""

import argparse
import json
import random

import sentencepiece

WORDS = ("the of and a to in he was that it his her with as had for is not but at on she be "
         "Whale whereupon nevertheless gentleman's \u201cWhy,\u201d don't O'Brien Mr. "
         "antidisestablishmentarianism int main(void) { return 0; } https://example.org/?q=1&b=%20"
         ).split()
SPECIAL = ("[PAD] [BOS] [EOS] [UNK] <|separator|> <|mask|> <|control1|> <|control20|> "
           "<|control21|> <|separator| |> <s> </s> <unk> <0x0A> <0xFF> \u2581 \u2581\u2581 "
           "\u2581the the\u2581").split()
SCRIPTS = [(0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA),
           (0x620, 0x64A), (0x904, 0x939), (0xE01, 0xE3A), (0x10A0, 0x10FF), (0x1100, 0x11FF),
           (0x3041, 0x30FE), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x2190, 0x22FF),
           (0x2580, 0x259F), (0x1F300, 0x1F64F), (0x1D400, 0x1D4FF), (0x20000, 0x20FFF)]
EMOJI = ["\U0001F468\u200D\U0001F469\u200D\U0001F467", "\U0001F1E9\U0001F1EA", "\u2764\uFE0F",
         "\U0001F44D\U0001F3FD", "\U0001F600", "1\uFE0F\u20E3"]
MARKS = [0x300, 0x301, 0x308, 0x323, 0x327, 0x5B0, 0x64B, 0x93C, 0x20D7]
ODD = [0x00, 0x01, 0x7F, 0x80, 0xA0, 0xAD, 0x200B, 0x200E, 0x2028, 0x3000, 0xFEFF, 0xFFFD, 0xFFFE,
       0xFFFF, 0xE000, 0xF8FF, 0xF0000, 0x10FFFF, 0xD7FF]


def space(rng):
    return rng.choice([" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "",
                       " " * rng.randint(1, 40), "\n" * rng.randint(1, 25),
                       "\t" * rng.randint(1, 20)])


def words(rng):
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", space(rng)])
                   for _ in range(rng.randint(1, 12)))


def script(rng):
    low, high = rng.choice(SCRIPTS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))


def marked(rng):
    return "".join(rng.choice("aeiouns\u03b1\u05d0\u0928") +
                   "".join(chr(rng.choice(MARKS)) for _ in range(rng.randint(0, 3)))
                   for _ in range(rng.randint(1, 8)))


def number(rng):
    return rng.choice(["{}", "{:,}", "-{}.5e-7", "0x{:x}", "{}%"]).format(
        rng.randint(0, 10 ** rng.randint(1, 15)))


def run(rng):
    unit = rng.choice(["a", "ab", "e", "the", " a", "=", "-", "\u00e9", "\u4e2d", "\U0001F600",
                       "\u2581", "0", "\x00"])
    return unit * rng.randint(1, 60)


def letters(rng):
    return "".join(rng.choice("etaoinshrdlu ETAOIN.,;'\"") for _ in range(rng.randint(1, 60)))


def odd(rng):
    return "".join(chr(rng.choice(ODD)) for _ in range(rng.randint(1, 5)))


PARTS = [words, words, script, script, marked, number, run, letters, odd,
         lambda rng: rng.choice(SPECIAL), lambda rng: rng.choice(EMOJI), space, space]


def text(rng):
    return "".join(rng.choice(PARTS)(rng) for _ in range(rng.choice([1, 1, 2, 3, 5, 8])))


def sequence(rng, model, byte_tokens):
    tokens = []
    for _ in range(rng.choice([1, 2, 3, 5, 10])):
        kind = rng.randint(0, 4)
        if kind == 0:  # bytes at random
            tokens += rng.choices(byte_tokens, k=rng.randint(1, 6))
        elif kind == 1 and byte_tokens:  # bytes of code points, perhaps cut off
            encoded = (rng.choice(EMOJI) + script(rng)).encode()[:rng.randint(1, 9)]
            tokens += [model.piece_to_id(f"<0x{byte:02X}>") for byte in encoded]
        elif kind == 2:
            tokens += [rng.randrange(min(16, model.vocab_size())) for _ in range(2)]
        elif kind == 3:
            tokens += model.encode(text(rng))[:8]
        else:
            tokens += [rng.randrange(model.vocab_size()) for _ in range(rng.randint(1, 5))]
    return tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--sequences", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    rng = random.Random(options.seed)
    model = sentencepiece.SentencePieceProcessor(model_file=options.model)
    byte_tokens = [i for i in range(model.vocab_size()) if model.is_byte(i)]
    texts = []
    for sample in ["", " ", "  "] + SPECIAL + [text(rng) for _ in range(options.texts)]:
        tokens = model.encode(sample)
        texts.append({"text": sample, "tokens": tokens, "decoded": model.decode(tokens)})
    sequences = []
    for _ in range(options.sequences):
        tokens = sequence(rng, model, byte_tokens)
        sequences.append({"tokens": tokens, "decoded": model.decode(tokens)})
    with open(options.out, "w", encoding="utf-8") as out:
        # One case a line.
        out.write('{"texts": [\n')
        out.write(",\n".join(json.dumps(case, separators=(",", ":")) for case in texts))
        out.write('\n],\n"sequences": [\n')
        out.write(",\n".join(json.dumps(case, separators=(",", ":")) for case in sequences))
        out.write("\n]}\n")


if __name__ == "__main__":
    main()
