"""Sending a spec to Kubeflow: compiled, uploaded as a version that its content names, and started."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.common.digests import digest_file
from components.common.errors import UserError
from components.common.spec import Spec
from components.common.spec_file import spec_digest
from pipelines.kubeflow import Kubeflow, client, equals
from pipelines.phased import compile_pipeline, kfp_name


@dataclass(frozen=True, slots=True)
class Version:
    """A compiled pipeline in Kubeflow.

    Attributes:
        pipeline: Kubeflow's id of the pipeline, whose versions are the specs of one name.
        id: Kubeflow's id of the version.
        name: Made of the spec's digest and the compiled pipeline's.
        new: Whether it was uploaded now.
    """

    pipeline: str
    id: str
    name: str
    new: bool

    def reference(self) -> Any:
        """What a run and a schedule name it by."""
        return client().V2beta1PipelineVersionReference(pipeline_id=self.pipeline, pipeline_version_id=self.id)


def upload(
    kubeflow: Kubeflow, spec: Spec, allow_local: bool, compiled: Callable[[Path], None] | None = None
) -> Version:
    """The version of a spec that was seen to be fit for a cluster; uploaded where Kubeflow does not have it.

    Args:
        kubeflow: Where to.
        spec: Names the pipeline.
        allow_local: Let places pass that this machine has.
        compiled: Writes the compiled pipeline; that of the spec itself where None.

    The same spec compiled to the same pipeline has the same name. Data digests are no part of either: they are taken
    when a run starts, so a scheduled run sees new data.

    Raises:
        UserError: If Kubeflow refuses.
    """
    with tempfile.TemporaryDirectory(prefix="phasetune-") as folder:
        file = Path(folder) / "pipeline.yaml"
        if compiled is None:
            compile_pipeline(spec, file, allow_local)
        else:
            compiled(file)
        name = f"{spec_digest(spec)[:16]}-{digest_file(file)[:8]}"
        pipeline = _pipeline(kubeflow, spec)
        found = _version(kubeflow, pipeline, name)
        if found is not None:
            return Version(pipeline, found.pipeline_version_id, name, False)
        made = kubeflow.create(
            "uploads",
            "upload_pipeline_version",
            str(file),
            lambda: _version(kubeflow, pipeline, name),
            name=name,
            display_name=name,
            pipelineid=pipeline,
            description=f"phasetune spec {spec.name}",
        )
    return Version(pipeline, made.pipeline_version_id, name, True)


def _pipeline(kubeflow: Kubeflow, spec: Spec) -> str:
    """Kubeflow's id of the pipeline of a spec's name, made empty where it is not there."""
    name = kfp_name(spec.name)
    # An installation with one user has no namespaces, and its API says "" for it.
    where = {"namespace": kubeflow.namespace} if kubeflow.namespace else {}

    def there() -> Any | None:
        listed = kubeflow.every(
            "pipelines", "pipeline_service_list_pipelines", "pipelines", filter=equals("display_name", name), **where
        )
        return next((one for one in listed if one.display_name == name), None)

    found = there()
    if found is None:
        body = client().V2beta1Pipeline(name=name, display_name=name, description=f"phasetune: {spec.name}", **where)
        found = kubeflow.create("pipelines", "pipeline_service_create_pipeline", body, there)
    return str(found.pipeline_id)


def _version(kubeflow: Kubeflow, pipeline: str, name: str) -> Any | None:
    listed = kubeflow.every(
        "pipelines",
        "pipeline_service_list_pipeline_versions",
        "pipeline_versions",
        pipeline,
        filter=equals("display_name", name),
    )
    return next((one for one in listed if one.display_name == name), None)


def experiment(kubeflow: Kubeflow, name: str) -> str:
    """Kubeflow's id of an experiment, made where it is not there."""
    where = {"namespace": kubeflow.namespace} if kubeflow.namespace else {}

    def there() -> Any | None:
        listed = kubeflow.every(
            "experiments",
            "experiment_service_list_experiments",
            "experiments",
            filter=equals("display_name", name),
            **where,
        )
        return next((one for one in listed if one.display_name == name), None)

    found = there()
    if found is None:
        body = client().V2beta1Experiment(display_name=name, **where)
        found = kubeflow.create("experiments", "experiment_service_create_experiment", body, there)
    if getattr(found.storage_state, "value", found.storage_state) == "ARCHIVED":
        raise UserError(f"the experiment {name} is archived", "restore it in Kubeflow, or choose another --experiment")
    return str(found.experiment_id)


def start(kubeflow: Kubeflow, spec: Spec, version: Version, experiment_name: str) -> str:
    """Start a run of a version; returns its id."""
    # Its own name, so that a run whose answer was lost is found again and not started twice.
    name = f"{spec.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S} {secrets.token_hex(3)}"
    body = client().V2beta1Run(
        experiment_id=experiment(kubeflow, experiment_name),
        display_name=name,
        pipeline_version_reference=version.reference(),
        runtime_config=client().V2beta1RuntimeConfig(parameters={}),
        service_account=spec.compute.kubernetes.service_account,
    )

    def there() -> Any | None:
        listed = kubeflow.every(
            "runs",
            "run_service_list_runs",
            "runs",
            experiment_id=body.experiment_id,
            filter=equals("display_name", name),
        )
        return next((one for one in listed if one.display_name == name), None)

    return str(kubeflow.create("runs", "run_service_create_run", body, there).run_id)
