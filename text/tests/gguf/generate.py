"""GGUF files that hold only a tokenizer, and what the libraries that own these tokenizers say about some texts.

    python -m venv venv
    venv/bin/pip install transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0 jinja2 numpy
    venv/bin/python generate.py

The judges: for byte-level BPE the `tokenizers` pipelines that transformers builds for Qwen 2 and GPT-2 and converts for
Llama 3 (the tiktoken pattern); for SentencePiece its own library.
"""

import importlib.metadata
import io
import json
import pathlib

import gguf
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

HERE = pathlib.Path(__file__).parent
assert importlib.metadata.version("gguf") == "0.19.0" and importlib.metadata.version("sentencepiece") == "0.2.3"

TEXTS = [
    "Hello, world! How's it going?",
    "  two spaces, a tab\tand\n\nnew lines \r\n end  ",
    "numbers 1 22 333 4444 55555 and 3.14159",
    "camelCase HTTPServer naïve café — ünïcödé 你好，世界 😀👍🏽",
    "We'll SHOULDN'T they'Ve I'd",
    "if (x == 10) { return y[3] /* done */; }",
    "<|im_start|>user\nhi<|im_end|>",
    "",
    " ",
    "a",
]
CORPUS = [
    "Hello world, the quick brown fox jumps over the lazy dog. How is it going with the numbers 123 and 4567?",
    "We will and they have; I would not. You're here, he's there. return the value of the function if it is done.",
    "camelCase and HTTPServer are names in code { x == 10 } and naïve café words are in the text 你好 世界",
]


def corpus():
    return CORPUS * 20


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return model["vocab"], merges


def write(name, model, tokens, kinds, **rest):
    w = gguf.GGUFWriter(HERE / f"{name}.gguf", "llama")
    w.add_tokenizer_model(model)
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    for key, value in rest.items():
        getattr(w, f"add_{key}")(value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def expect(name, encode):
    cases = [{"text": text, "ids": encode(text)} for text in TEXTS]
    (HERE / f"{name}.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


vocab, merges = byte_level()
tokens = sorted(vocab, key=vocab.get)
specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
n = len(tokens)
NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5
common = dict(token_merges=[" ".join(m) for m in merges], eos_token_id=n + 2, add_bos_token=False)
kinds = [NORMAL] * n + [CONTROL] * 3 + [UNUSED]
for name, pre in [("qwen2", "qwen2"), ("llama3", "llama-bpe"), ("gpt2", "gpt-2")]:
    write(name, "gpt2", tokens + specials + [f"[PAD{n + 3}]"], kinds, tokenizer_pre=pre, **common)

whole = {**vocab, **{s: n + i for i, s in enumerate(specials)}}
for name, judge in [("qwen2", Qwen2Tokenizer), ("gpt2", GPT2Tokenizer)]:
    judge = judge(vocab=dict(whole), merges=merges)
    backend = judge.backend_tokenizer
    backend.add_special_tokens(specials)
    expect(name, lambda text: backend.encode(text, add_special_tokens=False).ids)

llama3 = Tokenizer(models.BPE(vocab=dict(vocab), merges=merges, ignore_merges=True))
llama3.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(TikTokenConverter("x").pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
llama3.decoder = decoders.ByteLevel()
llama3.add_special_tokens(specials)
# The same tokenizer as a Hugging Face folder has it.
llama3.save(str(HERE / "llama3.tokenizer.json"), pretty=False)
expect("llama3", lambda text: llama3.encode(text, add_special_tokens=False).ids)

for name, prefix in [("sentencepiece", True), ("sentencepiece_plain", False)]:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=460,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    kind = lambda i: (
        6 if sp.IsByte(i) else 2 if sp.IsUnknown(i) else 3 if sp.IsControl(i) else USER if i in (3, 4) else NORMAL
    )
    assert [sp.IdToPiece(i) for i in (3, 4)] == ["<|im_start|>", "<|im_end|>"]
    size = sp.GetPieceSize()
    write(
        name,
        "llama",
        [sp.IdToPiece(i) for i in range(size)],
        [kind(i) for i in range(size)],
        token_scores=[sp.GetScore(i) for i in range(size)],
        bos_token_id=1,
        eos_token_id=2,
        unk_token_id=0,
        add_space_prefix=prefix,
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    )
    expect(name, sp.EncodeAsIds)
