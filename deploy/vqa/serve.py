"""Serves InstructBLIP, the paper's VQA model, behind OpenAI's /v1/chat/completions. vLLM, llama.cpp
and Ollama speak that protocol themselves but do not list InstructBLIP.

    python3 deploy/vqa/serve.py --weights FOLDER [--port 8000] [--device cuda] [--answers short]

FOLDER is what `save_pretrained` of `transformers` wrote, for instance a copy of
Salesforce/instructblip-vicuna-7b (16 GB in fp16). Needs torch, transformers and pillow, and
downloads nothing. One request is computed at a time; others wait. A request holds one question and
one image; temperature, seed and streaming have no effect, because answers are searched by beams.

--answers short: LAVIS' predict_answers (5 beams, length penalty 0), which the questions of
questions.toml are made for; --answers long: its generate (5 beams, repetition penalty 1.5).
"""

import argparse
import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BODY_BYTES_MAX = 40 << 20
TOKENS_MAX = 256
MODES = {
    "short": {"num_beams": 5, "min_new_tokens": 1, "length_penalty": 0.0},
    "long": {"num_beams": 5, "repetition_penalty": 1.5, "length_penalty": 1.0},
}


class BadRequest(Exception):
    """Answered with status 400 and its text."""


class Model:
    def __init__(self, folder, device, mode):
        import torch
        from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

        self.torch = torch
        self.dtype = torch.float32 if device == "cpu" else torch.float16
        self.processor = InstructBlipProcessor.from_pretrained(folder, local_files_only=True)
        model = InstructBlipForConditionalGeneration.from_pretrained(
            folder, dtype=self.dtype, local_files_only=True
        )
        self.model = model.to(device).eval()
        self.device, self.mode = device, MODES[mode]
        self.lock = threading.Lock()

    def answer(self, question, image, tokens):
        """The answer, and numbers of tokens of prompt and answer."""
        inputs = self.processor(images=image, text=question, return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        with self.lock, self.torch.inference_mode():
            ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=tokens, **self.mode)
        # Some releases of transformers return the prompt before the answer.
        prompt = inputs["input_ids"].shape[1]
        if ids.shape[1] > prompt and self.torch.equal(ids[:, :prompt], inputs["input_ids"]):
            ids = ids[:, prompt:]
        text = self.processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        return text, prompt, ids.shape[1]


def read(body):
    """Question, image and limit of tokens of a request."""
    from PIL import Image

    try:
        request = json.loads(body)
        content = request["messages"][-1]["content"]
        question = next(part["text"] for part in content if part["type"] == "text")
        url = next(part["image_url"] for part in content if part["type"] == "image_url")
        url = url["url"] if isinstance(url, dict) else url
        image = Image.open(io.BytesIO(base64.b64decode(url.split(";base64,", 1)[1])))
        image = image.convert("RGB")
        tokens = int(request.get("max_tokens") or request.get("max_completion_tokens") or 16)
    except (KeyError, IndexError, TypeError, ValueError, OSError, StopIteration) as error:
        raise BadRequest(f"one message with a text and an image_url is expected: {error!r}")
    if not 1 <= tokens <= TOKENS_MAX:
        raise BadRequest(f"max_tokens is {tokens}; 1 to {TOKENS_MAX} is expected")
    return question, image, tokens


def handler(model, name):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status, value):
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            if self.path == "/v1/models":
                self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"}]})
            else:
                self.reply(404, {"error": {"message": f"no such path: {self.path}"}})

        def do_POST(self):
            length = int(self.headers.get("content-length") or 0)
            if length > BODY_BYTES_MAX:
                self.close_connection = True
                self.reply(413, {"error": {"message": f"over {BODY_BYTES_MAX} bytes"}})
                return
            body = self.rfile.read(length)
            if self.path != "/v1/chat/completions":
                self.reply(404, {"error": {"message": f"no such path: {self.path}"}})
                return
            try:
                question, image, tokens = read(body)
                text, prompt, made = model.answer(question, image, tokens)
            except BadRequest as error:
                self.reply(400, {"error": {"message": str(error)}})
                return
            except Exception as error:  # for instance: no memory left on the GPU
                self.reply(500, {"error": {"message": repr(error)}})
                return
            message = {"role": "assistant", "content": text}
            finish = "length" if made >= tokens else "stop"
            self.reply(
                200,
                {
                    "object": "chat.completion",
                    "model": name,
                    "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                    "usage": {
                        "prompt_tokens": prompt,
                        "completion_tokens": made,
                        "total_tokens": prompt + made,
                    },
                },
            )

        def log_message(self, *arguments):
            """Quiet: the client counts its questions."""

    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--name", help="the model's name [default: the folder's]")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--answers", choices=sorted(MODES), default="short")
    arguments = parser.parse_args()
    if not (arguments.weights / "config.json").is_file():
        sys.exit(f"{arguments.weights}: no config.json; a folder of InstructBLIP is needed")
    name = arguments.name or arguments.weights.resolve().name
    model = Model(arguments.weights, arguments.device, arguments.answers)
    server = ThreadingHTTPServer((arguments.host, arguments.port), handler(model, name))
    print(f"serving {name} at http://{arguments.host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
