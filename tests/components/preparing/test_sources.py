"""Sources that are no local file, and the fingerprint."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from huggingface_hub import DatasetInfo, HfApi

from components.common.errors import DataError
from components.common.examples import Ledger, read_examples
from components.common.spec import DataSpec
from components.preparing.prepare import prepare
from components.preparing.sources import fingerprint, looks_like_dataset_id, resolve
from tests.services import moto

ROWS = [{"instruction": f"i{n}", "output": f"o{n}"} for n in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def spec(*paths: str, **options: object) -> DataSpec:
    return DataSpec.model_validate({"train": [{"path": path} for path in paths], **options})


def ledger_of(tmp_path: Path, data: DataSpec) -> Ledger:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return prepare(data, 17, out)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with moto.serving() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for key in ("set/a.jsonl", "set/b.jsonl", "set/.hidden.jsonl", "set/README.md", "settled.jsonl"):
        client.put_object(Bucket="data", Key=key, Body=LINES.replace("i", key).encode())
    return client


def test_s3_object_and_prefix(bucket, tmp_path):
    assert [part.shown for part in resolve(spec("s3://data/set"))] == ["s3://data/set/a.jsonl", "s3://data/set/b.jsonl"]
    assert [part.shown for part in resolve(spec("s3://data/set/b"))] == ["s3://data/set/b.jsonl"]
    assert [part.shown for part in resolve(spec("s3://data/settled.jsonl"))] == ["s3://data/settled.jsonl"]
    bucket.put_object(Bucket="data", Key="rows/a.jsonl", Body=LINES.encode())
    bucket.put_object(Bucket="data", Key="rows/b.json", Body=json.dumps(ROWS[:2]).encode())
    assert ledger_of(tmp_path, spec("s3://data/rows/", held_out={"fraction": 0})) == Ledger(6, 0, 4, 2, 0, 0, 0)
    sources = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert [(file["path"], file["rows"]) for file in sources] == [
        ("s3://data/rows/a.jsonl", 4),
        ("s3://data/rows/b.json", 2),
    ]


def test_s3_fingerprint_follows_the_content(bucket):
    data = spec("s3://data/settled.jsonl")
    before = fingerprint(data, 17)
    assert fingerprint(data, 17) == before
    bucket.put_object(Bucket="data", Key="settled.jsonl", Body=LINES.replace("o1", "o9").encode())
    assert fingerprint(data, 17) != before


def test_s3_errors_say_what_to_mend(bucket, monkeypatch, tmp_path):
    for url, message in {
        "s3://data/none.jsonl": "there is no such object and none below it",
        "s3://nobucket/a.jsonl": "S3 answers NoSuchBucket",
        "s3://data/set/README.md": "no data file below it",
    }.items():
        with pytest.raises(DataError) as error:
            ledger_of(tmp_path, spec(url))
        assert message in error.value.message
        assert error.value.remedy
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match="S3 cannot be reached"):
        resolve(spec("s3://data/a.jsonl"))


def test_s3_without_credentials(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # boto3's default session remembers the credentials that it found first.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(DataError, match="no S3 credentials") as error:
        resolve(spec("s3://data/set"))
    assert "AWS_ACCESS_KEY_ID" in error.value.remedy


def test_lab(tmp_path):
    data = spec("lab://instructions?count=300", held_out={"fraction": 0.2})
    ledger = ledger_of(tmp_path, data)
    assert (ledger.rows_in, ledger.examples) == (300, 300)
    held_out = list(read_examples(tmp_path / "out" / "held_out.parquet"))
    train = list(read_examples(tmp_path / "out" / "train.parquet"))
    assert 20 < len(held_out) < 120
    assert "unseen_wording" in {example.slice for example in held_out}
    assert {example.slice for example in train} == {None}
    assert {example.verifier for example in train} == {"exact"}
    assert {example.source for example in train} == {"lab"}
    assert isinstance(train[0].fields["difficulty"], float)


def test_lab_problems_of_chosen_families(tmp_path):
    data = spec("lab://preferences?count=40&families=pipeline,multi_hop&steps=2-3&draw=1", held_out={"fraction": 0.2})
    assert ledger_of(tmp_path, data).rows_in == 40
    train = list(read_examples(tmp_path / "out" / "train.parquet"))
    assert {(example.fields["family"], example.fields["steps"]) for example in train} == {
        ("pipeline", 2), ("pipeline", 3), ("multi_hop", 2), ("multi_hop", 3),
    }  # fmt: skip
    assert all(example.rejected != example.response == example.answer for example in train)


def test_more_lab_rows_than_there_are_problems_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no more than \d+ such rows were found"):
        ledger_of(tmp_path, spec("lab://instructions?count=9999&families=recall"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("lab://instructions?rows=3", "the parameter `rows` is not known"),
        ("lab://instructions?count=many", "`count` is 'many'"),
        ("lab://other", "the lab has no such data"),
        ("lab://instructions?families=recall,rhymes", "the lab has no family 'rhymes'"),
        ("lab://instructions?steps=3-2", "`steps` is '3-2'"),
        ("lab://instructions?steps=9", "`steps` is '9'"),
        ("lab://instructions?families=recall&steps=4", "no such family has problems of so many steps"),
        ("lab://preferences?draw=-1", "`draw` is '-1'"),
        ("hf://?split=train", "no data set is named"),
        ("hf://a/b?part=1", "the parameter `part` is not known"),
    ],
)
def test_addresses_are_checked(url, message):
    with pytest.raises(DataError) as error:
        resolve(spec(url))
    assert message in error.value.message


def test_a_local_folder_in_the_layout_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "train.jsonl").write_text(LINES)
    (folder / "test.jsonl").write_text(LINES.splitlines()[0] + "\n")
    assert ledger_of(tmp_path, spec(f"hf://{folder}", held_out={"fraction": 0})).rows_in == 4
    assert ledger_of(tmp_path, spec(f"hf://{folder}?split=test", held_out={"fraction": 0})).rows_in == 1
    with pytest.raises(DataError, match="cannot be loaded from the Hugging Face hub") as error:
        ledger_of(tmp_path, spec(f"hf://{folder}?split=nope"))
    assert "download the files" in error.value.remedy


def test_a_bare_dataset_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_like_dataset_id("tatsu-lab/alpaca")
    assert not looks_like_dataset_id("data/alpaca.json")
    assert not looks_like_dataset_id("/data/alpaca")
    (part,) = resolve(spec("tatsu-lab/alpaca"))
    assert (part.kind, part.source) == ("hf", "alpaca")
    (tmp_path / "tatsu-lab" / "alpaca").mkdir(parents=True)
    assert not looks_like_dataset_id("tatsu-lab/alpaca")


def test_the_fingerprint_changes_with_whatever_changes_the_result(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)

    def of(seed: int = 17, held_out: dict | None = None, **source: object) -> str:
        train = [{"path": str(path), **source}]
        return fingerprint(DataSpec.model_validate({"train": train, "held_out": held_out or {}}), seed)

    same = of()
    assert of() == same
    assert of(name="a.jsonl") == same  # the name that it has anyway
    others = [
        of(seed=18),
        of(format="alpaca"),
        of(weight=0.5),
        of(name="b"),
        of(held_out={"fraction": 0.1}),
        of(held_out={"sources": [{"path": str(path)}]}),
        fingerprint(spec(str(path), max_rejected=0.1), 17),
        fingerprint(spec(str(path), deduplicate="exact"), 17),
        fingerprint(spec(str(path), str(path)), 17),
        fingerprint(spec("lab://instructions"), 17),
        fingerprint(spec("lab://instructions?count=5"), 17),
        fingerprint(spec("lab://instructions?families=recall"), 17),
        fingerprint(spec("lab://instructions?steps=2"), 17),
        fingerprint(spec("lab://instructions?draw=1"), 17),
        fingerprint(spec("lab://preferences"), 17),
        fingerprint(spec("hf://a/b"), 17),
        fingerprint(spec("hf://a/b?revision=main"), 17),
    ]
    assert len({same, *others}) == 1 + len(others)
    moved = tmp_path / "elsewhere" / "a.jsonl"
    moved.parent.mkdir()
    moved.write_text(LINES)
    assert fingerprint(spec(str(moved)), 17) == same
    path.write_text(LINES + LINES[:-1])
    assert of() != same
    assert fingerprint(spec("lab://instructions"), 17) == fingerprint(spec("lab://instructions?count=3000"), 17)


def in_a_process_of_its_own(code: str, **environment: str) -> str:
    """What Python prints; the libraries of the hub read their environment once."""
    hub = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **hub}, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


OF_A_HUB_DATASET = """
import socket, sys
from components.common.errors import DataError
from components.common.spec import DataSpec
from components.preparing.remote import hf_chunks
from components.preparing.sources import fingerprint

tried = []
def lookup(*arguments, **more):
    tried.append(arguments[0])
    raise socket.gaierror("no network")
socket.getaddrinfo = lookup
print(fingerprint(DataSpec.model_validate({"train": [{"path": "a/b"}]}), 17))
try:
    list(hf_chunks("hf://a/b"))
except DataError as error:
    print(error.message)
print(bool(tried))
"""


def test_a_dataset_of_a_hub_out_of_reach_fails_soon_and_counts_by_its_id():
    here = fingerprint(spec("a/b"), 17)
    key, message, seen = in_a_process_of_its_own(OF_A_HUB_DATASET).splitlines()
    assert (key, seen) == (here, "True")
    assert message.startswith("hf://a/b: the data set cannot be loaded from the Hugging Face hub: ")
    assert message.endswith("no network")


def test_offline_the_hub_is_not_asked():
    _, message, seen = in_a_process_of_its_own(
        OF_A_HUB_DATASET, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1"
    ).splitlines()
    assert seen == "False"
    assert "cannot be loaded from the Hugging Face hub" in message


def test_the_latest_commit_counts_where_no_revision_is_given(monkeypatch):
    plain, pinned = spec("a/b"), spec("hf://a/b?revision=v1")
    keys = [fingerprint(plain, 17)]
    for commit in ("c1", "c2"):
        monkeypatch.setattr(
            HfApi, "dataset_info", lambda self, name, timeout, sha=commit: DatasetInfo(id=name, sha=sha)
        )
        keys.append(fingerprint(plain, 17))
    assert len(set(keys)) == 3
    last = fingerprint(pinned, 17)
    monkeypatch.undo()
    assert fingerprint(pinned, 17) == last


def test_the_data_seed_is_not_in_the_spec_twice(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    assert fingerprint(spec(str(path), seed=3), 17) == fingerprint(spec(str(path)), 17)
