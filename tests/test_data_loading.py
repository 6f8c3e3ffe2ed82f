"""`load`: what is kept, what is made again, and what a user is told."""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import zipfile
from pathlib import Path

import pytest

from attn_jax.data import Dataset, Example, builder, datasets, load, sources, ted_hrlr
from attn_jax.errors import UserError


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> bytes:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(sources, "download", refuse)


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, tuple[str, str]]:
    texts = {
        "train": ("a b\nç\u00a0d  e\n가 나", "1 2\n3\n4 5"),
        "dev": ("a\n", "1\n"),
        "test": ("b\n", "2\n"),
    }
    files = {}
    for split, sides in texts.items():
        files[split] = (str(tmp_path / f"{split}.src"), str(tmp_path / f"{split}.trg"))
        for path, text in zip(files[split], sides, strict=True):
            Path(path).write_text(text, encoding="utf-8", newline="")
    return files


def prepared_folders(data_dir: str) -> list[Path]:
    return sorted(Path(data_dir).glob("text_pairs/*/*/dataset_info.json"))


def never() -> None:
    raise AssertionError("the data was read again")


def test_parallel_text(toy: dict[str, tuple[str, str]], data_dir: str) -> None:
    made = load("parallel_text", files=toy, data_dir=data_dir)
    assert made.info.tokenize == "13a", "a user's text is taken to be untokenised"
    assert [(e.source, e.target) for e in made.splits["train"]] == [
        ("a b", "1 2"),
        ("ç\u00a0d  e", "3"),
        ("가 나", "4 5"),
    ]
    assert made.splits["dev"] == (Example("a", "1", ("1",)),)
    assert list(made.splits) == ["train", "dev", "test"]
    assert load("parallel_text", files=toy, data_dir=data_dir) == made


def test_fingerprint_is_of_the_content_alone(toy: dict[str, tuple[str, str]], data_dir: str, tmp_path: Path) -> None:
    made = load("parallel_text", files=toy, data_dir=data_dir)
    tables = {}
    for split, (source, target) in toy.items():
        rows = zip(Path(source).read_text().split("\n"), Path(target).read_text().split("\n"), strict=True)
        tables[split] = str(tmp_path / "other" / f"{split}.tsv.gz")
        Path(tables[split]).parent.mkdir(exist_ok=True)
        text = "".join(f"{s}\t{t}\n" for s, t in rows if s)
        Path(tables[split]).write_bytes(gzip.compress(text.encode()))
    same = load("parallel_text", files=tables, data_dir=str(tmp_path / "elsewhere"))
    assert same.fingerprint == made.fingerprint
    assert same.splits == made.splits
    # The same lines in other splits are other data.
    swapped = toy | {"dev": toy["test"], "test": toy["dev"]}
    assert load("parallel_text", files=swapped, data_dir=data_dir).fingerprint != made.fingerprint


def test_an_edited_file_is_read_again(toy: dict[str, tuple[str, str]], data_dir: str) -> None:
    before = load("parallel_text", files=toy, data_dir=data_dir)
    path = Path(toy["test"][1])
    stamp = path.stat()
    path.write_text("9\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = load("parallel_text", files=toy, data_dir=data_dir)
    assert before.splits["test"][0].target == "2"
    assert after.splits["test"][0].target == "9"
    assert before.fingerprint != after.fingerprint


def copy_of_geo(manual_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(manual_dir / "semantic_parsing", tmp_path / "copy" / "semantic_parsing")
    return tmp_path / "copy"


def test_an_edited_published_file_is_read_and_named(manual_dir: Path, tmp_path: Path, data_dir: str) -> None:
    before = load("semantic_parsing/geo", manual_dir=str(manual_dir), data_dir=data_dir)
    assert "no dev split: the last parameters of a run are tested" in before.info.notes
    edited = copy_of_geo(manual_dir, tmp_path)
    name = "semantic_parsing/geo/geo_anonymous_lambda_test.txt"
    (edited / name).chmod(0o644)
    (edited / name).write_text((manual_dir / name).read_text().replace("where is c0", "where was c0", 1))
    after = load("semantic_parsing/geo", manual_dir=str(edited), data_dir=data_dir)
    assert (before.splits["test"][0].source, after.splits["test"][0].source) == (
        "where is c0",
        "where was c0",
    )
    assert f"{name} differs from the published file" in after.info.notes
    assert not any("differs" in note for note in before.info.notes)


def test_gz_and_plain_files_are_the_same(manual_dir: Path, tmp_path: Path, data_dir: str) -> None:
    packed = copy_of_geo(manual_dir, tmp_path)
    for path in packed.glob("semantic_parsing/geo/*.txt"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    plain = load("semantic_parsing/geo", manual_dir=str(manual_dir), data_dir=data_dir)
    assert load("semantic_parsing/geo", manual_dir=str(packed), data_dir=data_dir) == plain
    assert len(prepared_folders(data_dir)) == 1


def test_the_second_load_reads_what_was_prepared(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("scan/simple", data_dir=data_dir)
    monkeypatch.setattr("attn_jax.data.scan.commands", never)
    assert load("scan/simple", data_dir=data_dir) == first
    with pytest.raises(AssertionError, match="read again"):
        load("scan/length", data_dir=data_dir)


@pytest.mark.parametrize("damage", ["truncate", "empty", "remove", "metadata"])
def test_damaged_data_is_made_again(toy: dict[str, tuple[str, str]], data_dir: str, damage: str) -> None:
    made = load("parallel_text", files=toy, data_dir=data_dir)
    (folder,) = (path.parent for path in prepared_folders(data_dir))
    (shard,) = folder.glob("*-train.array_record*")
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "remove":
        shard.unlink()
    else:
        (folder / "metadata.json").write_text("{")
    assert load("parallel_text", files=toy, data_dir=data_dir) == made
    assert load("parallel_text", files=toy, data_dir=data_dir) == made


def test_a_killed_preparation_leaves_nothing_behind(toy: dict[str, tuple[str, str]], data_dir: str) -> None:
    code = (
        "import os\n"
        "from attn_jax.data import load\n"
        "from tensorflow_datasets.core.writer import Writer\n"
        "Writer.finalize = lambda *args, **kwargs: os.kill(os.getpid(), 9)\n"
        f"load('parallel_text', files={toy!r}, data_dir={data_dir!r})\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -9, run.stderr
    assert prepared_folders(data_dir) == []
    assert list(Path(data_dir).rglob("*incomplete*"))
    made = load("parallel_text", files=toy, data_dir=data_dir)
    assert made.splits["test"][0].target == "2"
    assert not list(Path(data_dir).rglob("*incomplete*"))


def test_two_processes_at_once(toy: dict[str, tuple[str, str]], data_dir: str) -> None:
    code = (
        "from attn_jax.data import load\n"
        f"print(load('parallel_text', files={toy!r}, data_dir={data_dir!r}).fingerprint)\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    # One line each and nothing else: TFDS is silent.
    expected = load("parallel_text", files=toy, data_dir=data_dir).fingerprint + "\n"
    assert said == [(expected, "")] * 3
    assert len(prepared_folders(data_dir)) == 1


def test_others_wait_for_the_lock(tmp_path: Path) -> None:
    code = (
        "import time, sys, pathlib\nfrom attn_jax.data.builder import _lock\n"
        "with _lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    path = tmp_path / "x.lock"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waiter = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert waiter.stdout is not None
    os.set_blocking(waiter.stdout.fileno(), False)
    time.sleep(1.5)
    assert not waiter.stdout.read()
    holder.kill()
    holder.communicate()
    os.set_blocking(waiter.stdout.fileno(), True)
    assert waiter.stdout.readline() == b"held\n"
    waiter.kill()
    waiter.communicate()


# -- what a user is told -------------------------------------------------------------------------------------


def complaint(name: str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        load(name, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_file_is_told_at_once(tmp_path: Path, data_dir: str) -> None:
    start = time.monotonic()
    text = complaint("multi30k/de_en", manual_dir=str(tmp_path), data_dir=data_dir)
    assert time.monotonic() - start < 1
    assert str(tmp_path / "multi30k/tok/train.lc.norm.tok.de") in text
    assert "--manual_dir" in text
    assert "no network in tests" in text
    assert "no --manual_dir was given" in complaint("g2p/cmudict", data_dir=data_dir)


def test_missing_manual_dir(tmp_path: Path, data_dir: str) -> None:
    assert "no such directory" in complaint("scan/simple", manual_dir=str(tmp_path / "nowhere"), data_dir=data_dir)


def test_empty_flags_are_no_directories(toy: dict[str, tuple[str, str]], data_dir: str) -> None:
    assert "no --manual_dir was given" in complaint("g2p/cmudict", manual_dir="", data_dir=data_dir)


def test_a_full_disk_is_told(toy: dict[str, tuple[str, str]], data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", full)
    text = complaint("parallel_text", files=toy, data_dir=data_dir)
    assert text.startswith(f"--data_dir={data_dir}: cannot be written (No space left on device)")


def test_unwritable_data_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = complaint("scan/simple", data_dir=str(tmp_path / "file" / "below"))
    assert f"--data_dir={tmp_path / 'file' / 'below'}: cannot be written (Not a directory)" in text


def test_environment_names_the_data_dir(
    toy: dict[str, tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTN_JAX_DATA", str(tmp_path / "named"))
    load("parallel_text", files=toy)
    assert len(prepared_folders(str(tmp_path / "named"))) == 1


def test_a_read_only_data_dir_that_holds_the_data_is_enough(
    toy: dict[str, tuple[str, str]], data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load("parallel_text", files=toy, data_dir=data_dir)
    monkeypatch.setattr(builder, "_check_writable", lambda path: never())
    assert load("parallel_text", files=toy, data_dir=data_dir) == made


def test_ragged_files(toy: dict[str, tuple[str, str]], data_dir: str) -> None:
    Path(toy["dev"][1]).write_text("1\n2\n")
    text = complaint("parallel_text", files=toy, data_dir=data_dir)
    assert f"{toy['dev'][0]} has 1 lines but {toy['dev'][1]} has 2" in text


def test_broken_utf8(toy: dict[str, tuple[str, str]], data_dir: str) -> None:
    Path(toy["train"][0]).write_bytes(b"a\nb\xff\nc")
    assert f"{toy['train'][0]}:2: not valid UTF-8" in complaint("parallel_text", files=toy, data_dir=data_dir)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_split(toy: dict[str, tuple[str, str]], data_dir: str, content: str) -> None:
    for path in toy["test"]:
        Path(path).write_text(content)
    assert f"{toy['test'][0]}: the file is empty" in complaint("parallel_text", files=toy, data_dir=data_dir)
    assert prepared_folders(data_dir) == []


def test_an_empty_split_of_a_published_set(manual_dir: Path, tmp_path: Path, data_dir: str) -> None:
    edited = copy_of_geo(manual_dir, tmp_path)
    path = edited / "semantic_parsing/geo/geo_anonymous_lambda_test.txt"
    path.chmod(0o644)
    path.write_text("")
    text = complaint("semantic_parsing/geo", manual_dir=str(edited), data_dir=data_dir)
    assert text.startswith("semantic_parsing/geo: split test is empty")


def test_parallel_text_without_what_it_needs(toy: dict[str, tuple[str, str]], tmp_path: Path, data_dir: str) -> None:
    assert "at least the splits train and test" in complaint("parallel_text", data_dir=data_dir)
    assert "at least the splits train and test" in complaint("parallel_text", files={"train": toy["train"]})
    missing = str(tmp_path / "none.txt")
    text = complaint("parallel_text", files=toy | {"dev": (missing, missing)}, data_dir=data_dir)
    assert text == f"{missing}: cannot be read (No such file or directory)"
    assert "split dev has 3 files" in complaint("parallel_text", files=toy | {"dev": ("a", "b", "c")})
    assert "split name 'a b'" in complaint("parallel_text", files=toy | {"a b": ("a", "b")})
    table = tmp_path / "t.tsv"
    table.write_text("a\tb\na b\n")
    text = complaint("parallel_text", files=toy | {"dev": str(table)}, data_dir=data_dir)
    assert text == f"{table}:2: 1 tab-separated columns; expected source<TAB>target"
    (tmp_path / "broken.gz").write_bytes(b"no gzip")
    text = complaint("parallel_text", files=toy | {"dev": str(tmp_path / "broken.gz")}, data_dir=data_dir)
    assert "broken.gz: cannot be read" in text
    assert "files are only for parallel_text" in complaint("scan/simple", files=toy, data_dir=data_dir)


# -- downloads -----------------------------------------------------------------------------------------------


def origin(manual_dir: Path, seen: list[str]) -> object:
    """Serves the published files as their origins would."""
    table = {}
    for folder, pin in sources.pins().items():
        for name, file in pin["files"].items():
            url = f"https://raw.githubusercontent.com/{pin['repository']}/{pin['commit']}/{file['path']}"
            table[url] = (manual_dir / folder / name, file)

    def serve(url: str) -> bytes:
        seen.append(url)
        path, file = table[url]
        content = (
            path.read_bytes() if path.is_file() else gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
        )
        if "member" in file:
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(file["member"], content)
            return packed.getvalue()
        return gzip.compress(content) if file["path"].endswith(".gz") else content

    return serve


@pytest.mark.parametrize("name", ["semantic_parsing/jobs", "multi30k_raw/cs_en", "tatoeba/eng_vie"])
def test_download(manual_dir: Path, data_dir: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen: list[str] = []
    monkeypatch.setattr(sources, "download", origin(manual_dir, seen))
    downloaded = load(name, data_dir=data_dir)
    assert len(seen) == len(set(seen)) > 0
    assert downloaded == load(name, manual_dir=str(manual_dir), data_dir=data_dir + "2")
    count = len(seen)
    assert load(name, data_dir=data_dir) == downloaded
    assert len(seen) == count


def test_a_download_of_other_content_is_dropped(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "download", lambda url: b"<html>sign in</html>")
    text = complaint("semantic_parsing/geo", data_dir=data_dir)
    assert "SHA-256" in text
    assert not list(Path(data_dir).rglob("*.txt"))
    assert "could not be downloaded" in complaint("tatoeba/eng_fra", data_dir=data_dir)


def test_scan_needs_no_network(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "download", lambda url: never())
    assert load("scan/simple", data_dir=data_dir).info.notes[0] == "simple: seeded partition, not the published one"


# -- TFDS's own builder --------------------------------------------------------------------------------------


def test_ted_configurations_are_those_of_tfds() -> None:
    import tensorflow_datasets as tfds

    made = tfds.builder_cls(ted_hrlr.FOLDER)
    assert sorted(made.builder_configs) == list(ted_hrlr.CONFIGS)
    (info,) = made.url_infos.values()
    assert (info.checksum, info.filename) == (ted_hrlr.SHA256, ted_hrlr.ARCHIVE)
    assert list(made.url_infos) == [ted_hrlr.URL]


def ted_archive(path: Path) -> str:
    """An archive laid out as the published one, of two configurations."""
    texts = {
        "az_to_en/az.train": "salam dünya\nbir\n\niki",
        "az_to_en/en.train": "hello world\none\n\ntwo",
        "az_to_en/az.dev": "üç",
        "az_to_en/en.dev": "three",
        "az_to_en/az.test": "dörd",
        "az_to_en/en.test": "four",
        "aztr_to_en/az-tr.train": "not this",
    }
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, text in texts.items():
            entry = tarfile.TarInfo(f"datasets/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_ted(tmp_path: Path, data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    path = tmp_path / "manual" / ted_hrlr.FOLDER / ted_hrlr.ARCHIVE
    digest = ted_archive(path)
    assert "216a86c3" in complaint(
        "ted_hrlr_translate/az_to_en", manual_dir=str(tmp_path / "manual"), data_dir=data_dir
    )
    monkeypatch.setattr(ted_hrlr, "SHA256", digest)
    info = tfds.core.download.checksums.UrlInfo(size=path.stat().st_size, checksum=digest, filename=ted_hrlr.ARCHIVE)
    registered = tfds.core.download.checksums.get_all_url_infos()
    monkeypatch.setitem(registered, ted_hrlr.URL, info)
    monkeypatch.setitem(tfds.builder_cls(ted_hrlr.FOLDER).url_infos, ted_hrlr.URL, info)
    made: Dataset = load("ted_hrlr_translate/az_to_en", manual_dir=str(tmp_path / "manual"), data_dir=data_dir)
    assert {(e.source, e.target) for e in made.splits["train"]} == {
        ("salam dünya", "hello world"),
        ("bir", "one"),
        ("iki", "two"),
    }
    assert made.splits["dev"] == (Example("üç", "three", ("three",)),)
    assert made.splits["test"] == (Example("dörd", "four", ("four",)),)
    path.unlink()
    assert load("ted_hrlr_translate/az_to_en", data_dir=data_dir) == made


def test_ted_without_archive(data_dir: str) -> None:
    text = complaint("ted_hrlr_translate/pt_to_en", data_dir=data_dir)
    assert "could not be downloaded" in text
    assert f"{ted_hrlr.FOLDER}/{ted_hrlr.ARCHIVE} below a directory and give --manual_dir" in text


def test_test_lines_that_stand_in_dev_are_told() -> None:
    pairs = [datasets.pair("a", "b"), datasets.pair("c", "d"), datasets.pair("e", "f")]
    splits = {"train": pairs[:1], "dev": pairs[1:2], "test": pairs[1:]}
    assert datasets.overlap_notes(splits) == ("1 of 2 test lines also occur in dev, by which parameters are chosen",)
    splits["train"] = pairs[2:]
    assert datasets.overlap_notes(splits)[0] == "1 of 2 test lines also occur in train"
    assert len(datasets.overlap_notes(splits)) == 2
