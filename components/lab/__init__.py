"""The lab: a small world of facts, graded and verifiable instructions about it, and a tiny base model that knows it.

It lets the whole product run on two CPU cores in minutes, with a known answer to "which examples are hard".
`generator` makes the instructions, `MODEL_FOLDER` holds the shipped base model, `pretraining` rebuilds that model.
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).resolve().parent / "model"
"""Folder of the shipped base model (configs, tokenizer, chat template, weights); beside the code also in a wheel."""

__all__ = ["MODEL_FOLDER"]
