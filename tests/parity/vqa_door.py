"""Part of `make parity`: deploy/vqa/serve.py on an InstructBLIP. The published one is 16 GB, so
this one is tiny and random; processor, classes and files are those of `transformers`. What the door
answers must be what the model itself generates.

    vqa_door.py SERVE.py
"""

import base64
import io
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

logging.disable_progress_bar()

TOKENS = 6
QUESTION = "What is the person doing?"
WORDS = "the person is standing sitting waving left right smiling doing What ? happy in a".split()


def words(**special):
    vocabulary = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def write(folder):
    torch.manual_seed(1)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    language, former = words(**special), words(**special)
    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), language, former, num_query_tokens=4
    )
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    # Large weights, so that pictures make a difference.
    size["initializer_range"] = 0.2
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            **size, intermediate_size=64, image_size=32, patch_size=8
        ).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            **size,
            intermediate_size=64,
            vocab_size=len(former),
            encoder_hidden_size=32,
        ).to_dict(),
        text_config=OPTConfig(
            **size,
            vocab_size=len(language),
            ffn_dim=64,
            word_embed_proj_dim=32,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=language.convert_tokens_to_ids("<image>"),
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.language_projection.weight, std=4.0)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


def ask(url, body):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def main():
    serve = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", serve, "--weights", folder, "--port", "0"]
            + ["--device", "cpu", "--name", "tiny"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            check(server.stdout.readline().split()[-1], folder, serve)
        finally:
            server.terminate()
            server.wait()


def check(address, folder, serve):
    url = f"{address}/v1/chat/completions"
    sys.path.insert(0, str(Path(serve).parent))
    import serve as door

    model = door.Model(folder, "cpu", "short")
    answers = set()
    for seed in range(6):
        noise = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (40, 48, 3), generator=noise, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy())
        file = io.BytesIO()
        image.save(file, "png")
        data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [
            {"type": "text", "text": QUESTION},
            {"type": "image_url", "image_url": {"url": data}},
        ]
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": TOKENS,
        }
        status, answer = ask(url, body)
        assert status == 200, answer
        text = answer["choices"][0]["message"]["content"]
        inputs = model.processor(images=image, text=QUESTION, return_tensors="pt")
        made = model.model.generate(
            **inputs, do_sample=False, max_new_tokens=TOKENS, **door.MODES["short"]
        )
        prompt = inputs["input_ids"].shape[1]
        if made.shape[1] > prompt and torch.equal(made[:, :prompt], inputs["input_ids"]):
            made = made[:, prompt:]
        expected = model.processor.tokenizer.decode(made[0], skip_special_tokens=True).strip()
        assert text == expected, f"{text!r} is answered, {expected!r} is generated"
        assert answer["usage"]["completion_tokens"] <= TOKENS, answer
        answers.add(text)
        print(f"ok   serve.py answers {text!r} to picture {seed}")
    assert len(answers) > 1, f"whatever the picture is, the answer is {answers}"
    status, answer = ask(url, {"model": "tiny", "messages": []})
    assert status == 400 and "image_url" in answer["error"]["message"], answer
    print(f"ok   serve.py refuses a request without a message: {answer['error']['message']!r}")


main()
