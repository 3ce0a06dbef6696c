"""A small Llama in plain PyTorch, its Hugging Face export, and its reading back.

Names, shapes and arithmetic are those of transformers' LlamaForCausalLM; the module here fuses the projections, takes
the loss at the solution's tokens only, and so trains faster on a CPU.
"""

import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
PAD, BOS, EOS, USER, ASSISTANT = range(5)
SHAPES = {
    "expert": dict(hidden=256, layers=6, heads=4, kv_heads=2, head_dim=64, inner=768),
    "drafter": dict(hidden=128, layers=2, heads=4, kv_heads=4, head_dim=32, inner=384),
}
THETA, EPS, MAX_POSITIONS = 10000.0, 1e-5, 1024


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, EPS)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.q_out, self.kv_out = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
        self.qkv = nn.Linear(c["hidden"], self.q_out + 2 * self.kv_out, bias=False)
        self.o = nn.Linear(self.q_out, c["hidden"], bias=False)
        self.gate_up = nn.Linear(c["hidden"], 2 * c["inner"], bias=False)
        self.down = nn.Linear(c["inner"], c["hidden"], bias=False)
        self.norm1, self.norm2 = Norm(c["hidden"]), Norm(c["hidden"])

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        c = self.c
        q, k, v = self.qkv(self.norm1(x)).split([self.q_out, self.kv_out, self.kv_out], -1)
        q = rotate(q.view(b, t, c["heads"], c["head_dim"]), cos, sin).transpose(1, 2)
        k = rotate(k.view(b, t, c["kv_heads"], c["head_dim"]), cos, sin).transpose(1, 2)
        v = v.view(b, t, c["kv_heads"], c["head_dim"]).transpose(1, 2)
        if c["heads"] != c["kv_heads"]:
            k = k.repeat_interleave(c["heads"] // c["kv_heads"], 1)
            v = v.repeat_interleave(c["heads"] // c["kv_heads"], 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def cached(self, x, cos, sin, cache, mask, room):
        """As forward, with the keys and values of the positions before: (keys, values, how many)."""
        b, t, _ = x.shape
        c = self.c
        q, k, v = self.qkv(self.norm1(x)).split([self.q_out, self.kv_out, self.kv_out], -1)
        q = rotate(q.view(b, t, c["heads"], c["head_dim"]), cos, sin).transpose(1, 2)
        k = rotate(k.view(b, t, c["kv_heads"], c["head_dim"]), cos, sin).transpose(1, 2)
        v = v.view(b, t, c["kv_heads"], c["head_dim"]).transpose(1, 2)
        if cache is None:
            cache = (k.new_zeros(b, c["kv_heads"], room, c["head_dim"]), k.new_zeros(b, c["kv_heads"], room, c["head_dim"]), 0)
        keys, values, n = cache
        keys[:, :, n:n + t], values[:, :, n:n + t] = k, v
        repeat = c["heads"] // c["kv_heads"]
        k = keys[:, :, :n + t].repeat_interleave(repeat, 1)
        v = values[:, :, :n + t].repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up), (keys, values, n + t)


def rotate(x, cos, sin):
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


class Model(nn.Module):
    def __init__(self, shape, vocab):
        super().__init__()
        self.shape, self.vocab = shape, vocab
        self.embed = nn.Embedding(vocab, shape["hidden"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["layers"]))
        self.norm = Norm(shape["hidden"])
        inverse = THETA ** (-torch.arange(0, shape["head_dim"], 2).float() / shape["head_dim"])
        angle = torch.outer(torch.arange(MAX_POSITIONS).float(), inverse)[:, None, :]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def start(self, generator):
        for name, p in self.named_parameters():
            if p.ndim == 2:
                std = 0.02 if name == "embed.weight" else p.shape[1] ** -0.5
                if name.endswith(("o.weight", "down.weight")):
                    std *= (2 * self.shape["layers"]) ** -0.5
                with torch.no_grad():
                    p.normal_(0, std, generator=generator)

    def forward(self, ids):
        """The last hidden states."""
        t = ids.shape[1]
        cos, sin = self.cos[:t], self.sin[:t]
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x

    def head(self, x):
        return F.linear(self.norm(x), self.embed.weight)

    def logits(self, ids):
        return self.head(self(ids))


def to_hugging_face(state, shape):
    out = {"model.embed_tokens.weight": state["embed.weight"], "model.norm.weight": state["norm.weight"]}
    q, kv = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    for i in range(shape["layers"]):
        a, b = f"layers.{i}.", f"model.layers.{i}."
        parts = state[a + "qkv.weight"].split([q, kv, kv])
        for name, part in zip("qkv", parts):
            out[f"{b}self_attn.{name}_proj.weight"] = part
        out[b + "self_attn.o_proj.weight"] = state[a + "o.weight"]
        gate, up = state[a + "gate_up.weight"].chunk(2)
        out[b + "mlp.gate_proj.weight"], out[b + "mlp.up_proj.weight"] = gate, up
        out[b + "mlp.down_proj.weight"] = state[a + "down.weight"]
        out[b + "input_layernorm.weight"] = state[a + "norm1.weight"]
        out[b + "post_attention_layernorm.weight"] = state[a + "norm2.weight"]
    return {k: v.detach().to(torch.float16).contiguous() for k, v in out.items()}


def write(path, data):
    with open(path + ".tmp", "wb") as f:
        f.write(data)
    os.replace(path + ".tmp", path)


def export(folder, state, shape, vocab):
    """Write config.json, generation_config.json and model.safetensors (f16), each in one move."""
    os.makedirs(folder, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": shape["hidden"], "intermediate_size": shape["inner"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"], "head_dim": shape["head_dim"],
        "hidden_act": "silu", "max_position_embeddings": MAX_POSITIONS, "rms_norm_eps": EPS, "rope_theta": THETA,
        "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "tie_word_embeddings": True, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "float16",
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
    }
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        write(os.path.join(folder, name), (json.dumps(value, indent=2) + "\n").encode())
    path = os.path.join(folder, "model.safetensors")
    save_file(to_hugging_face(state, shape), path + ".tmp", metadata={"format": "pt"})
    os.chmod(path + ".tmp", 0o644)
    os.replace(path + ".tmp", path)


def read(folder, q8=False):
    """The model of a folder as f32; with `q8`, its matrices rounded as Q8_0 rounds them."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    shape = dict(hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
                 kv_heads=c["num_key_value_heads"], head_dim=c["head_dim"], inner=c["intermediate_size"])
    w = {k: v.float() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}
    if q8:
        w = {k: q8_0(v) if v.ndim == 2 else v for k, v in w.items()}
    state = {"embed.weight": w["model.embed_tokens.weight"], "norm.weight": w["model.norm.weight"]}
    for i in range(shape["layers"]):
        a, b = f"layers.{i}.", f"model.layers.{i}."
        state[a + "qkv.weight"] = torch.cat([w[f"{b}self_attn.{n}_proj.weight"] for n in "qkv"])
        state[a + "o.weight"] = w[b + "self_attn.o_proj.weight"]
        state[a + "gate_up.weight"] = torch.cat([w[b + "mlp.gate_proj.weight"], w[b + "mlp.up_proj.weight"]])
        state[a + "down.weight"] = w[b + "mlp.down_proj.weight"]
        state[a + "norm1.weight"] = w[b + "input_layernorm.weight"]
        state[a + "norm2.weight"] = w[b + "post_attention_layernorm.weight"]
    model = Model(shape, c["vocab_size"])
    model.load_state_dict(state)
    return model.eval()


def q8_0(w):
    """Blocks of 32 along the input dimension, one f16 scale each: max|w| / 127."""
    blocks = w.reshape(w.shape[0], -1, 32)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    whole = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks)).round().clamp(-127, 127)
    return (whole * scale).reshape(w.shape)


@torch.no_grad()
def greedy(model, prompts, new=96, batch=100):
    """Greedy continuations of prompts of any lengths, each ended by EOS (kept) or after `new` tokens."""
    out = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), batch):
        part = order[at:at + batch]
        for i, ids in zip(part, greedy_batch(model, [prompts[i] for i in part], new)):
            out[i] = ids
    return out


def greedy_batch(model, prompts, new):
    n, longest = len(prompts), max(map(len, prompts))
    pad = torch.tensor([longest - len(p) for p in prompts])
    ids = torch.tensor([[PAD] * (longest - len(p)) + list(p) for p in prompts])
    room = longest + new
    cache = [None] * len(model.layers)
    out, done = [[] for _ in prompts], [False] * n
    start = 0
    while True:
        at = torch.arange(start, start + ids.shape[1])
        position = (at[None] - pad[:, None]).clamp(min=0)
        seen = torch.arange(start + ids.shape[1])
        mask = (seen[None, None] <= at[None, :, None]) & (seen[None, None] >= pad[:, None, None])
        mask = mask | (seen[None, None] == at[None, :, None])
        x = model.embed(ids)
        for i, layer in enumerate(model.layers):
            x, cache[i] = layer.cached(x, model.cos[position], model.sin[position], cache[i], mask[:, None], room)
        token = model.head(x[:, -1]).argmax(-1)
        start += ids.shape[1]
        for r, t in enumerate(token.tolist()):
            if not done[r]:
                out[r].append(t)
                done[r] = t == EOS
        if all(done) or start >= room - 1:
            return out
        ids = token[:, None]


def last_rows(model, texts, count=1):
    """Logits of the last `count` rows of every text; rows in the order given."""
    out = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for at in range(0, len(order), 64):
        part = order[at:at + 64]
        longest = max(len(texts[i]) for i in part)
        ids = torch.tensor([texts[i] + [PAD] * (longest - len(texts[i])) for i in part])
        x = model(ids)
        rows = torch.stack([x[r, len(texts[i]) - count:len(texts[i])] for r, i in enumerate(part)])
        logits = model.head(rows)
        for r, i in enumerate(part):
            out[i] = logits[r] if count > 1 else logits[r, 0]
    return out
