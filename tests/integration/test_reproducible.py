"""The same spec gives the same bits: in a fresh folder, and from a stage alone."""

from __future__ import annotations

import hashlib
import json

import pytest

SETTINGS = [f"--set={item}" for item in ("epochs=1", "learning_rate=2e-3", "batch_size=16", "weight_decay=0.01")]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def fresh(new_place):
    """The same run as `full`, in another folder, with one of its controls."""
    place = new_place("fresh")
    place.run("run", place.spec({"controls": ["one_off"], "tracking": {"enabled": False}}))
    return place


def test_a_fresh_folder_gives_the_same_keys_and_bits(full, fresh):
    assert [phase["key"] for phase in fresh.summary()["phases"]] == [phase["key"] for phase in full.summary()["phases"]]
    once, again = full.weights(), fresh.weights()
    assert len(again) == 4
    assert {key: once[key] for key in again} == again


def test_a_fresh_folder_gives_the_same_numbers(full, fresh):
    for one, other in zip(full.summary()["phases"], fresh.summary()["phases"], strict=True):
        assert one["metrics"] == other["metrics"]
    assert full.summary()["base"] == fresh.summary()["base"]


@pytest.mark.parametrize(("tiers", "curriculum"), [([1], "main"), ([1, 2, 3], "one_off")])
def test_a_phase_trained_alone_has_the_bits_of_the_run(full, place, tiers, curriculum):
    (split,) = (full.folder / "runs" / "store" / "splits").iterdir()
    files = [split / f"tier-{tier}.parquet" for tier in tiers]
    options = ["--set", "max_length=256", "--seed", "5", "--threads", "1", "--out", "alone"]
    place.run("train", *files, *SETTINGS, *options)
    summary = full.summary()
    controls = {control["name"]: control["phases"] for control in summary["controls"]}
    phase = {"main": summary["phases"], **controls}[curriculum][0]
    assert sha256(place.folder / "alone" / "model" / "model.safetensors") == full.weights()[phase["key"]]
    about = json.loads((place.folder / "alone" / "phase.json").read_text())
    assert (about["steps"], about["tokens"]) == (phase["steps"], phase["tokens"])


@pytest.mark.proof
@pytest.mark.soak
def test_every_core_gives_the_same_bits_too(new_place):
    """With the default number of threads, with another seed, and with the tiers in the other order."""
    changes = {"compute": {}, "seed": 2, "curriculum": {"order": "descending", "replay": 0.2}}
    changes["curriculum"]["sft"] = {"epochs": 2, "learning_rate": 1.0e-3, "batch_size": 32, "max_length": 256}
    bits = []
    for name in ("one", "other"):
        place = new_place(name)
        place.run("run", place.spec(changes))
        bits.append(place.weights())
    assert len(bits[0]) == 3
    assert bits[0] == bits[1]
