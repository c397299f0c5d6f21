"""The command line as a user meets it: documents, exit codes, one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from meta_checkpoints import write_meta

OPTION = ["--context-length", "128"]


def smelt(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "smelt", *map(str, words)], capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "meta"
    write_meta(folder, n_shards=2, n_kv_heads=2)
    return folder


def one_line(found: subprocess.CompletedProcess[str], code: int) -> str:
    assert found.returncode == code, found.stderr
    assert found.stderr.startswith("smelt: error: ")
    assert found.stderr.count("\n") == 1
    return found.stderr


def test_inspect_prints_the_document(model: Path) -> None:
    found = smelt("inspect", model, *OPTION, "--json")
    document = json.loads(found.stdout)
    assert found.returncode == 0
    assert {"format", "architecture", "parameters", "bytes", "tensors"} <= document.keys()
    assert (document["format"], document["architecture"]) == ("meta", "llama")
    assert document["bytes"] == sum(path.stat().st_size for path in model.glob("*.pth"))
    embedding = next(t for t in document["tensors"] if t["name"] == "tok_embeddings.weight")
    assert embedding == {"name": "tok_embeddings.weight", "shape": [512, 64], "dtype": "F16", "nbytes": 65536}


def test_inspect_shows_a_model_it_cannot_map(model: Path, tmp_path: Path) -> None:
    smelt("convert", model, tmp_path / "hf", *OPTION)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, "model_type": "mystery"}))
    found = smelt("inspect", tmp_path / "hf", "--json")
    document = json.loads(found.stdout)
    assert found.returncode == 1
    assert document["architecture"] is None
    assert len(document["tensors"]) == 21
    assert "mystery" in document["problems"][0]


def test_inspect_says_by_its_exit_code_that_something_is_missing(model: Path) -> None:
    found = smelt("inspect", model)
    assert found.returncode == 1
    assert "problem: the context length is in none of its files" in found.stdout


def test_convert_writes_a_meta_folder_in_shards(model: Path, tmp_path: Path) -> None:
    words = ("convert", model, tmp_path / "out", "--to", "meta", "--shards", 1, *OPTION, "--json")
    planned, made = (json.loads(smelt(*words, *more).stdout) for more in (["--dry-run"], []))
    assert planned["files"] == made["files"] and planned["bytes"] == made["bytes"]
    assert sorted(Path(name).name for name in made["files"]) == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )
    assert {"consolidated.00.pth", "params.json", "tokenizer.model", "checklist.chk", "smelt.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert smelt("diff", model, tmp_path / "out").returncode == 0
    assert "--shards 3" in one_line(smelt("convert", model, tmp_path / "x", "--to", "meta", "--shards", 3, *OPTION), 2)


def test_convert_quantize_and_diff_print_their_documents(model: Path, tmp_path: Path) -> None:
    made = json.loads(smelt("convert", model, tmp_path / "hf", *OPTION, "--json").stdout)
    assert set(made) >= {"target", "files", "bytes", "tensors", "seconds", "schemes", "notes"}
    assert made["schemes"] == {"f16": 21}
    small = json.loads(smelt("quantize", model, tmp_path / "m.gguf", "--scheme", "Q8_0", *OPTION, "--json").stdout)
    assert small["schemes"] == {"q8_0": 16, "f32": 5}
    assert all(Path(name).is_file() for name in [*made["files"], *small["files"]])
    same = smelt("diff", model, tmp_path / "hf", "--json")
    assert (same.returncode, json.loads(same.stdout)) == (0, {"equal": True, "tensors": 21, "different": []})
    other = smelt("diff", model, tmp_path / "m.gguf", "--json")
    assert other.returncode == 1
    assert len(json.loads(other.stdout)["different"]) == 16


def test_a_dry_run_writes_nothing_and_knows_the_size(model: Path, tmp_path: Path) -> None:
    planned = json.loads(smelt("convert", model, tmp_path / "m.gguf", *OPTION, "--dry-run", "--json").stdout)
    assert list(tmp_path.iterdir()) == []
    smelt("convert", model, tmp_path / "m.gguf", *OPTION)
    assert (tmp_path / "m.gguf").stat().st_size == planned["bytes"]


def test_a_dry_run_refuses_what_the_run_would(model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert "--force" in one_line(smelt("convert", model, tmp_path / "m.gguf", *OPTION, "--dry-run"), 2)
    assert "does not exist" in one_line(smelt("convert", model, tmp_path / "no" / "m.gguf", *OPTION, "--dry-run"), 2)


def test_usage_errors_exit_with_2(model: Path, tmp_path: Path) -> None:
    assert "unknown to smelt; it makes" in one_line(
        smelt("quantize", model, tmp_path / "m.gguf", "--scheme", "q9", *OPTION), 2
    )
    (tmp_path / "m.gguf").touch()
    assert "--force" in one_line(smelt("convert", model, tmp_path / "m.gguf", *OPTION), 2)
    assert one_line(smelt("convert", model), 2)
    assert one_line(smelt("frobnicate"), 2)
    assert smelt().returncode == 2


def test_bad_input_exits_with_3(tmp_path: Path) -> None:
    assert "no such file" in one_line(smelt("inspect", tmp_path / "nothing"), 3)
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html><html><body>Access denied</body></html>")
    assert "web page" in one_line(smelt("inspect", tmp_path / "page.gguf"), 3)
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-lfs" in one_line(smelt("inspect", tmp_path / "pointer.safetensors"), 3)
    assert "hf download" in one_line(smelt("convert", "meta-llama/Llama-2-7b", tmp_path / "out"), 3)


def test_a_pickle_that_runs_code_is_named_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {canary}",)

    (tmp_path / "m").mkdir()
    torch.save({"tok_embeddings.weight": Payload()}, tmp_path / "m" / "consolidated.00.pth")
    (tmp_path / "m" / "params.json").write_text('{"dim": 64, "n_heads": 4, "n_layers": 1, "norm_eps": 1e-5}')
    for command in (["inspect"], ["convert"]):
        words = [*command, tmp_path / "m", *([tmp_path / "out"] if command == ["convert"] else [])]
        assert "system" in one_line(smelt(*words), 3)
    assert not canary.exists()


def test_a_disk_that_refuses_exits_with_4_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are a Unix matter")
    words = [sys.executable, "-P", "-m", "smelt", "convert", str(model), str(tmp_path / "m.gguf"), *OPTION]
    found = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert "cannot be written" in one_line(found, 4)
    assert list(tmp_path.iterdir()) == []


def test_names_from_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    write_meta(tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    torch.save({**torch.load(path, weights_only=True), "\x1b[2Jgone": torch.zeros(2)}, path)
    found = smelt("convert", tmp_path / "m", tmp_path / "out", *OPTION)
    assert "\x1b" not in found.stderr + found.stdout
    assert found.returncode == 3


def test_an_interrupt_exits_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", dim=512, n_layers=8)
    words = ["quantize", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--scheme", "q4_0", "--allow-fallback", *OPTION]
    process = subprocess.Popen([sys.executable, "-P", "-m", "smelt", *words], stderr=subprocess.PIPE, text=True)
    part = tmp_path / ".m.gguf.smelt.part"
    while not part.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_killed_run_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", dim=512, n_layers=8)
    words = ["quantize", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--scheme", "q4_0", "--allow-fallback", *OPTION]
    process = subprocess.Popen([sys.executable, "-P", "-m", "smelt", *words], stderr=subprocess.DEVNULL)
    part = tmp_path / ".m.gguf.smelt.part"
    while not part.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait(60)
    assert smelt(*words, "--force").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.gguf", "m.gguf.smelt.json"]


def test_numbers_that_are_none_are_usage_errors(model: Path, tmp_path: Path) -> None:
    assert one_line(smelt("convert", model, tmp_path / "out", "--rope-theta", "nan"), 2)
    assert one_line(smelt("convert", model, tmp_path / "out", "--context-length", 1 << 31), 2)
    assert one_line(smelt("convert", model, tmp_path / "out", "--max-shard-size", "9" * 400), 2)
    assert one_line(smelt("validate", model, model, "--text", model / "params.json", "--max-kld", "nan"), 2)
    assert one_line(smelt("perplexity", model, "--text", model / "params.json", "--ctx", 3), 2)


def test_the_demo_makes_its_folder(tmp_path: Path) -> None:
    found = smelt("demo", "--out", tmp_path / "new" / "folder", "--chunks", 2, "--json")
    assert found.returncode in (0, 1), found.stderr
    assert json.loads(found.stdout)["files"]
    assert (tmp_path / "new" / "folder" / "tiny-llama.q4_k_m.gguf").is_file()
