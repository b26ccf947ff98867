#!/usr/bin/env python3
"""A model folder as GGUF, for llama.cpp, by llama.cpp's own converter.

    peer_gguf.py FOLDER OUT.gguf f32|bf16 LLAMA_SOURCES

The models of make bench have no tokenizer, and GGUF wants one: the copy that is converted gets byte-pair merges of the right number,
which mean nothing. Ways of the converter that are put right: it asks for the hash of a known tokenizer; it takes every model whose
config.json has keys of experts, be they defaults, for a mixture of them; and it wants the number of shared experts, which is one."""
import json, os, shutil, sys, tempfile

folder, out, kind, sources = sys.argv[1:5]


def tokenizer(words):
    """As many words as the model has: bytes as GPT-2 spells them, then pairs of them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(b if b in printable else next(others)) for b in range(256)]
    pairs = [(x, y) for x in letters for y in letters][: words - 256]
    vocabulary = {w: i for i, w in enumerate(letters + [x + y for x, y in pairs])}
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": [f"{x} {y}" for x, y in pairs]}}


copy = tempfile.mkdtemp()
for name in os.listdir(folder):
    if os.path.isfile(os.path.join(folder, name)): shutil.copy(os.path.join(folder, name), copy)
config = json.load(open(os.path.join(copy, "config.json")))
if "E" in config["hybrid_override_pattern"]: config.setdefault("n_shared_experts", 1)
else: config = {k: v for k, v in config.items() if "expert" not in k and "group" not in k or k == "n_groups"}
json.dump(config, open(os.path.join(copy, "config.json"), "w"))
json.dump(tokenizer(config["vocab_size"]), open(os.path.join(copy, "tokenizer.json"), "w"))
json.dump({"tokenizer_class": "PreTrainedTokenizerFast"}, open(os.path.join(copy, "tokenizer_config.json"), "w"))

sys.path[:0] = [sources, os.path.join(sources, "gguf-py")]
sys.argv = ["convert_hf_to_gguf.py", copy, "--outfile", out, "--outtype", kind]
from conversion.base import ModelBase, TextModel

ModelBase.load_hparams = staticmethod(lambda folder, *a, **k: json.load(open(os.path.join(str(folder), "config.json"))))
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
import convert_hf_to_gguf

convert_hf_to_gguf.main()
shutil.rmtree(copy)
