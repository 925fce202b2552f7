#!/usr/bin/env python3
"""Writes bleu_reference.json, what bleu_test.cpp compares with: sets of sentences and sacreBLEU's figures for them.

python3 -m venv venv && venv/bin/pip install sacrebleu==2.6.0 && venv/bin/python tests/examples/bleu_reference.py
"""
import json
import pathlib
import random

from sacrebleu.metrics import BLEU

CAPTIONS = [
    ("A man in an orange hat is staring at something.", "A man in an orange hat starring at something."),
    ("A Boston terrier runs over lush green grass in front of a white fence.",
     "A Boston Terrier is running on lush green grass in front of a white fence."),
    ("A girl in a karate uniform is breaking a board with a kick.",
     "A girl in karate uniform breaking a stick with a front kick."),
    ("Five people in winter jackets and helmets are standing in the snow with snowmobiles in the background.",
     "Five people wearing winter jackets and helmets stand in the snow, with snowmobiles in the background."),
    ("People are fixing the roof of a house.", "People are fixing the roof of a house."),
]
SIGNS = [
    ("Costs 1,000.50 dollars, or 3.5% more; 3-4 people (not 5).", "It costs 1,000.50 dollars or 3.5 % more: 3 - 4 people (not 5)."),
    ("He said: \"Don't!\" ... and left -- at 12:30.", "He said \"don't!\" ... and left - at 12:30 ."),
    ("a,b.c,,d..e 1.2.3 .5 5. ,5 5, -5 5- 5-5 a-b", "a , b . c , , d . . e 1.2.3 .5 5. ,5 5, -5 5- 5-5 a-b"),
    ("&quot;R&amp;B&quot; &lt;b&gt; &amp;lt; &amp;amp; &", "\"R&B\" <b> &lt; &amp; &"),
    ("x<skipped>y <skipped> z", "xy z"),
    ("[a]{b}|c~d^e_f`g'h\\i/j+k*l=m#n$o%p@q!r?", "[ a ] { b } | c ~ d ^ e _ f ` g'h \\ i / j + k * l = m # n $ o % p @ q ! r ?"),
    ("ends in a point.", "ends in a point"),
]
UNICODE = [
    ("„Größe“ – über den Flüssen, wo’s schön ist…", "„Größe“ – über den Flüssen, wo's schön ist..."),
    ("non\u00a0breaking\u2003and\u3000wide spaces\u0085here", "non breaking and wide spaces here"),
    ("zero\u200bwidth and \ufeffmark", "zero width and mark"),
    ("naïve café.é,è 5é.5 é5.é", "naive café.é,è 5é.5 é5.é"),
    ("日本語、テキスト。", "日本語、テキスト 。"),
    ("emoji 😀. and 😀, ok", "emoji 😀 . and 😀 , ok"),
    ("ÄÖÜ ẞ ΑΒΓ Москва", "äöü ß αβγ москва"),
    ("\u2028line\u2029separators\x1cand\x1fcontrols \x01kept", "line separators and controls \x01 kept"),
]


def random_pairs(count, seed):
    """Sentences and noisy copies of them."""
    choice = random.Random(seed)
    words = "a the man woman dog runs jumps over under red blue big , . ( ) 1,000 3-4 it's \" ball in on with and".split()
    pairs = []
    for _ in range(count):
        reference = [choice.choice(words) for _ in range(choice.randint(1, 18))]
        translation = []
        for word in reference:
            luck = choice.random()
            if luck < 0.12:
                continue
            translation.append(choice.choice(words) if luck < 0.3 else word)
            if luck > 0.95:
                translation.append(word)
        glue = choice.choice([" ", " ", " ", ""]).join
        pairs.append((glue(translation) if choice.random() < 0.1 else " ".join(translation), " ".join(reference)))
    return pairs


SETS = {
    "captions": CAPTIONS,
    "signs": SIGNS,
    "characters": UNICODE,
    "the same": [(reference, reference) for _, reference in CAPTIONS],
    "no common word": [("one two three four five", "six seven eight nine ten")],
    "one common word": [("one two three four five", "one six seven eight nine")],
    "two common words": [("one two three four five", "one two seven eight nine")],
    "fewer words than n-grams": [("a dog", "a dog"), ("the cat", "the cat sat")],
    "three words": [("a dog runs", "a dog runs")],
    "three words, one of four": [("a dog runs", "a dog runs"), ("x y z u", "a b c d")],
    "one word": [("dog", "dog")],
    "empty translation": [("", "a dog runs in the park")],
    "some empty": [("", "a dog runs in the park"), ("a man sits on a bench", "a man sits on a bench")],
    "empty reference": [("a dog runs in the park", "")],
    "all empty": [("", ""), ("", "")],
    "white space only": [("   ", "a dog"), ("\t", "\u00a0")],
    "much too short": [("a man in", "a man in a blue shirt is standing on a ladder"), ("a dog runs fast", "a dog runs fast")],
    "too long": [("a man in a blue shirt is standing on a ladder and a ladder and a ladder", "a man in a blue shirt")],
    "clipped counts": [("the the the the the the the", "the cat is on the mat the the")],
    "case": [("The Dog RUNS in The park.", "the dog runs in the park."), ("A MAN SITS ON A BENCH", "a man sits on a bench")],
    "random": random_pairs(60, 1),
    "random, long": random_pairs(120, 2),
}


def figures(pairs, lowercase):
    """sacreBLEU's score of a corpus of (translation, reference)."""
    metric = BLEU(lowercase=lowercase)
    score = metric.corpus_score([t for t, _ in pairs], [[r for _, r in pairs]])
    return {
        "score": score.score, "precisions": score.precisions, "brevity_penalty": score.bp, "correct": score.counts,
        "total": score.totals, "words": score.sys_len, "reference_words": score.ref_len,
        "signature": str(metric.get_signature()),
    }


def main():
    tokenise = BLEU().tokenizer
    sets = []
    for name, pairs in SETS.items():
        sets.append({
            "name": name,
            "translations": [t for t, _ in pairs],
            "references": [r for _, r in pairs],
            "tokens": [tokenise(t.rstrip()) for t, _ in pairs],
            "mixed": figures(pairs, False),
            "lower": figures(pairs, True),
        })
    path = pathlib.Path(__file__).with_name("bleu_reference.json")
    path.write_text(json.dumps(sets, indent=0) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
