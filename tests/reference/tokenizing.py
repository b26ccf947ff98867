"""Tokenizers: compares io/tokenizer*.c with the `tokenizers` package, and makes what `make test` has of it.

    tokenizing.py live PROGRAM [--seed N] [--strings N] [--only NAME] [--keep FOLDER] [--mestar PROGRAM]
        trains tokenizers of the shapes of released models on this machine's text, sends hostile strings through them and
        through PROGRAM (build/tests/test_tokenizer), and compares ids and decoded texts; with --mestar also what its convert.what tokens
        writes; exits 1 at any difference
    tokenizing.py bench PROGRAM [--megabytes N] [--threads N]   the speed of both on one core
    tokenizing.py fixtures FOLDER    writes tests/tokenizers: small tokenizers, strings, and what the package makes of them
    tokenizing.py unicode FILE       writes io/unicode_table.c from what the package says of every code point
"""
import argparse
import glob
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RUST_BACKTRACE", "0")
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Regex as R

P, N, D = pre_tokenizers, normalizers, decoders

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORD, END = r"[^\r\n\p{L}\p{N}]?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN = WORD + UP + "*" + LOW + "+|" + WORD + UP + "+" + LOW + r"*|\p{N}" + END
O200K = WORD + UP + "*" + LOW + "+" + SUFFIX + "|" + WORD + UP + "+" + LOW + "*" + SUFFIX + r"|\p{N}{1,3}" + END
KIMI = "|".join([r"[\p{Han}]+",
                 WORD + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+" + SUFFIX,
                 WORD + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*" + SUFFIX,
                 r"\p{N}{1,3}"]) + END.replace("/", "")
DEEPSEEK = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
            r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
CLIP = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
ODD = r"(?<=[a-z])(?=[A-Z])|\b\w{2,4}+\b|^#.*$|[[:digit:]]+|(?>ab|a)c|\x{4e00}\u4e8c|[^\W\d_]++|\h{2}-\H|[a-f&&[^c]]+z|\Aq|\s$|\S\Z"


# ------------------------------------------------------------------------------------------------ training text
def real_text(limit):
    """Text that a machine with a C compiler and Python has."""
    files = sorted(glob.glob("/usr/include/**/*.h", recursive=True)) + sorted(glob.glob("/usr/share/common-licenses/*"))
    files += sorted(glob.glob(os.path.join(os.path.dirname(os.__file__), "*.py")))
    random.Random(1).shuffle(files)
    out, size = [], 0
    for name in files:
        if not os.path.isfile(name) or size > limit:
            continue
        with open(name, "rb") as f:
            text = f.read(200000).decode("utf-8", "replace")
        out.append(text)
        size += len(text)
    return out


SCRIPTS = [(0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x5EA), (0x620, 0x64A), (0x905, 0x939), (0xE01, 0xE3A),
           (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x4FFF), (0xAC00, 0xB000), (0x1F600, 0x1F64F), (0x10400, 0x1044F),
           (0x1D400, 0x1D4FF), (0x2190, 0x21FF)]


def strange_text(seed, words):
    """Made-up words in many scripts, some often, so that a vocabulary has tokens of them."""
    r = random.Random(seed)
    lexicon = []
    for _ in range(400):
        a, b = r.choice(SCRIPTS)
        lexicon.append("".join(chr(r.randint(a, b)) for _ in range(r.randint(1, 6))))
    weights = [1 / (i + 1) for i in range(len(lexicon))]
    out = []
    for _ in range(words // 50):
        out.append(" ".join(r.choices(lexicon, weights, k=50)))
    return out


# ----------------------------------------------------------------------------------------------------- shapes
def byte_split(*first, regex=False, space=False):
    return P.Sequence(list(first) + [P.ByteLevel(add_prefix_space=space, use_regex=regex)])


def isolated(pattern):
    return P.Split(R(pattern), "isolated")


def train(t, text, size, special=(), alphabet=True, **more):
    if alphabet:
        more["initial_alphabet"] = P.ByteLevel.alphabet()
    t.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False, **more))
    return t


def edit(t, change):
    """The tokenizer with its file changed."""
    o = json.loads(t.to_str())
    change(o)
    return Tokenizer.from_str(json.dumps(o))


def plain(pre, text, size, special=("<|endoftext|>",), norm=None, post=True, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre
    if norm:
        t.normalizer = norm
    t.decoder = D.ByteLevel()
    if post:
        t.post_processor = processors.ByteLevel(trim_offsets=False)
    return train(t, text, size, special)


def with_bytes(t):
    """Adds the tokens <0x00> to <0xFF> behind the unknown token, as SentencePiece has them."""
    def change(o):
        m = o["model"]
        old = sorted(m["vocab"], key=m["vocab"].get)
        names = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
        m["vocab"] = {k: i for i, k in enumerate(names + [k for k in old if k not in names])}
        m.update(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        for a in o["added_tokens"]:
            a["id"] = m["vocab"][a["content"]]
        o["added_tokens"].sort(key=lambda a: a["id"])
    return edit(t, change)


def sentencepiece(text, size, pre=None, norm=None, decoder=None, fallback=True, **model):
    t = Tokenizer(models.BPE(unk_token="<unk>", **model))
    t.pre_tokenizer = P.Metaspace()
    train(t, text, size, ["<unk>", "<s>", "</s>"], alphabet=False, limit_alphabet=300)
    t.pre_tokenizer = pre
    if norm:
        t.normalizer = norm
    t.decoder = decoder or D.Sequence([D.Replace("\u2581", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return with_bytes(t) if fallback else t


def gpt2(text, size):
    return plain(P.ByteLevel(add_prefix_space=False), text, size)


def gpt2_space(text, size):
    return plain(P.ByteLevel(add_prefix_space=True), text, size)


def llama3(text, size):
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"] + ["<|reserved_special_token_%d|>" % i for i in range(5)]
    t = plain(byte_split(isolated(LLAMA3)), text, size, (), ignore_merges=True)
    t.add_special_tokens(special)
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B", special_tokens=[(special[0], t.token_to_id(special[0]))])])
    # Tokens that no merge makes, which ignore_merges still finds whole.
    def change(o):
        m = o["model"]
        m["merges"] = m["merges"][: len(m["merges"]) * 3 // 4]
    return edit(t, change)


def qwen2(text, size):
    t = plain(byte_split(isolated(QWEN2)), text, size, (), norm=N.NFC())
    t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return t


def nemotron(text, size):
    return plain(byte_split(isolated(TEKKEN)), text, size, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<SPECIAL_5>"])


def o200k(text, size):
    return plain(byte_split(isolated(O200K)), text, size)


def kimi(text, size):
    return plain(byte_split(isolated(KIMI)), text, size)


def llama2(text, size):
    return sentencepiece(text, size, norm=N.Sequence([N.Prepend("\u2581"), N.Replace(" ", "\u2581")]))


def llama2_first(text, size):
    t = sentencepiece(text, size, pre=P.Metaspace(prepend_scheme="first", split=False), decoder=D.Sequence(
        [D.Replace("\u2581", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)]))
    t.add_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True), AddedToken("now", normalized=True)])
    return t


def metaspace(text, size):
    return sentencepiece(text, size, pre=P.Metaspace(prepend_scheme="always", split=True), decoder=D.Metaspace(), fallback=False,
                         fuse_unk=False)


def metaspace_never(text, size):
    return sentencepiece(text, size, pre=P.Metaspace(prepend_scheme="never"), decoder=D.Metaspace(prepend_scheme="never"),
                         fallback=False, fuse_unk=True)


def gemma(text, size):
    return sentencepiece(text, size, norm=N.Replace(" ", "\u2581"), pre=P.Split(" ", "merged_with_previous"),
                         decoder=D.Sequence([D.Replace("\u2581", " "), D.ByteFallback(), D.Fuse()]))


def starcoder(text, size):
    return plain(P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False, use_regex=True)]), text, size,
                 ["<|endoftext|>", "<fim_prefix>", "<fim_middle>"])


def phi(text, size):
    t = gpt2(text, size)
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(31, 1, -1)] + [AddedToken("\t" * n) for n in range(9, 1, -1)])
    return t


def deepseek(text, size):
    t = plain(byte_split(isolated(r"\p{N}{1,3}"), isolated("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), isolated(DEEPSEEK)), text,
              size, ())
    t.add_special_tokens(["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"])
    return t


def deepseek_coder(text, size):
    return plain(byte_split(isolated("[\r\n]"), isolated("\\s?\\p{L}+"), isolated("\\s?\\p{P}+"), isolated("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
                            P.Digits(individual_digits=True)), text, size)


def nfkc_lower(text, size):
    t = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    t.normalizer = N.Sequence([N.NFKC(), N.Lowercase(), N.NFD(), N.StripAccents(), N.Strip()])
    t.pre_tokenizer = P.Sequence([P.Whitespace(), P.Punctuation("contiguous")])
    t.decoder = D.BPEDecoder("</w>")
    train(t, text, size, ["[UNK]", "[CLS]"], alphabet=False, limit_alphabet=200, end_of_word_suffix="</w>")
    t.add_tokens([AddedToken("Hello"), AddedToken("\ufb01re", single_word=True)])
    return t


def clip(text, size):
    t = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    t.normalizer = N.Sequence([N.NFC(), N.Replace(R(r"\s+"), " "), N.Lowercase()])
    t.pre_tokenizer = P.Sequence([P.Split(R(CLIP), "removed", invert=True), P.ByteLevel(add_prefix_space=False)])
    t.decoder = D.ByteLevel()
    t.post_processor = processors.RobertaProcessing(("<|endoftext|>", 1), ("<|startoftext|>", 0), False, False)
    return train(t, text, size, ["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>")


def pieces(text, size):
    t = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##", fuse_unk=True))
    t.normalizer = N.Sequence([N.NFKD(), N.Replace("e", "EE")])
    t.pre_tokenizer = P.WhitespaceSplit()
    return train(t, text, size, ["[UNK]", "[PAD]"], alphabet=False, limit_alphabet=150, continuing_subword_prefix="##")


def bloom(text, size):
    return plain(byte_split(isolated(BLOOM)), text, size, ["<unk>", "<s>", "</s>", "<pad>"])


def behaviours(text, size):
    return plain(byte_split(P.Split("-", "merged_with_previous"), P.Split(R("[aeiou]"), "merged_with_next"),
                            P.Split(R("[0-9 ]"), "contiguous"), P.Split(R(r"\w+"), "merged_with_previous", invert=True),
                            P.Split(R("x+|y*"), "merged_with_next"), P.Split("\t", "removed"), P.Punctuation("merged_with_next"),
                            P.Split(R(ODD), "isolated")), text, size)


def twice(text, size):
    """Byte level in the middle, and as a normaliser."""
    t = plain(P.Sequence([P.ByteLevel(add_prefix_space=True), P.Split(R("[\u0120\u010a]+"), "contiguous"), P.Digits()]), text, size)
    t.add_tokens([AddedToken("caf\u00e9"), AddedToken(" lead"), AddedToken("trail ", rstrip=True)])
    return t


def byte_normal(text, size):
    t = plain(P.Split(R("[\u0120\u010a]?[^\u0120\u010a]+|."), "isolated"), text, size, norm=N.Sequence([N.Lowercase(), N.ByteLevel()]))
    t.add_tokens([AddedToken("caf\u00e9"), AddedToken("NOON", single_word=True), AddedToken("<SEP>", special=True, normalized=True)])
    return t


def added(text, size):
    t = gpt2(text, size)
    t.normalizer = N.Sequence([N.Prepend("_"), N.Replace(R("[bB]+"), "b"), N.Strip(left=False, right=True)])
    t.add_tokens([AddedToken("ab"), AddedToken("abab"), AddedToken("<l>", lstrip=True, normalized=False), AddedToken("<r>", rstrip=True),
                  AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False),
                  AddedToken("\u00e9t\u00e9", single_word=True), AddedToken("  ", normalized=False), AddedToken("_x", normalized=False),
                  AddedToken("\n\n", normalized=False, rstrip=True), AddedToken("'s", normalized=False)])
    t.add_special_tokens(["<s>", "<s><s>", "<", "<|a|>"])
    return t


def broken_fallback(text, size):
    """Some byte tokens missing, so that unknown and fallen-back characters mix; unknown ones are not fused."""
    def change(o):
        v = o["model"]["vocab"]
        for i in (0x80, 0x9F, 0xE4, 0xF0):
            del v["<0x%02X>" % i]
        o["model"]["fuse_unk"] = False
        o["decoder"] = json.loads(D.Sequence([D.ByteFallback(), D.Metaspace(prepend_scheme="always"), D.Fuse(), D.Strip("e", 1, 2),
                                              D.Replace(R("[st]+"), "<>")]).__getstate__())
    return edit(sentencepiece(text, size, pre=P.Metaspace(prepend_scheme="first", split=True)), change)


def no_unknown(text, size):
    def change(o):
        o["model"].update(unk_token=None, byte_fallback=False)
        o["decoder"] = None
    return edit(sentencepiece(text, size, norm=N.Sequence([N.NFD(), N.Replace(" ", "\u2581")])), change)


SHAPES = [gpt2, gpt2_space, llama3, qwen2, nemotron, o200k, kimi, llama2, llama2_first, metaspace, metaspace_never, gemma, starcoder, phi,
          deepseek, deepseek_coder, nfkc_lower, clip, pieces, bloom, behaviours, twice, byte_normal, added, broken_fallback, no_unknown]


# --------------------------------------------------------------------------------------------- hostile strings
FIXED = ["", " ", "\n", "\r\n", "a", "\u00e9", "\x00", "\x00a\x00", "  a", "a  ", "\n\n\na", " \n \n x", "\t\t x", "'s'S'\u017f 'll 'LL 'lL we're WE'RE",
         "'", "''", "'s", "a's's", "I'Ma'm", "\u2019s", "1234567890", "\u0661\u0662\u0663\u0664", "\u00bd\u00b2\u2167", "\uff11\uff12",
         "hello world", "HelloWORLD helloWorld HTTPServer iPhone", "a//b/c///\n/d", "...\n\n...\r\n", "\u0301\u0301a\u0301", "e\u0301\u0323\u0302",
         "\u1100\u1161\u11a8\uac00\u11a8", "\ufb01re \ufb01 fire ffi", "\u01c5\u01c5a\u01c5B", "\u02b0a\u02b0A", "\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8",
         "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd\ufe0f", "\U0001f1e9\U0001f1ea\U0001f1eb", "\u202eabc\u202c", "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
         "\u0130I\u0131i\u1e9e\u00df", "\u212b\u212a\u2126", "\u0344\u0f73\u0958", "\ufeffbom", "\u200b\u200c\u200d\u2060", "\u0085\u00a0\u1680\u2003\u2028\u2029\u3000x",
         "<s>", "</s>", "<s><s><s>", "<|endoftext|><|endoftext|>", "x<|endoftext|>y", "<|endoftext|", "<unk>", "<0x41>", "<mask>  <mask>", "  <mask>  x",
         "word words sword word", " word.", "\u00e9t\u00e9 \u00e9t\u00e9s", "<l> <r> <lr>  <l>", "  <l>", "<r>   ", "abababab", "bBbB abBB", "now  nownow", "Hello hello HELLO",
         "a" * 1000, " " * 1000, "\n" * 300, "ab" * 500, "\u00e9" * 500, "e\u0301" * 300, "\U0001f600" * 200, "1" * 500, "=" * 500, "\u4e00" * 500,
         "\u0301" * 200, "\u0323\u0301" * 100, "\ud7a3" * 50, "\u00ad\u0600", "\u180e", "\U000e0001\U000e0061", "\U0010ffff\ufffe\uffff", "\ue000\U000f0000",
         "cafe\u0301 caf\u00e9 CAF\u00c9", " lead trail  x", "NOON noon noonish", "\u2581\u2581a \u2581", "_x_x", "q\nq #c\n#d", "abc ac abac", "abzdez cz", "aB aBcD",
         "\u4e00\u4e8c", "x\xe9-1-", "A1-G fe-z", "tab\there", "foo.bar(baz)[0]{1};", "if (x==1) {\n\treturn x->y; // done\n}\n"]


def one_string(r, t):
    """Random characters and fragments, as bytes: valid or not."""
    fragments = t["fragments"]
    out = []
    for _ in range(r.choice([1, 2, 3, 5, 8, 13, 30])):
        k = r.random()
        if k < 0.25:
            out.append(r.choice(FIXED))
        elif k < 0.35:
            out.append(r.choice(fragments))
        elif k < 0.45:
            out.append("".join(chr(r.randint(0, 0x7F)) for _ in range(r.randint(1, 12))))
        elif k < 0.60:
            a, b = r.choice(SCRIPTS)
            out.append("".join(chr(r.randint(a, b)) for _ in range(r.randint(1, 9))))
        elif k < 0.68:
            out.append("".join(chr(r.choice([r.randint(0, 0xD7FF), r.randint(0xE000, 0xFFFF), r.randint(0x10000, 0x10FFFF),
                                             r.randint(0x10000, 0x1FFFF)])) for _ in range(r.randint(1, 6))))
        elif k < 0.76:
            out.append("".join(r.choice(t["assigned"]) for _ in range(r.randint(1, 6))))
        elif k < 0.84:
            out.append(r.choice("aeo\u0391\u0915\u1100\uac00x") + "".join(r.choice(t["marks"]) for _ in range(r.randint(1, 4))))
        elif k < 0.94:
            out.append("".join(r.choice(" \t\n\r\x0b\x0c\u00a0\u2003\u3000\u0085\u2028 \n ") for _ in range(r.randint(1, 5))))
        else:
            out.append(r.choice([" ", "a", "\u4e00", "\u0e01", "9", "!", "\u0301", "\U0001f600"]) * r.randint(1, 60))
    b = "".join(out).encode("utf-8", "surrogatepass")
    if r.random() < 0.15 and b:  # broken
        b = bytearray(b)
        for _ in range(r.randint(1, 5)):
            i = r.randrange(len(b) + 1)
            k = r.random()
            if k < 0.5:
                b[i:i] = bytes(r.choice([0x80, 0xBF, 0xC0, 0xC1, 0xC3, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF, 0xA0, 0x9F, 0x90]) for _ in
                               range(r.randint(1, 4)))
            else:
                del b[i:i + r.randint(1, 2)]
        b = bytes(b)
    return b


def hostile(seed, n, tokenizer):
    import unicodedata
    r = random.Random(seed)
    vocabulary = sorted(tokenizer.get_vocab())
    special = [a.content for a in tokenizer.get_added_tokens_decoder().values()]
    t = {"fragments": special * 20 + [decoded(tokenizer, [i], False) or "" for i in range(0, len(vocabulary), 7)] + vocabulary[::5] + [s.upper() for s in special],
         "assigned": [chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) not in ("Cn", "Co")],
         "marks": [chr(c) for c in range(0x20000) if unicodedata.category(chr(c))[0] == "M"]}
    out = [s.encode() for s in FIXED]
    return out + [one_string(r, t) for _ in range(n - len(out))]


# ------------------------------------------------------------------------------------------------- comparing
def decoded(t, ids, skip):
    """What the package decodes; None where it fails over its own feet."""
    try:
        return t.decode(ids, skip_special_tokens=skip)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        return None if ids else ""


def expected(t, strings):
    out = []
    for s in strings:
        ids = t.encode(s.decode("utf-8", "replace")).ids
        out.append((ids, decoded(t, ids, False), decoded(t, ids, True)))
    return out


def pack(strings):
    return b"".join(struct.pack("<I", len(s)) + s for s in strings)


def pack_answers(answers):
    out = []
    for ids, *texts in answers:
        out.append(struct.pack("<%di" % (len(ids) + 1), len(ids), *ids) + pack([t.encode() for t in texts]))
    return b"".join(out)


def unpack_answers(b):
    at, out = 0, []
    while at < len(b):
        (n,) = struct.unpack_from("<I", b, at)
        ids = list(struct.unpack_from("<%di" % n, b, at + 4))
        at += 4 + 4 * n
        texts = []
        for _ in range(2):
            (n,) = struct.unpack_from("<I", b, at)
            texts.append(b[at + 4:at + 4 + n].decode())
            at += 4 + n
        out.append((ids, *texts))
    return out


def write(path, data):
    with open(path, "wb" if isinstance(data, bytes) else "w") as f:
        f.write(data)
    return path


def differences(what, got, want, limit):
    bad = 0
    for s, g, w in zip(what, got, want):
        if all(b is None or a == b for a, b in zip(g, w)):
            continue
        bad += 1
        if bad > limit:
            continue
        print("  of %r" % (s,))
        for name, a, b in zip(("ids", "decoded", "without special"), g, w):
            if b is not None and a != b:
                i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                print("    %s at %d of %d: got %r, want %r" % (name, i, len(b), a[max(0, i - 3):i + 5], b[max(0, i - 3):i + 5]))
    return bad + abs(len(got) - len(want))


def compare(program, folder, t, strings, seed):
    r = random.Random(seed)
    size = max(t.get_vocab().values()) + 1
    lists = [[r.randrange(size + 3) for _ in range(r.randint(1, 12))] for _ in range(len(strings) // 4)]
    s = write(os.path.join(folder, "strings"), pack(strings))
    k = write(os.path.join(folder, "ids"), b"".join(struct.pack("<%dI" % (len(x) + 1), len(x), *x) for x in lists))
    run = subprocess.run([program, "live", folder, s, k], stdout=subprocess.PIPE)
    if run.returncode:
        print("  %s ended with code %d" % (program, run.returncode))
        return len(strings)
    want = expected(t, strings) + [([], decoded(t, x, False), decoded(t, x, True)) for x in lists]
    return differences(strings + lists, unpack_answers(run.stdout), want, 3)


def compare_command(mestar, folder, t, strings):
    """The same strings as lines of JSON through `mestar` itself."""
    texts = [s.decode("utf-8", "replace") for s in strings]
    path = {x: os.path.join(folder, "tokens." + x) for x in ("yaml", "jsonl", "made", "run")}
    write(path["jsonl"], "".join(json.dumps(s) + "\n" for s in texts))
    write(path["yaml"], "run:\n  mode: convert\nconvert:\n  what: tokens\n")
    if os.path.exists(path["made"]):
        os.remove(path["made"])
    run = subprocess.run([mestar, path["yaml"], "model.from=" + folder, "data.path=" + path["jsonl"], "convert.to=" + path["made"],
                          "run.output=" + path["run"]], stdout=subprocess.DEVNULL)
    if run.returncode:
        print("  %s ended with code %d" % (mestar, run.returncode))
        return len(texts)
    with open(path["made"], encoding="utf-8") as f:
        got = [(o["ids"], o["text"]) for o in map(json.loads, f.read().splitlines())]
    return differences(texts, got, [(ids, skipped) for ids, _, skipped in expected(t, strings)], 3)


def live(args):
    text = real_text(3_000_000) + strange_text(args.seed, 100_000)
    shapes = [f for f in SHAPES if not args.only or f.__name__ in args.only.split(",")]
    if args.files:
        shapes = []
    failed = 0
    for i, shape in enumerate(shapes + args.files):
        if isinstance(shape, str):
            name, folder, t = shape, shape, Tokenizer.from_file(os.path.join(shape, "tokenizer.json"))
        else:
            name, t = shape.__name__, shape(text, args.vocabulary)
            folder = os.path.join(args.keep, name) if args.keep else tempfile.mkdtemp()
            os.makedirs(folder, exist_ok=True)
            t.save(os.path.join(folder, "tokenizer.json"))
        strings = hostile(args.seed * 1000 + i, args.strings, t)
        bad = compare(args.program, folder, t, strings, args.seed)
        if args.mestar:
            bad += compare_command(args.mestar, folder, t, strings)
        failed += bad != 0
        print("%s tokenizer %s: %d of %d strings differ" % ("FAIL" if bad else "ok", name, bad, len(strings)), flush=True)
        if not args.keep and not isinstance(shape, str):
            shutil.rmtree(folder)
    return failed != 0


# ---------------------------------------------------------------------------------------------------- speed
def bench(args):
    docs, size = [], 0
    source = real_text(args.megabytes * 1_000_000) + strange_text(7, 100_000)
    while size < args.megabytes * 1_000_000:
        for d in source:
            docs.append(d[:20000])
            size += len(docs[-1].encode())
    for shape in [f for f in SHAPES if f.__name__ in (args.only or "llama3,nemotron,llama2").split(",")]:
        t = shape(source, 32000)
        with tempfile.TemporaryDirectory() as folder:
            t.save(os.path.join(folder, "tokenizer.json"))
            text = write(os.path.join(folder, "text"), "".join(docs))
            began = time.time()
            for i in range(0, len(docs), 200):
                t.encode_batch_fast(docs[i:i + 200])
            print("%s: package %.2f MB/s on one core; here " % (shape.__name__, size / (time.time() - began) * 1e-6), end="", flush=True)
            subprocess.run([args.program, "bench", folder, text, str(args.threads)], check=True)
    return 0


# -------------------------------------------------------------------------------------------------- fixtures
COMMITTED = [gpt2, llama3, qwen2, nemotron, llama2, llama2_first, metaspace, gemma, starcoder, phi, deepseek, nfkc_lower, clip, pieces, behaviours,
             twice, byte_normal, added, broken_fallback]


def fixtures(args):
    """Trained on made-up words and this project's kind of text, so that nothing of the machine is in them."""
    with open(__file__, encoding="utf-8") as f:
        text = [f.read()] * 3 + strange_text(11, 20_000)
    for i, shape in enumerate(COMMITTED):
        t = shape(text, 600)
        folder = os.path.join(args.program, shape.__name__)
        os.makedirs(folder, exist_ok=True)
        o = json.loads(t.to_str())
        if shape in (gpt2, llama2):  # the older spelling of merges
            o["model"]["merges"] = [" ".join(m) for m in o["model"]["merges"]]
        write(os.path.join(folder, "tokenizer.json"), json.dumps(o, ensure_ascii=False, separators=(",", ":")))
        if shape is llama3:
            write(os.path.join(folder, "tokenizer_config.json"), json.dumps(
                {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>", "special": True}}))
        strings = [s[:160] for s in hostile(i + 1, 170, t)]
        answers = expected(t, strings)
        good = [j for j, a in enumerate(answers) if None not in a]
        packed = pack([strings[j] for j in good])
        write(os.path.join(folder, "cases"), struct.pack("<I", len(packed)) + packed + pack_answers([answers[j] for j in good]))
    return 0


# --------------------------------------------------------------------------------------------------- Unicode
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn".split()
SCRIPT_NAMES = "Arabic Cyrillic Devanagari Greek Han Hangul Hebrew Hiragana Katakana Latin Thai".split()
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def kept_points(pre):
    """The code points that a pre-tokeniser leaves."""
    out = set()
    for i in range(0, len(POINTS), 16384):
        some = POINTS[i:i + 16384]
        for _, (a, b) in pre.pre_tokenize_str("".join(map(chr, some))):
            out.update(some[a:b])
    return out


def of_pattern(pattern):
    return kept_points(P.Split(R(pattern), "removed", invert=True))


def split_points(pre):
    """The code points that a pre-tokeniser makes pieces of their own between two letters."""
    out = set()
    for i in range(0, len(POINTS), 4096):
        some = POINTS[i:i + 4096]
        found = {a: b for _, (a, b) in pre.pre_tokenize_str("".join("a%sa " % chr(c) for c in some))}
        out.update(c for j, c in enumerate(some) if found.get(4 * j + 1) == 4 * j + 2)
    return out


def normalised(form):
    n, out = getattr(N, form)(), {}
    for i in range(0, len(POINTS), 4096):
        some = POINTS[i:i + 4096]
        lines = n.normalize_str("\n".join(map(chr, some))).split("\n")
        if len(lines) != len(some):
            lines = [n.normalize_str(chr(c)) for c in some]
        out.update(zip(some, lines))
    return out


def inert_points():
    """What the newest Unicode normalises and the package does not. Needs unicodedata2 of Unicode 18 or later."""
    import unicodedata2
    out = set()
    for form in ("NFD", "NFKD", "NFKC", "NFC"):
        for c, got in normalised(form).items():
            new = unicodedata2.normalize(form, chr(c))
            if got != new:
                assert got == chr(c)
                out.add(c)
                if form == "NFD":  # nor may its parts be composed to it
                    out.update(ord(x) for x in new[:-1])
    nfd = N.NFD()
    for c in POINTS:
        k = unicodedata2.combining(chr(c))
        s = "a" + chr(c) + "\u0334" if k > 1 else "a\u0301" + chr(c)
        if k and unicodedata2.normalize("NFD", s) != nfd.normalize_str(s):
            out.add(c)
    return out


def runs(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def category_runs(sets):
    kind = [CATEGORIES.index("Cs")] * 0x110000
    for i, name in enumerate(CATEGORIES):
        for c in sets[name]:
            kind[c] = i
    out, c = [], 0
    while c < 0x110000:
        end = c
        while kind[end:end + 2] == [0, 1]:
            end += 2
        if end - c >= 6:
            out.append(c << 5 | 31)
        else:
            end = c
            while end < 0x110000 and kind[end] == kind[c]:
                end += 1
            out.append(c << 5 | kind[c])
        c = end
    return out


def unicode(args):
    sets = {name: of_pattern(r"\p{%s}+" % name) for name in CATEGORIES}
    union = lambda names: set().union(*[sets[x] for x in names.split()])
    marks, punctuation = union("Mn Mc Me"), union("Pc Pd Ps Pe Pi Pf Po")
    accents = set(POINTS) - set(ord(c) for i in range(0, len(POINTS), 4096)
                                for c in N.StripAccents().normalize_str("".join(map(chr, POINTS[i:i + 4096]))))
    tables = [("word_extra", "Alphabetic symbols and the superscripts that Oniguruma counts among \\w, beyond L, M, Nd, Nl, Pc.",
               of_pattern(r"\w+") - union("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl Pc")),
              ("numeric_extra", "Numbers of Unicode 17, which the standard library of Rust knows and Oniguruma does not.",
               split_points(P.Digits(individual_digits=True)) - union("Nd Nl No")),
              ("not_punctuation", "Punctuation assigned after Unicode 9 or so, which the pre-tokeniser Punctuation does not know.",
               punctuation - split_points(P.Punctuation())),
              ("not_accent", "Marks assigned after Unicode 9, which StripAccents keeps.", marks - accents),
              ("inert_runs", "What Unicode 9 does not decompose, reorder or compose.", inert_points())]
    tables += [("script_" + s.lower(), "\\p{%s}" % s, of_pattern(r"\p{%s}+" % s)) for s in SCRIPT_NAMES]
    rows = category_runs(sets)
    out = '#include "io/unicode_table.h"\n\nconst uint32_t unicode_runs[] = {%s};\n' % ", ".join("0x%X" % x for x in rows)
    out += "const int n_unicode_runs = %d;\n\n" % len(rows)
    for name, comment, points in tables:
        rs = runs(points)
        out += "/* %s */\nconst struct range %s[] = {%s};\n" % (comment, name, ", ".join("{0x%X, 0x%X}" % tuple(x) for x in rs))
        out += "const int n_%s = %d;\n\n" % (name, len(rs))
    write(args.program, out)
    return subprocess.run(["clang-format", "-i", args.program]).returncode


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["live", "bench", "fixtures", "unicode"])
    p.add_argument("program", help="live, bench: build/tests/test_tokenizer; fixtures: the folder; unicode: the file")
    p.add_argument("--files", nargs="*", default=[], help="folders with a tokenizer.json to take instead of trained ones")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--strings", type=int, default=600)
    p.add_argument("--vocabulary", type=int, default=2000)
    p.add_argument("--only")
    p.add_argument("--mestar", help="live: the program itself, ./mestar")
    p.add_argument("--keep")
    p.add_argument("--megabytes", type=int, default=100)
    p.add_argument("--threads", type=int, default=1)
    args = p.parse_args()
    return globals()[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
