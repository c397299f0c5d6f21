"""Train a small LLaMA on Python's standard library and write it as Meta wrote LLaMA: shards, params, tokenizer.

    python examples/train_tiny_llama.py OUT_FOLDER [--steps N]

    OUT_FOLDER/consolidated.00.pth  consolidated.01.pth     two model-parallel shards, fp16
    OUT_FOLDER/params.json  tokenizer.model  checklist.chk  as in Meta's releases
    OUT_FOLDER/heldout.txt                                  text that was kept out of training

A few minutes on two CPU cores; needs torch and sentencepiece. The text is whatever standard library runs this script:
every 25th file is held out. The seed is fixed, so the same Python, torch and thread count give the same weights.

The network is LLaMA's: RMSNorm before each part, grouped-query attention with rotary embeddings on *adjacent* pairs
of each head (x[2j], x[2j + 1]), and a SwiGLU feed-forward, w2(silu(w1 x) * w3 x). Its modules bear Meta's names, so
that its state dict has Meta's keys.
Sources: Touvron et al., LLaMA (2023), section 2; Su et al., RoFormer (2021), equation 34.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional

DIM, N_LAYERS, N_HEADS, N_KV_HEADS, NORM_EPS, VOCAB = 256, 4, 8, 4, 1e-5, 1024
HEAD_DIM = DIM // N_HEADS
MULTIPLE_OF, FFN_MULTIPLIER = 256, 0.75
# Meta's rule, in its integer steps: two thirds of 4 * dim, times the multiplier, up to the next multiple: 512 here.
FFN = MULTIPLE_OF * math.ceil(int(FFN_MULTIPLIER * int(2 * (4 * DIM) / 3)) / MULTIPLE_OF)
CONTEXT, FIRST_CONTEXT, BATCH_TOKENS = 512, 128, 2048  # short windows first: cheaper, and learnt sooner
ROPE_THETA = 10000.0
N_SHARDS = 2
PEAK_RATE, WARMUP_STEPS = 2e-3, 30
SEED = 1
HELD_OUT_EVERY, HELD_OUT_CHARACTERS = 25, 20_000  # the head of every 25th file: many files have a say in 200 kB
# Tests repeat themselves, tables are not language, and the rest is no part of the library or differs by machine.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "site-packages"}


# --- text and tokenizer


def library_files() -> list[Path]:
    """The standard library's sources, in one order everywhere."""
    root = Path(sysconfig.get_path("stdlib"))
    relative = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return [
        root / name
        for name in relative
        if not SKIPPED.intersection(name.split("/")) and not name.startswith(("_sysconfigdata", "config-"))
    ]


def first_lines(text: str, n_characters: int) -> str:
    """As many whole lines of `text` as fit into `n_characters`."""
    return text if len(text) <= n_characters else text[: text.rfind("\n", 0, n_characters) + 1]


def split_texts(files: list[Path]) -> tuple[list[str], str]:
    """-> (training texts, one for each file; the held-out text)."""
    texts = [path.read_text(encoding="utf-8") for path in files]
    held_out = [first_lines(text, HELD_OUT_CHARACTERS) for text in texts[::HELD_OUT_EVERY]]
    training = [text for index, text in enumerate(texts) if index % HELD_OUT_EVERY]
    return training, "".join(held_out)


def train_tokenizer(texts: list[str]) -> bytes:
    """A SentencePiece BPE model with LLaMA's settings: ids 0 unk, 1 bos, 2 eos, 3 to 258 the bytes, then pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()


# --- network


def rope_frequencies() -> Tensor:
    """[head_dim / 2] radians a position: theta^(-2j / head_dim)."""
    return 1.0 / ROPE_THETA ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """The adjacent pairs of x [batch, positions, heads, head_dim], as complex numbers, times turns."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(DIM, N_HEADS * HEAD_DIM, bias=False)
        self.wk = nn.Linear(DIM, N_KV_HEADS * HEAD_DIM, bias=False)
        self.wv = nn.Linear(DIM, N_KV_HEADS * HEAD_DIM, bias=False)
        self.wo = nn.Linear(N_HEADS * HEAD_DIM, DIM, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """[batch, positions, dim] -> the same."""
        queries, keys, values = (w(x).unflatten(-1, (-1, HEAD_DIM)) for w in (self.wq, self.wk, self.wv))
        queries, keys = rotate(queries, turns), rotate(keys, turns)
        keys, values = (heads.repeat_interleave(N_HEADS // N_KV_HEADS, dim=2) for heads in (keys, values))
        queries, keys, values = (heads.transpose(1, 2) for heads in (queries, keys, values))
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.wo(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(DIM, FFN, bias=False)
        self.w2 = nn.Linear(FFN, DIM, bias=False)
        self.w3 = nn.Linear(DIM, FFN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same."""
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.feed_forward = FeedForward()
        self.attention_norm = nn.RMSNorm(DIM, eps=NORM_EPS)
        self.ffn_norm = nn.RMSNorm(DIM, eps=NORM_EPS)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """[batch, positions, dim] -> the same."""
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Token ids [batch, positions] -> logits [batch, positions, VOCAB]."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.norm = nn.RMSNorm(DIM, eps=NORM_EPS)
        self.output = nn.Linear(DIM, VOCAB, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:  # what writes into the stream starts smaller, for 2 * N_LAYERS of them add up
                shrink = math.sqrt(2 * N_LAYERS) if name.endswith(("wo.weight", "w2.weight")) else 1.0
                nn.init.normal_(weight, std=1 / (shrink * math.sqrt(weight.shape[1])))
        nn.init.normal_(self.output.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        x = self.tok_embeddings(tokens)
        angles = torch.outer(torch.arange(tokens.shape[1]).float(), rope_frequencies())
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        for layer in self.layers:
            x = layer(x, turns)
        return self.output(self.norm(x))


# --- training


def batches(tokens: Tensor, bos: int, n_steps: int) -> Iterator[Tensor]:
    """Random windows [batch, context + 1]; every other one begins with BOS, so that the model knows both starts."""
    generator = torch.Generator().manual_seed(SEED)
    for step in range(n_steps):
        context = FIRST_CONTEXT if step < 0.7 * n_steps else CONTEXT
        starts = torch.randint(len(tokens) - context - 1, (BATCH_TOKENS // context, 1), generator=generator)
        windows = tokens[starts + torch.arange(context + 1)]
        windows[::2, 0] = bos
        yield windows


def train(model: Llama, tokens: Tensor, bos: int, n_steps: int) -> None:
    """AdamW, a linear warm-up, then half a cosine down to a hundredth of the peak."""
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))

    def rate(step: int) -> float:
        cosine = 0.505 + 0.495 * math.cos(math.pi * step / n_steps)
        return min((step + 1) / WARMUP_STEPS, cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    begun = time.perf_counter()
    for step, windows in enumerate(batches(tokens, bos, n_steps)):
        logits = model(windows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == n_steps - 1:
            print(f"step {step}/{n_steps}  loss {loss.item():.3f}  {time.perf_counter() - begun:.0f} s", flush=True)


@torch.no_grad()
def perplexity(model: Llama, text_tokens: list[int], bos: int) -> tuple[float, float, int]:
    """llama.cpp's protocol: BOS and the text, cut into windows of CONTEXT, each window's first token replaced by BOS.

    -> (perplexity over the second half of each window, over all of it but the first token, number of windows).
    """
    n_windows = (len(text_tokens) + 1) // CONTEXT
    windows = torch.tensor(([bos, *text_tokens])[: n_windows * CONTEXT]).view(n_windows, CONTEXT)
    windows[:, 0] = bos
    losses = torch.empty(0, CONTEXT - 1, dtype=torch.float64)
    for some in windows.split(8):
        loss = functional.cross_entropy(model(some[:, :-1]).transpose(1, 2), some[:, 1:], reduction="none")
        losses = torch.cat((losses, loss.double()))
    return losses[:, CONTEXT // 2 :].mean().exp().item(), losses.mean().exp().item(), n_windows


# --- writing


def shard(name: str, tensor: Tensor, rank: int) -> Tensor:
    """What model-parallel `rank` holds of a tensor, in storage of its own (a view would drag the whole along)."""
    if tensor.ndim == 1:
        return tensor.clone()
    by_columns = name.endswith(("wo.weight", "w2.weight", "tok_embeddings.weight"))
    return tensor.chunk(N_SHARDS, dim=1 if by_columns else 0)[rank].clone()


def write(folder: Path, model: Llama, tokenizer: bytes, held_out: str) -> None:
    """Lay out the folder as Meta does."""
    params = {
        "dim": DIM,
        "multiple_of": MULTIPLE_OF,
        "ffn_dim_multiplier": FFN_MULTIPLIER,
        "n_heads": N_HEADS,
        "n_kv_heads": N_KV_HEADS,
        "n_layers": N_LAYERS,
        "norm_eps": NORM_EPS,
        "vocab_size": -1,  # as in LLaMA 1 and 2: the embedding's rows say it
    }
    folder.mkdir(parents=True, exist_ok=True)
    state = {**model.state_dict(), "rope.freqs": rope_frequencies()}
    names = [f"consolidated.{rank:02d}.pth" for rank in range(N_SHARDS)]
    for rank, name in enumerate(names):
        torch.save({key: shard(key, tensor.half(), rank) for key, tensor in state.items()}, folder / name)
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "heldout.txt").write_bytes(held_out.encode("utf-8"))
    digests = [(hashlib.md5((folder / name).read_bytes()).hexdigest(), name) for name in [*names, "params.json"]]
    (folder / "checklist.chk").write_text("".join(f"{digest}  {name}\n" for digest, name in digests), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="OUT_FOLDER")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps (default %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    training, held_out = split_texts(library_files())
    tokenizer = train_tokenizer(training)
    encoder = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    bos, eos = encoder.bos_id(), encoder.eos_id()
    tokens = torch.tensor([token for text in encoder.encode(training) for token in (bos, *text, eos)])
    held_out_tokens = encoder.encode(held_out)
    print(f"{len(training)} files, {len(tokens)} tokens; held out {len(held_out.encode())} bytes", flush=True)

    model = Llama()
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters", flush=True)
    train(model, tokens, bos, options.steps)
    model.half().float()  # measure what is stored
    write(options.folder, model, tokenizer, held_out)
    second_half, everywhere, n_windows = perplexity(model, held_out_tokens, bos)
    print(f"held-out perplexity, {n_windows} windows of {CONTEXT} tokens that begin with BOS:")
    print(f"    {second_half:.4f} over the second half of each (llama.cpp's protocol), {everywhere:.4f} over all of it")


if __name__ == "__main__":
    main()
