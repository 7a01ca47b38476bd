"""What must hold of the files in infra/aws beyond their being right: policies, the bucket, GPU nodes.

A rule takes a `Configuration` (terraform_files.py) and returns its faults as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

BUCKET = r"\$\{aws_s3_bucket\.main\.arn\}"
BELOW_A_PREFIX = re.compile(rf'"?{BUCKET}/\$\{{[\w.]+\}}/\*"?')
"""`${aws_s3_bucket.main.arn}/${prefix}/*`: whatever lies below one prefix."""

WIDE = {
    ("account_key", "Account"): "a key's policy speaks of that key alone; without it nobody could change the key",
    ("platform_key", "Logs"): "a key's policy speaks of that key alone; limited to our log groups",
    ("autoscaler", "See"): "descriptions, which know no single resources",
    ("autoscaler", "SeeGroups"): "the groups of this cluster, whose names end in a number that AWS chooses",
    (
        "autoscaler",
        "Scale",
    ): "groups have names that AWS chooses; limited to those that this cluster owns, by their tag",
    ("flow_log", ""): "the streams of one log group",
}
"""Statements whose resources hold a wildcard other than below a prefix, with the reason."""


def bare(text: str) -> str:
    """A string literal without its quotes."""
    return text.strip('"')


def statements(files: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every statement of every policy: the document's name, the statement's sid, the statement."""
    for block in files.of_type("data", "aws_iam_policy_document"):
        for statement in block.body.get("statement", []):
            yield block.label, bare(statement.get("sid", "")), statement


def listed(value: Any) -> list[str]:
    """The strings of a list, or of an expression that makes one."""
    return [bare(item) for item in value] if isinstance(value, list) else re.findall(r'"([^"]*)"', value)


def wide_policies(files: Any) -> list[str]:
    """Wildcards in actions, resources and principals, but for denials, prefixes of the bucket, and `WIDE`."""
    faults = []
    for document, sid, statement in statements(files):
        place = f"{document}/{sid}"
        denied = bare(statement.get("effect", "")) == "Deny"
        actions = listed(statement.get("actions", []))
        if not actions or "not_actions" in statement or "not_resources" in statement:
            faults.append(f"{place} names what it leaves out instead of what it allows")
        if not denied and any("*" in action for action in actions) and (document, sid) != ("account_key", "Account"):
            faults.append(f"{place} allows {actions}")
        if (document, sid) == ("autoscaler", "See") and not all(re.search(":(Describe|Get)", item) for item in actions):
            faults.append(f"{place} allows more than to see: {actions}")
        wide = [item for item in listed(statement.get("resources", [])) if "*" in item]
        wide = [item for item in wide if not BELOW_A_PREFIX.fullmatch(item)]
        if wide and not denied and (document, sid) not in WIDE:
            faults.append(f"{place} reaches {wide}")
        for principal in statement.get("principals", []):
            if not denied and any("*" in item for item in listed(principal["identifiers"])):
                faults.append(f"{place} is everybody's")
    return faults


def blind_lookups(files: Any) -> list[str]:
    """Policies that read objects but cannot see that one is absent: S3 then answers 403 where 404 is meant.

    That right is `s3:ListBucket` on the bucket itself. A request for one object has no parameters of a listing, so a
    condition on them (`s3:prefix`, `s3:delimiter`, `s3:max-keys`) refuses it.
    """
    listing = {
        document
        for document, _, statement in statements(files)
        if "s3:ListBucket" in listed(statement["actions"])
        and listed(statement["resources"]) == ["${aws_s3_bucket.main.arn}"]
        and "condition" not in statement
    }
    reading = {
        document for document, _, statement in statements(files) if "s3:GetObject" in listed(statement["actions"])
    }
    return [f"{document} cannot tell an absent object from a forbidden one" for document in sorted(reading - listing)]


def unlimited_trust(files: Any) -> list[str]:
    """Roles of service accounts that are not bound to an audience and to whole names of accounts."""
    faults = []
    for document, sid, statement in statements(files):
        if "sts:AssumeRoleWithWebIdentity" in listed(statement["actions"]):
            equal = [item["variable"] for item in statement.get("condition", []) if item["test"] == '"StringEquals"']
            for variable in ("aud", "sub"):
                if not any(text.endswith(f':{variable}"') for text in equal):
                    faults.append(f"{document}/{sid} does not compare {variable} for equality")
    accounts = files.local_values["store_identities"] | files.local_values["system_identities"]
    faults += [
        f"{bare(name)} trusts an account by a pattern"
        for name, item in accounts.items()
        if "*" in str(item["accounts"])
    ]
    return faults


def unguarded_bucket(files: Any) -> list[str]:
    """Which of its five guards a bucket is without: versions, encryption, clearing up, no public access, TLS."""
    faults = []
    for bucket in files.of_type("resource", "aws_s3_bucket"):
        own = "${" + bucket.address + ".id}"

        def guard(name: str, own: str = own) -> dict[str, Any]:
            found = [
                item.body for item in files.of_type("resource", f"aws_s3_bucket_{name}") if item.body["bucket"] == own
            ]
            return dict(found[0]) if found else {}

        public = guard("public_access_block")
        kinds = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
        if not all(public.get(name) is True for name in kinds):
            faults.append(f"{bucket.address} can be made public")
        if '"Enabled"' not in str(guard("versioning")):
            faults.append(f"{bucket.address} keeps no versions")
        encryption = str(guard("server_side_encryption_configuration"))
        if '"aws:kms"' not in encryption or "aws_kms_key.store.arn" not in encryption:
            faults.append(f"{bucket.address} is not encrypted with our key")
        rules = [rule for rule in guard("lifecycle_configuration").get("rule", []) if rule["filter"] == [{}]]
        if not rules or not {"abort_incomplete_multipart_upload", "noncurrent_version_expiration"} <= rules[0].keys():
            faults.append(f"{bucket.address} does not clear up after uploads and old versions")
        if not guard("policy") or not list(_only_tls(files, bucket.address)):
            faults.append(f"{bucket.address} can be reached without TLS")
    return faults


def _only_tls(files: Any, address: str) -> Iterator[str]:
    for document, _, statement in statements(files):
        condition = [(item["variable"], item["values"]) for item in statement.get("condition", [])]
        everything = {"${" + address + ".arn}", "${" + address + ".arn}/*"} <= set(
            listed(statement.get("resources", []))
        )
        denies = statement.get("effect") == '"Deny"' and listed(statement["actions"]) == ["s3:*"]
        if denies and everything and condition == [('"aws:SecureTransport"', ['"false"'])]:
            yield document


def wrong_nodes(files: Any) -> list[str]:
    """Node groups without the labels and taints that manifests and specs count on, or that lend pods their role."""
    gpu = {"key": '"nvidia.com/gpu"', "value": '"present"'}
    spot = {"key": '"phasetune/spot"', "value": '"true"'}
    wanted = {"cpu": [], "gpu": [gpu], "gpu-spot": [gpu, spot]}
    groups = {bare(name): group for name, group in files.local_values["node_groups"].items()}
    faults = [] if groups.keys() == wanted.keys() else [f"the groups are {sorted(groups)}"]
    for name, group in groups.items():
        taints = [files.local_values["gpu_taint"] if item == "${local.gpu_taint}" else item for item in group["taints"]]
        if taints != wanted.get(name):
            faults.append(f"the nodes of {name} have the taints {taints}")
        if ("NVIDIA" in group["ami"]) != (name != "cpu"):
            faults.append(f"the image of {name} is {group['ami']}")
        if (group["capacity"] == '"SPOT"') != (name == "gpu-spot"):
            faults.append(f"the capacity of {name} is {group['capacity']}")
    for template in files.of_type("resource", "aws_launch_template"):
        options = template.body.get("metadata_options", [{}])[0]
        # A pod is a hop further than its node; without a token the hops would not be counted.
        if (options.get("http_tokens"), options.get("http_put_response_hop_limit")) != ('"required"', 1):
            faults.append(f"a pod can take the role of a node of {template.address}")
    body = files.of_type("resource", "aws_eks_node_group")[0].body
    if body["labels"] != {'"phasetune/pool"': "${each.key}"}:
        faults.append(f"the labels are {body['labels']}")
    # What the autoscaler cannot read off the type of an instance: without it an empty group never gets a node for us.
    if '"k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"' not in body.get("tags", {}):
        faults.append("the autoscaler does not know the disks of an empty group")
    taint = body.get("dynamic", [{}])[0].get('"taint"')
    if not taint or taint["for_each"] != "${each.value.taints}" or taint["content"][0]["effect"] != '"NO_SCHEDULE"':
        faults.append("the taints of a group do not reach its nodes")
    return faults
