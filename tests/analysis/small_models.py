"""Tiny Llama and Qwen2 with LoRA in fp64, samples for them, and the gradients that autograd gives parameter by parameter."""

import copy

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from prefixlab.analysis.contributions import causal_lm
from prefixlab.model import attention
from prefixlab.records import Rendered, Span

KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = 3
TOLERANCE = {"prefixlab": 1e-10, "sdpa": 1e-10, "eager": 1e-4}
"""Relative. transformers' eager attention takes its softmax in fp32, whatever the model's dtype."""
CASES = [("llama", "prefixlab"), ("llama", "eager"), ("qwen2", "prefixlab"), ("qwen2", "sdpa")]
VOCAB = 97


def base_model(kind, implementation="prefixlab", seed=0):
    attention.register()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config, model = KINDS[kind]
    made = config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attn_implementation=implementation,
    )
    plain = model(made).double()
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.3)
            elif "embed" not in name and p.dim() == 2:
                p.mul_(5)  # 0.02 as initialised leaves the layers all but linear
    for name, module in list(plain.named_modules()):
        if name.endswith("norm"):  # transformers' own computes in fp32 inside, and its gradients with it
            exact = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            exact.weight = module.weight
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, exact)
    return plain.eval()


def adapted(kind, implementation="prefixlab", dropout=0.0, b_std=0.3):
    base = base_model(kind, implementation)
    lora = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=list(MODULES), task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=b_std)
    return model


def sample(name, *spans, seed=0):
    """Random ids; spans as (name, length); all but the prompt carries loss."""
    total = sum(n for _, n in spans)
    ids = torch.randint(0, VOCAB, (total,), generator=torch.Generator().manual_seed(seed)).tolist()
    found, labels, at = [], list(ids), 0
    for span, n in spans:
        found.append(Span(name=span, start=at, end=at + n))
        if span == "prompt":
            labels[at : at + n] = [-100] * n
        at += n
    return Rendered(id=name, ids=ids, labels=labels, spans=found, straddling=0, no_prefix_length=total)


SAMPLES = [
    sample("a", ("prompt", 5), ("prefix", 3), ("reasoning", 4), ("answer", 3), ("end", 1), seed=1),
    sample("b", ("prompt", 2), ("prefix", 3), ("prompt", 2), ("answer", 5), ("end", 1), seed=2),  # position `user`
    sample("c", ("prompt", 3), ("answer", 3), seed=3),
]


def plain_losses(model, one):
    """Token losses of one unpadded sample: transformers' forward, PEFT's own LoRA, logits at every position."""
    logits = causal_lm(model)(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0, :-1]
    labels = torch.tensor(one.labels)[1:]
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)[labels != -100]


class _PerPosition(nn.Module):
    """A LoRA layer with a copy of A and B, or of W, for every position."""

    def __init__(self, layer, positions, kind):
        super().__init__()
        self.layer, self.scale = layer, layer.scaling["default"]
        self.copied = [layer.base_layer.weight] if kind == "weight" else []
        if kind == "lora":
            self.copied = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        self.copies = nn.ParameterList(nn.Parameter(p.detach().expand(positions, -1, -1).clone()) for p in self.copied)

    def forward(self, x):
        if len(self.copies) == 1:
            lora = self.layer.lora_B["default"](self.layer.lora_A["default"](x)) * self.scale
            y = torch.einsum("bti,toi->bto", x, self.copies[0])
            return y + lora if self.layer.base_layer.bias is None else y + lora + self.layer.base_layer.bias
        u = torch.einsum("bti,tri->btr", x, self.copies[0])
        return self.layer.base_layer(x) + self.scale * torch.einsum("btr,tor->bto", u, self.copies[1])


def position_gradients(model, one, targets):
    """{layer: (T, P)}: C_t by autograd, from parameters that every position has a copy of."""
    model = copy.deepcopy(causal_lm(model))
    decoder = model.get_decoder()
    copies = {}
    for name in targets.layers:
        parent, _, child = name.rpartition(".")
        copies[name] = _PerPosition(decoder.get_submodule(name), len(one.ids), targets.kind)
        setattr(decoder.get_submodule(parent), child, copies[name])
    parameters = [p for layer in copies.values() for p in layer.copies]
    grads = iter(torch.autograd.grad(plain_losses(model, one).sum(), parameters))
    return {name: torch.cat([next(grads).flatten(1) for _ in layer.copies], dim=1) for name, layer in copies.items()}


def token_gradients(model, one, targets):
    """{layer: (J, P)}: grad l_j by one backward pass a token."""
    width = 2 if targets.kind == "lora" else 1
    parameters = targets.parameters
    required = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    losses = plain_losses(model, one)
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    for p, was in zip(parameters, required, strict=True):
        p.requires_grad_(was)
    return {
        name: torch.stack([torch.cat([g.flatten() for g in row[i * width : (i + 1) * width]]) for row in rows])
        for i, name in enumerate(targets.layers)
    }


def close(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=rtol, atol=rtol / 1000)


def whole(by_layer):
    """All layers side by side."""
    return torch.cat(list(by_layer.values()), dim=1)


def state(model):
    """What a pass over the model may not change."""
    return {
        "hooks": [
            (n, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
            for n, m in model.named_modules()
        ],
        "requires": [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()],
        "training": [m.training for m in model.modules()],
        "attention": causal_lm(model).config._attn_implementation,
        "values": {n: p.clone() for n, p in model.named_parameters()},
    }


def same_state(a, b):
    rest = [{k: v for k, v in s.items() if k != "values"} for s in (a, b)]
    return rest[0] == rest[1] and all(torch.equal(v, b["values"][n]) for n, v in a["values"].items())
