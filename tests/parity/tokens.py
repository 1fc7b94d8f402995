"""Compares our tokenizer with `open_clip`'s: `worker tokenize` on 10,000 prompts, Unicode included.
Part of `make parity`.

    tokens.py WORKER                compares; the exit code is 1 if a prompt differs
    tokens.py --golden FILE.json    writes some prompts with open_clip's ids, for `make test`

Prompts consist of tags, sentences, words in many scripts, typographic marks, HTML entities and
random characters from all of Unicode. One limit: ftfy repairs text that looks wrongly decoded
("schÃ¶n") by heuristics, and our tokenizer does not; such random prompts are replaced and counted.
"""

import html
import importlib.util
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import ftfy

COUNT = 10_000
TAGS = """1girl 1boy solo long_hair blue_hair school_uniform black_legwear thighhighs
pleated_skirt hair_ribbon looking_at_viewer >_< ^_^ :d :3 =_= @_@ d&d +_+ o_o 0_0
(o)_(o) hakurei_reimu sendai_(kantai_collection) fate/grand_order re:zero k-on! x-ray
16:9 2010s 4koma c.c. m/m <o>_<o> \\m/ ...""".split()
WORDS = """a an the photo painting of in on with red blue green old young face clothes
figure character girl's boy's don't we've I'm they'd he'll it's O'Neil state-of-the-art
3.14 1,000 50% $5 #1 C++ (best quality:1.2) [masterpiece] {{{detailed}}} sketch; wow!
why? e.g. http://x.org/y?z=1&w=2 user@example.com THE Quick BROWN fox JUMPS""".split()
SCRIPTS = """青い髪 少女 制服 スカート カタカナ ﾊﾝｶｸ ひらがな 初音ミク 博麗霊夢 東方project 中文提示词 繁體中文 한국어 소녀 한글
русский язык девушка Ёлка ελληνικά ΟΔΟΣ λόγος עברית שלום العربية فتاة हिन्दी लड़की ไทย
เด็กผู้หญิง বাংলা தமிழ் ქართული Հայերեն አማርኛ ខ្មែរ Tiếng Việt naïve café Ångström
Øystein Straße groß İstanbul ıssız Łódź žluťoučký kůň señor ¿qué? français œuvre Œ æ
Dvořák fiancée e\u0301te\u0301 A\u030angstro\u0308m ﬁne ﬂow ＦＵＬＬＷＩＤＴＨ １２３ ａｂｃ ｶﾞ ① ② Ⅷ ½
x² H₂O 10µm 25℃ №5 ™ © ® € £ ¥""".split()
MARKS = [
    "“quoted”",
    "‘single’",
    "don’t",
    "em—dash",
    "en–dash",
    "…",
    "•",
    "→",
    "«guillemets»",
    "´",
    "`",
    "¨",
    "·",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u2028",
    "\r\n",
    "\t",
    "\n",
    "\x7f",
    "\u00ad",
    "😀",
    "👩‍🎨",
    "🏳️‍🌈",
    "❤️",
    "👍🏽",
    "🇩🇪",
    "♥",
    "☆",
    "♪",
    "✨",
    "𝒜𝓃𝒾𝓂𝑒",
    "𝔣𝔯𝔞𝔨𝔱𝔲𝔯",
    "Ｑ＆Ａ",
]
ENTITIES = [
    "&amp;",
    "&lt;3",
    "&gt;",
    "&quot;x&quot;",
    "&#39;s",
    "&#x1F600;",
    "&eacute;",
    "&copy;",
    "&nbsp;",
    "&amp;amp;",
    "&unknown;",
    "&notit",
    "&lt",
    "R&D",
    "&ldquo;hi&rdquo;",
    "&EACUTE;",
    "<b>&hellip;</b>",
]


def reference():
    """open_clip's tokenizer without the rest of the package, which requires torchvision."""
    package = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(
        "open_clip_tokenizer", Path(package, "tokenizer.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def any_character(random):
    """A random assigned character; no surrogates, private use or control characters."""
    while True:
        code = random.randrange(0x20, random.choice((0x250, 0x2000, 0x3100, 0x10000, 0x20000)))
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co", "Cc"):
            return chr(code)


def prompts(count):
    rng = random.Random(1)
    kinds = [
        lambda: ", ".join(rng.choices(TAGS, k=rng.randint(1, 30))),
        lambda: " ".join(rng.choices(WORDS, k=rng.randint(1, 25))),
        lambda: " ".join(rng.choices(SCRIPTS + WORDS[:8], k=rng.randint(1, 12))),
        lambda: rng.choice(["", " ", ", "]).join(
            rng.choices(MARKS + WORDS + TAGS + SCRIPTS, k=rng.randint(1, 15))
        ),
        lambda: " ".join(rng.choices(ENTITIES + WORDS, k=rng.randint(1, 10))),
        lambda: "".join(any_character(rng) for _ in range(rng.randint(1, 40))),
    ]
    found, replaced = [], 0
    while len(found) < count:
        prompt = rng.choice(kinds)()
        if ftfy.fix_encoding(html.unescape(prompt)) == html.unescape(prompt):
            found.append(prompt)
        else:
            replaced += 1
    print(f"{count} prompts; {replaced} more look wrongly decoded to ftfy", file=sys.stderr)
    return found


def expected(tokenizer, prompt):
    """The ids of a prompt, at most 77, without padding."""
    ids = [tokenizer.sot_token_id, *tokenizer.encode(prompt)][:76]
    return [*ids, tokenizer.eot_token_id]


def compare(worker):
    tokenizer, all_prompts = reference(), prompts(COUNT)
    lines = "".join(json.dumps(prompt) + "\n" for prompt in all_prompts)
    done = subprocess.run([worker, "tokenize"], input=lines, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = []
    for prompt, ids in zip(all_prompts, found, strict=True):
        right = expected(tokenizer, prompt)
        filled = right + [tokenizer.eot_token_id] * (77 - len(right))
        if ids != filled:
            wrong.append((prompt, ids, right))
    for prompt, ids, right in wrong[:10]:
        print(f"OVER {prompt!r}\n  ours   {ids[:len(right)]}\n  theirs {right}")
    print(
        f"{'OVER' if wrong else 'ok  '} tokens of {COUNT - len(wrong)} of {COUNT} prompts "
        "are open_clip's"
    )
    sys.exit(1 if wrong else 0)


def golden(path):
    tokenizer = reference()
    chosen = [*prompts(120), *SCRIPTS, *MARKS, *ENTITIES, "", " ", "<start_of_text>a<end_of_text>"]
    cases = [{"prompt": prompt, "ids": expected(tokenizer, prompt)} for prompt in chosen]
    Path(path).write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    if sys.argv[1] == "--golden":
        golden(sys.argv[2])
    else:
        compare(sys.argv[1])
