"""Files against what is said of them: ok where a digest says so, bad where one says otherwise, else unknown."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import smelt
import torch
from meta_checkpoints import write_meta
from smelt.api import convert_plan
from smelt.convert.options import OpenOptions
from smelt.convert.published import PublishedModel, published_models
from smelt.convert.run import RunOptions, run
from smelt.convert.verify import VerifyResult, verify
from smelt.errors import InputError

PARAMS = {"dim": 64, "n_layers": 1, "n_heads": 4, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1}


def statuses(result: VerifyResult) -> dict[str, str]:
    return {check.file: check.status for check in result.files}


def reason(result: VerifyResult, file: str) -> str:
    return next(check.reason for check in result.files if check.file == file)


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, params.json and a checklist over them, and a tokenizer that it does not list."""
    write_meta(tmp_path / "7B", n_shards=2)
    return tmp_path / "7B"


def write_list(path: Path, *files: Path, algorithm: str = "md5") -> None:
    lines = [
        f"{hashlib.new(algorithm, file.read_bytes()).hexdigest()}  {file.relative_to(path.parent)}\n" for file in files
    ]
    path.write_text("".join(lines))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("consolidated.*.pth"))


def test_files_that_a_checklist_names_are_ok(folder: Path) -> None:
    write_list(folder / "checklist.chk", *shards(folder), folder / "params.json")
    found = statuses(verify(folder))
    assert found["consolidated.00.pth"] == found["consolidated.01.pth"] == found["params.json"] == "ok"
    assert found["tokenizer.model"] == "unknown"
    assert "checklist.chk" not in found


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
@pytest.mark.parametrize("place", [0, 700, -1])
def test_one_flipped_bit_of_a_listed_file_is_bad(folder: Path, algorithm: str, place: int) -> None:
    write_list(folder / "SHA256SUMS", *shards(folder), algorithm=algorithm)
    (folder / "checklist.chk").unlink(missing_ok=True)
    flip(shards(folder)[1], place)
    result = verify(folder)
    assert statuses(result)["consolidated.00.pth"] == "ok"
    assert statuses(result)["consolidated.01.pth"] == "bad"
    assert algorithm in reason(result, "consolidated.01.pth")
    assert result.verdict == "bad"


def test_one_flipped_bit_of_weights_that_nothing_lists_is_found_by_the_zip_itself(folder: Path) -> None:
    (folder / "checklist.chk").unlink()
    assert set(statuses(verify(folder)).values()) == {"unknown"}
    flip(shards(folder)[0], shards(folder)[0].stat().st_size // 2)
    assert statuses(verify(folder))["consolidated.00.pth"] == "bad"


def test_a_list_in_the_folder_above_counts(folder: Path) -> None:
    (folder / "checklist.chk").unlink()
    write_list(folder.parent / "SHA256SUMS", *shards(folder), algorithm="sha256")
    assert statuses(verify(folder))["consolidated.00.pth"] == "ok"
    assert statuses(verify(folder.parent))["7B/consolidated.00.pth"] == "ok"
    assert statuses(verify(shards(folder)[0])) == {"consolidated.00.pth": "ok"}


def test_a_file_that_is_listed_and_missing_is_bad(folder: Path) -> None:
    write_list(folder / "checklist.chk", *shards(folder))
    shards(folder)[1].unlink()
    result = verify(folder)
    assert statuses(result)["consolidated.01.pth"] == "bad"
    assert reason(result, "consolidated.01.pth") == "is missing: checklist.chk lists it"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13476939516\n", "13476939516 bytes"),
        (b"<!DOCTYPE html><html><body>Access denied</body></html>", "web page"),
        (b"\n <html>", "web page"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.safetensors", "model.gguf", "pytorch_model.bin"])
def test_what_is_no_weights_at_all_is_bad(tmp_path: Path, content: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = verify(tmp_path)
    assert statuses(result) == {name: "bad"}
    assert said in reason(result, name)


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
def test_a_truncated_pth_is_bad(folder: Path, kept: float) -> None:
    (folder / "checklist.chk").unlink()
    file = shards(folder)[0]
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    assert statuses(verify(folder))["consolidated.00.pth"] == "bad"


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_a_truncated_file_is_bad_by_the_size_that_its_header_tells(tmp_path: Path, tiny_llama: Path, name: str) -> None:
    target = tmp_path / ("out" if name.endswith("safetensors") else name)
    smelt.convert(tiny_llama, target, options=OpenOptions(context_length=512))
    file = target / name if target.is_dir() else target
    file.write_bytes(file.read_bytes()[:-1])
    (target / "smelt.json" if target.is_dir() else tmp_path / f"{name}.smelt.json").unlink()
    assert statuses(verify(file)) == {name: "bad"}


@pytest.mark.parametrize(
    "line",
    ["abc  consolidated.00.pth", "d41d8cd98f00b204e9800998ecf8427e  ../secret", "\0" * 40, f"{'0' * 32}  /etc/passwd"],
)
def test_a_list_with_a_line_that_is_none_is_bad_itself(folder: Path, line: str) -> None:
    (folder / "checklist.chk").write_text(line)
    result = verify(folder)
    assert statuses(result)["checklist.chk"] == "bad"
    assert "line 1" in reason(result, "checklist.chk")


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path, *, firm: bool = True, shared: tuple[str, ...] = ()) -> None:
    digests = {file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in folder.iterdir()}
    model = PublishedModel("Example 7B", "a paper", firm, shared, digests)
    monkeypatch.setattr(sys.modules[PublishedModel.__module__], "published_models", lambda: (model,))


def test_published_files_are_recognised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "checklist.chk").unlink()
    publish(monkeypatch, folder)
    result = verify(folder)
    assert result.verdict == "ok"
    assert reason(result, "consolidated.01.pth") == "as published: Example 7B (a paper)"


def test_a_tampered_shard_beside_published_ones_is_bad(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "checklist.chk").unlink()
    publish(monkeypatch, folder)
    write_meta(folder.parent / "other", n_shards=2, seed=1)
    shutil.copy(folder.parent / "other" / "consolidated.01.pth", folder)  # sound in itself: just not what was published
    result = verify(folder)
    assert statuses(result)["consolidated.00.pth"] == "ok"
    assert statuses(result)["consolidated.01.pth"] == "bad"
    assert "Example 7B" in reason(result, "consolidated.01.pth")


def test_another_model_that_shares_a_file_with_a_published_one_is_not_accused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "checklist.chk").unlink()
    publish(monkeypatch, folder, shared=("params.json", "tokenizer.model"))
    for shard in shards(folder):
        shutil.copy(folder / "params.json", shard)
    found = statuses(verify(folder))
    assert found["params.json"] == "ok"
    assert found["consolidated.00.pth"] == "unknown"


def test_a_list_of_low_trust_accuses_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "checklist.chk").unlink()
    publish(monkeypatch, folder, firm=False)
    shutil.copy(folder / "params.json", shards(folder)[1])
    assert statuses(verify(folder))["consolidated.01.pth"] == "unknown"


def test_the_digests_that_ship_are_digests() -> None:
    models = published_models()
    assert {model.model for model in models} >= {"LLaMA 65B", "Llama 2 7B", "OPT 175B", "Llama 3 tokenizer"}
    for model in models:
        for digests in model.files.values():
            for algorithm, digest in digests.items():
                assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size


def test_the_published_params_of_llama_65b_are_recognised(tmp_path: Path) -> None:
    said = '{"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}'
    (tmp_path / "params.json").write_text(said)
    assert "LLaMA 65B" in reason(verify(tmp_path), "params.json")


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        verify(tmp_path / "nothing")


def test_the_command_exits_by_what_it_found(folder: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "smelt", "verify", *words], capture_output=True, text=True, check=False
        )

    assert run(str(folder)).returncode == 0
    assert run(str(folder), "--strict").returncode == 1, "the tokenizer is in no list"
    flip(shards(folder)[0], -1)
    found = run(str(folder), "--json")
    assert found.returncode == 1
    document = json.loads(found.stdout)
    assert document["verdict"] == "bad"
    assert document["bad"] == 1


def make_all(tmp_path: Path) -> dict[str, Path]:
    """One model in three formats, by smelt; rotary rows lie in another order in two of them."""
    source = tmp_path / "source"
    write_meta(source, n_shards=2, n_heads=4, n_kv_heads=2)
    options = OpenOptions(context_length=64)
    found = {"meta": tmp_path / "meta", "safetensors": tmp_path / "hf", "gguf": tmp_path / "m.gguf"}
    for to, target in found.items():
        smelt.convert(source, target, to=to, n_shards=4 if to == "meta" else None, options=options)
    return found


def manifest_of(target: Path) -> Path:
    return target / "smelt.json" if target.is_dir() else target.with_name(f"{target.name}.smelt.json")


def test_every_format_of_one_model_has_the_same_digests(tmp_path: Path) -> None:
    targets = make_all(tmp_path)
    digests = [json.loads(manifest_of(target).read_text())["digests"] for target in targets.values()]
    assert len(digests[0]) == 2 * 9 + 3
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests[0].values())) == len(digests[0])


def test_digests_do_not_depend_on_threads_or_slabs(tmp_path: Path) -> None:
    write_meta(tmp_path / "source", dim=256, vocab=512)
    found = set()
    for number, (threads, slab) in enumerate([(1, 1 << 20), (2, 300), (7, 5000)]):
        target = tmp_path / f"{number}.gguf"
        plan = convert_plan(tmp_path / "source", target, options=OpenOptions(context_length=64))
        run(plan, RunOptions(threads, slab=slab))
        found.add(json.dumps(json.loads(manifest_of(target).read_text())["digests"]))
    assert len(found) == 1


@pytest.mark.parametrize("to", ["meta", "safetensors", "gguf"])
def test_what_smelt_wrote_is_ok_until_any_bit_of_it_changes(tmp_path: Path, to: str) -> None:
    target = make_all(tmp_path)[to]
    assert set(statuses(verify(target)).values()) == {"ok"}
    random = Random(0)
    files = sorted(
        path for path in (target.iterdir() if target.is_dir() else [target]) if "smelt.json" not in path.name
    )
    for _ in range(12):
        file = random.choice([path for path in files if path.suffix != ".chk"])
        before = file.read_bytes()
        flip(file, random.randrange(len(before)), random.randrange(8))
        result = verify(target)
        assert statuses(result)[file.name] == "bad", (file.name, result)
        file.write_bytes(before)


def test_a_changed_tensor_is_named(tmp_path: Path) -> None:
    target = make_all(tmp_path)["safetensors"]
    file = target / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = (
        8 + int.from_bytes(content[:8], "little") + header["model.layers.1.self_attn.k_proj.weight"]["data_offsets"][0]
    )
    content[start] ^= 1
    file.write_bytes(content)
    assert "model.layers.1.self_attn.k_proj.weight" in reason(verify(target), "model.safetensors")


def test_a_quantized_file_is_verified_too(tmp_path: Path) -> None:
    write_meta(tmp_path / "source", dim=256, vocab=512, multiple_of=256)
    target = tmp_path / "m.gguf"
    smelt.quantize(tmp_path / "source", target, scheme="q4_k_m", options=OpenOptions(context_length=64))
    assert statuses(verify(target)) == {"m.gguf": "ok"}
    flip(target, target.stat().st_size - 1000)
    assert statuses(verify(target)) == {"m.gguf": "bad"}


def test_a_manifest_names_its_sources_and_hashes_them_on_request(tmp_path: Path) -> None:
    write_meta(tmp_path / "source")
    plan = convert_plan(tmp_path / "source", tmp_path / "out", options=OpenOptions(context_length=64))
    run(plan, RunOptions(1, source_digests=True))
    (source,) = json.loads((tmp_path / "out" / "smelt.json").read_text())["sources"]
    content = (tmp_path / "source" / source["file"]).read_bytes()
    assert source["sha256"] == hashlib.sha256(content).hexdigest()
    assert source["bytes"] == len(content)
    assert len(bytes.fromhex(source["header_sha256"])) == 32
    assert source["modified"].endswith("Z")


@pytest.mark.parametrize("content", ["[]", "{", '{"files": [{"file": "../x", "bytes": 1}]}', '{"files": 3}'])
def test_a_broken_manifest_is_bad_itself(tmp_path: Path, content: str) -> None:
    (tmp_path / "smelt.json").write_text(content)
    assert statuses(verify(tmp_path))["smelt.json"] == "bad"


@pytest.mark.parametrize("name", ["reshard.pt", "reshard-model_part-1.pt", "pytorch_model.bin", "consolidated.00.pth"])
def test_a_torch_zip_without_its_end_is_bad_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    torch.save({"model": {"a": torch.ones(64, 64)}, "cfg": None}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    assert statuses(verify(tmp_path)) == {name: "unknown"}
    for nbytes in (len(whole) - 1, len(whole) - 300, len(whole) // 2, 40):
        (tmp_path / name).write_bytes(whole[:nbytes])
        assert statuses(verify(tmp_path)) == {name: "bad"}, nbytes
        digest = hashlib.sha256(whole[:nbytes]).hexdigest()
        (tmp_path / "SHA256SUMS").write_text(f"{digest}  {name}\n")  # made of the file when it was cut already
        assert statuses(verify(tmp_path))[name] == "bad", nbytes
        (tmp_path / "SHA256SUMS").unlink()


@pytest.mark.parametrize("name", ["reshard.pt", "pytorch_model.bin", "consolidated.00.pth", "m.gguf", "m.safetensors"])
def test_weights_that_begin_with_zeros_never_arrived(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(5000))
    found = verify(tmp_path)
    assert statuses(found) == {name: "bad"} and "begins with zeros" in reason(found, name)
