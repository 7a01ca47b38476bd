"""What stands beside a run's metrics in MLflow: its datasets, and its checkpoint as a LoggedModel.

Both are references: data and weights stay where they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from components.common.digests import digest
from components.common.errors import redact
from components.common.records import StepRecord
from components.common.tracking_runs import KEY, flat_parameters

URI = "phasetune.uri"


def _dataset(name: str, content: Any, uri: str, counts: Mapping[str, Any], context: str) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    place = redact(uri)
    source = json.dumps({"uri": place})
    profile = json.dumps({key: value for key, value in counts.items() if isinstance(value, int | float)})
    kind = "s3" if uri.startswith("s3://") else "local"
    dataset = Dataset(name, digest(content), kind, source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def tier_datasets(record: StepRecord, split: StepRecord | None, seed: int, own: StepRecord | None = None) -> list[Any]:
    """What a phase trains on: each of its tiers as a dataset; random tiers are one dataset, and so are data of its own.

    Args:
        record: The phase's record.
        split: The split's record, None where there is none.
        seed: The run's seed.
        own: The record of the phase's own data, None where it trains on tiers.

    Returns:
        `DatasetInput`s whose digests follow from the split's key, so that equal tiers are one dataset in MLflow.
    """
    if own is not None:
        return [_dataset(f"data of {own.info['name']}", own.key, own.uri, own.info.get("ledger", {}), "training")]
    if split is None:
        return []
    info = record.info
    if info["curriculum"] == "random_tiers" and info["name"].startswith("random-"):
        counts: dict[str, Any] = {name: info.get(name) for name in ("examples", "tokens")}
        return [_dataset(info["name"], [split.key, "random", info["tiers"], seed], split.uri, counts, "training")]
    counted = {entry["tier"]: entry for entry in split.info["tiers"]}
    return [
        _dataset(f"tier-{tier}", [split.key, tier], split.uri, counted.get(tier, {}), "training")
        for tier in info["tiers"]
    ]


def source_datasets(prepared: StepRecord) -> list[Any]:
    """The sources that a run read."""
    return [
        _dataset(redact(str(entry["path"]))[-500:], [prepared.key, entry["path"]], entry["path"], entry, "source")
        for entry in prepared.info.get("sources", [])
    ]


def checkpoint_model(client: Any, uri: str, run: Any, record: StepRecord, name: str) -> Any:
    """The checkpoint as a LoggedModel: one for each key in the experiment, an output of every run that has the phase.

    Args:
        client: An `MlflowClient`.
        uri: The store's resolved URI.
        run: The phase's MLflow run.
        record: The phase's record.
        name: What it is called where it must be made; other characters than letters, digits, - and _ are replaced.
    """
    place = redact(f"{record.uri}/model")
    found = client.search_logged_models([run.info.experiment_id], f"tags.`{KEY}` = '{record.key}'", max_results=1)
    if found:
        model = found[0]
        if model.tags.get(URI) != place:
            client.set_logged_model_tags(model.model_id, {URI: place})
    else:
        tags = {KEY: record.key, URI: place, "phasetune.method": str(record.info["method"])}
        params = {"key": record.key, **flat_parameters(record.info.get("settings", {}))}
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", f"{name}-{record.key[:8]}")
        model = _create(uri, safe, run, tags, params)
    linked = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
    if model.model_id not in linked:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, int(record.info.get("steps", 0)))])
    return model


def _create(uri: str, name: str, run: Any, tags: dict[str, str], params: dict[str, str]) -> Any:
    import mlflow
    from mlflow.tracking import is_tracking_uri_set

    # create_external_model knows no client: it takes the process's tracking URI, which is put back afterwards.
    before = mlflow.get_tracking_uri() if is_tracking_uri_set() else None
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        return mlflow.create_external_model(
            name=name,
            source_run_id=run.info.run_id,
            experiment_id=run.info.experiment_id,
            tags=tags,
            params=params,
            model_type="checkpoint",
        )
    finally:
        mlflow.set_tracking_uri(before)
        if environment is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = environment
