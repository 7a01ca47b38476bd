"""What must hold before anything of a spec is sent to a cluster: what `plan` asks for, and places that pods can see."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from components.common.errors import SpecError, UserError
from components.common.model_bucket import in_bucket
from components.common.models import base_folder, model_headers
from components.common.spec import Spec
from pipelines.compute_check import machine_of, packages_of
from pipelines.planning import check_inputs, check_model, check_settings
from pipelines.pods import check_image, image_of

IN_THE_GPU_IMAGE = ("bitsandbytes",)
"""Of the packages that single settings need; see docs/operations.md for the others."""
_OURS = ("", "localhost", "::1", "0.0.0.0")  # noqa: S104  # looked for, not listened on


def check_submission(spec: Spec, allow_local: bool, allow_latest: bool, look: bool = True) -> list[str]:
    """See that a spec can run on a cluster, before anything is sent.

    Args:
        spec: The spec.
        allow_local: Let places pass that this machine has: they are in every pod as well.
        allow_latest: Let an image pass that may be another one tomorrow.
        look: See that the data and the models are there; not where only the cluster can reach them.

    Returns:
        What `plan` sees to and could not be seen to from here, in words.

    Raises:
        UserError: Naming what is missing, with one remedy.
    """
    check_places(spec, allow_local)
    if not allow_latest:
        check_image(image_of(spec))
    compute = spec.compute
    if compute.ray == "local" and compute.gpus_per_worker:
        raise UserError(
            "compute asks for GPUs, and the pods of a pipeline have none: heavy steps on a cluster go to Ray",
            "set `compute.ray: rayjob`, or the address of a Ray cluster's Jobs API",
        )
    machine, model = machine_of(spec, submitted=True), spec.model.path
    if look:
        check_inputs(spec, machine, model_there, one_disk=allow_local)
    else:
        check_settings(spec, machine, one_disk=allow_local)
        if _is_here(model):
            check_model(spec, machine, base_folder(model))
    unseen = [
        f"not checked: whether the image has {package.name}, which {package.setting} needs"
        for package in packages_of(spec)
        if package.name not in IN_THE_GPU_IMAGE
    ]
    if not _is_here(model) and not (look and in_bucket(model)):
        unseen.append(
            f"not checked: whether the phases fit into memory and the adapter into the model, as {model} is not read"
        )
    return unseen


def _is_here(model: str) -> bool:
    """Whether a model is on this machine."""
    return model == "lab" or Path(model).is_dir()


def check_places(spec: Spec, allow_local: bool) -> None:
    """See that a spec names no place that only this machine has.

    Raises:
        SpecError: Naming every one that it names, unless `allow_local`.
    """
    local = [] if allow_local else local_places(spec)
    if local:
        listed = "\n".join(f"  {key}: {value}" for key, value in local)
        raise SpecError(
            f"a cluster cannot see these places of this machine:\n{listed}",
            "use s3:// URIs, hub ids and a tracking server, or pass --allow-local where the paths exist in every pod",
        )


def local_places(spec: Spec) -> list[tuple[str, str]]:
    """The spec's keys whose value only this machine understands."""
    sources = [(f"data.train.{place}.path", source.path) for place, source in enumerate(spec.data.train)]
    sources += [(f"data.held_out.sources.{p}.path", source.path) for p, source in enumerate(spec.data.held_out.sources)]
    for list_name, phases in (("phases", spec.curriculum.phases or []), ("then", spec.curriculum.then)):
        sources += [
            (f"curriculum.{list_name}.{which}.data.{place}.path", source.path)
            for which, phase in enumerate(phases)
            for place, source in enumerate(phase.data)
        ]
    compute = spec.compute
    places = [*sources, ("model.path", spec.model.path), ("store", spec.store), ("compute.ray", compute.ray)]
    if spec.tracking.enabled:
        places.append(("tracking.uri", spec.tracking.uri))
    if spec.scoring.model is not None:
        places.append(("scoring.model", spec.scoring.model))
    places += [
        (f"compute.{stage}.ray", asked.ray)
        for stage, asked in (("scoring", compute.scoring), ("evaluation", compute.evaluation))
        if asked.ray is not None
    ]
    return [(key, value) for key, value in places if _is_local(value)]


def _is_local(place: str) -> bool:
    if not place.startswith(("http://", "https://")):
        return place.startswith(("/", "sqlite:", "file:"))
    host = urlsplit(place).hostname or ""
    return host in _OURS or host.startswith("127.")


def model_there(path: str) -> Path | None:
    """The folder of a model that is on this machine; of one in S3 the configuration and the headers of its weights.

    Nobody waits for gigabytes that the cluster's pods will fetch for themselves. Of a model of the hub only the
    configuration is asked for, and there is no folder.

    Raises:
        UserError: If there is no such model.
    """
    if _is_here(path):
        return base_folder(path)
    if in_bucket(path):
        return model_headers(path)
    _asked_of_hub(path)
    return None


def _asked_of_hub(model_id: str) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(model_id, "config.json", etag_timeout=10)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the model {model_id!r} is not to be had from the Hugging Face hub: {reason}",
            "check the name and the network, log in with `hf auth login` for gated models, or pass --skip-inputs "
            "where only the cluster can reach it",
        ) from None
