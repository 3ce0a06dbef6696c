"""The tokenizer of the pair: byte-level BPE, every digit a token of its own, one file for both models."""

import json
import os
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import tasks
from model import SPECIAL, write

MOST = 768  # the text has fewer words than that; what is reached is rounded up to a multiple of 32
TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|eos|>' }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(question):
    return f"<|bos|><|user|>{question}<|assistant|>"


def train(folders, problems=20_000):
    """Train the tokenizer on generated word problems and write it to every folder."""
    rng = random.Random(7)

    def texts():
        for _ in range(problems):
            told = tasks.words.problem(rng)
            yield told.question
            yield tasks.solution(rng, told, 0.5)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=MOST, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|unused{i}|>" for i in range(-size % 32)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
        "pad_token": "<|pad|>", "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": 1024, "chat_template": TEMPLATE,
    }
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
        write(os.path.join(folder, "tokenizer.json"), tokenizer.to_str(pretty=True).encode())
        write(os.path.join(folder, "tokenizer_config.json"), (json.dumps(config, indent=2) + "\n").encode())
    return tokenizer


def load(folder):
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
