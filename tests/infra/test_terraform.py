"""infra/aws: formatted, whole, known to the provider; policies, bucket and nodes as promised; each check can fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.infra import terraform_files, terraform_rules

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "aws"
OUTPUTS = {
    "region",
    "cluster_name",
    "store_uri",
    "mlflow_artifacts_uri",
    "postgres_host",
    "postgres_port",
    "postgres_database",
    "postgres_secret_arn",
    "role_pipeline_arn",
    "role_ray_arn",
    "role_mlflow_arn",
    "role_store_gc_arn",
}
"""What the production overlay of k8s/ reads."""
ADMINISTRATOR = "arn:aws:iam::123456789012:role/platform"


TEXTS = terraform_files.texts_of(FOLDER)
KNOWN = json.loads(Path(__file__).with_name("aws_arguments.json").read_text(encoding="utf-8"))


def unknown_arguments(files):
    return terraform_files.unknown_arguments(files, KNOWN)


CHECKS = {
    check.__name__: check
    for check in (
        terraform_files.unresolved,
        terraform_files.unused,
        terraform_files.circular,
        terraform_files.misplaced_iteration,
        unknown_arguments,
        terraform_rules.wide_policies,
        terraform_rules.blind_lookups,
        terraform_rules.unlimited_trust,
        terraform_rules.unguarded_bucket,
        terraform_rules.wrong_nodes,
    )
}


@pytest.fixture(scope="module")
def files():
    """The configuration as it stands."""
    return terraform_files.read(TEXTS)


@pytest.fixture(scope="module")
def terraform():
    """Terraform, or OpenTofu: run in a folder with arguments."""
    command = shutil.which("terraform") or shutil.which("tofu")
    if command is None:
        pytest.skip("neither terraform nor tofu is on the PATH")

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
        variables |= {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_PLUGIN_CACHE_DIR": ""}
        return subprocess.run(
            [command, f"-chdir={folder}", *arguments], capture_output=True, text=True, timeout=100, env=variables
        )

    return run


@pytest.mark.parametrize("name", CHECKS)
def test_the_files_pass(files, name):
    assert CHECKS[name](files) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("unresolved", "= var.protect", "= var.protected", "var.protected, which is nowhere"),
        ("unresolved", "= local.private_subnet_ids", "= local.subnets", "local.subnets, which is nowhere"),
        ("unresolved", "aws_kms_key.store.arn", "aws_kms_key.shop.arn", "aws_kms_key.shop, which is nowhere"),
        ("unresolved", "data.aws_partition.current", "data.aws_partition.here", "data.aws_partition.here, which"),
        ("unresolved", "aws_vpc.main[0].id", "aws_vpc.main.id", "aws_vpc.main.id; it is many"),
        ("unresolved", "aws_eks_cluster.main.name", "aws_eks_cluster.main[0].name", "it is one"),
        ("unused", "= var.database_backup_days", "= 7", "var.database_backup_days is not used"),
        ("unused", "local.gpu_taint", '{ key = "a" }', "local.gpu_taint is not used"),
        ("unused", "data.aws_iam_policy_document.flow_log.json", '"{}"', "document.flow_log is not used"),
        ("circular", "= var.kubernetes_version", "= aws_eks_node_group.main[0].version", "waits for"),
        ("misplaced_iteration", "  for_each = local.accounts\n", "", "uses each. without for_each"),
        ("unknown_arguments", "publicly_accessible ", "publicly_reachable ", "publicly_reachable is no argument"),
        ("unknown_arguments", "    key_arn = ", "    key = ", "provider: key_arn is missing"),
        ("unknown_arguments", "      effect = ", "      affect = ", "taint: effect is missing"),
        ("unknown_arguments", "aws_db_instance.main.address", "aws_db_instance.main.host", "does not have"),
        ("unknown_arguments", 'resource "aws_eip" "nat"', 'resource "aws_eipp" "nat"', "not in aws_arguments.json"),
        ("wide_policies", '"s3:PutObject",', '"s3:*",', "store/Write allows"),
        ("wide_policies", '"ec2:DescribeImages"', '"ec2:RunInstances"', "allows more than to see"),
        ("wide_policies", "main.arn}/${each.value.writes}/*", "main.arn}/*", "store/Write reaches"),
        ("wide_policies", "resources = [aws_kms_key.store.arn]", 'resources = ["*"]', "store/Key reaches"),
        ("wide_policies", 'effect    = "Deny"', 'effect    = "Allow"', "OnlyTls is everybody's"),
        ("wide_policies", "    actions   = [\"s3:GetObject\"]", "    not_actions = [\"s3:GetObject\"]", "leaves out"),
        ("wide_policies", "    resources = [aws_s3_bucket.main.arn]\n  }\n\n  statement {\n    sid       = \"Read\"",
         "    resources = [\"arn:aws:s3:::*\"]\n  }\n\n  statement {\n    sid       = \"Read\"", "store/List reaches"),
        ("blind_lookups", '"s3:ListBucket"', '"s3:GetBucketLocation"', "store cannot tell an absent object"),
        ("blind_lookups", "    resources = [aws_s3_bucket.main.arn]\n",
         "    resources = [aws_s3_bucket.main.arn]\n    condition {\n      test = \"StringLike\"\n"
         "      variable = \"s3:prefix\"\n      values = [\"store/*\"]\n    }\n", "store cannot tell an absent object"),
        ("unlimited_trust", 'test     = "StringEquals"\n      variable = "${local.issuer}:sub"',
         'test     = "StringLike"\n      variable = "${local.issuer}:sub"', "does not compare sub"),
        ("unlimited_trust", "phasetune:phasetune-store-gc", "phasetune:*", "store-gc trusts"),
        ("unguarded_bucket", "block_public_policy     = true", "block_public_policy     = false", "made public"),
        ("unguarded_bucket", 'status = "Enabled"\n  }\n}', 'status = "Suspended"\n  }\n}', "keeps no versions"),
        ("unguarded_bucket", '"aws:kms"', '"AES256"', "not encrypted with our key"),
        ("unguarded_bucket", "    abort_incomplete_multipart_upload {", "    transition {", "does not clear up"),
        ("unguarded_bucket", "aws:SecureTransport", "aws:SourceIp", "without TLS"),
        ("wrong_nodes", "      taints   = [local.gpu_taint]\n", "      taints   = []\n", "the nodes of gpu have"),
        ("wrong_nodes", '"phasetune/spot", value', '"spot", value', "the nodes of gpu-spot have"),
        ("wrong_nodes", '"NO_SCHEDULE"', '"PREFER_NO_SCHEDULE"', "do not reach"),
        ("wrong_nodes", "hop_limit = 1", "hop_limit = 2", "can take the role of a node"),
        ("wrong_nodes", '= "required"', '= "optional"', "can take the role of a node"),
        ("wrong_nodes", '"phasetune/pool"', '"pool"', "the labels are"),
        ("wrong_nodes", "template/resources/ephemeral-storage", "template/label/x", "does not know the disks"),
    ],
)  # fmt: skip
def test_each_check_can_fail(name, old, new, said):
    changed = {file: text.replace(old, new) for file, text in TEXTS.items()}
    assert changed != TEXTS
    faults = CHECKS[name](terraform_files.read(changed))
    assert any(said in fault for fault in faults), faults


def test_what_is_declared_twice_is_refused():
    with pytest.raises(ValueError, match=r"declared twice: \['variable region'\]"):
        terraform_files.read({**TEXTS, "more.tf": 'variable "region" {\n  type = string\n}\n'})


def test_reasons_for_wide_statements_are_needed(files):
    there = {(document, sid) for document, sid, _ in terraform_rules.statements(files)}
    assert terraform_rules.WIDE.keys() <= there


def test_variables_and_outputs_say_what_they_are(files):
    assert not [name for name, body in files.variables.items() if not {"description", "type"} <= body.keys()]
    assert not [name for name, body in files.outputs.items() if "description" not in body]
    assert [name for name, body in files.variables.items() if "default" not in body] == ["administrators"]


def test_outputs_are_those_of_the_overlay(files):
    assert files.local_values["settings"].keys() == OUTPUTS
    assert files.outputs.keys() == OUTPUTS | {"settings", "inputs_uri", "role_autoscaler_arn"}
    assert {name: files.outputs[name]["value"] for name in OUTPUTS} == {
        name: "${local.settings." + name + "}" for name in OUTPUTS
    }


def test_the_overlay_reads_these_outputs():
    settings = ROOT / "k8s" / "overlays" / "production" / "settings.env"
    keys = set(re.findall(r"^(\w+)=", settings.read_text(encoding="utf-8"), re.MULTILINE))
    assert keys >= OUTPUTS


def test_a_role_trusts_the_accounts_that_the_overlay_gives_it_to(files):
    overlay = yaml.safe_load((ROOT / "k8s/overlays/production/kustomization.yaml").read_text(encoding="utf-8"))
    given = {
        (one["source"]["fieldPath"].removeprefix("data."), target["select"]["name"])
        for one in overlay["replacements"]
        for target in one["targets"]
        if target["select"]["kind"] == "ServiceAccount"
    }
    identities = files.local_values["store_identities"]
    trusted = {
        ("role_" + terraform_rules.bare(name).replace("-", "_") + "_arn", account)
        for name, identity in identities.items()
        for account in re.findall(r"phasetune-[\w-]+", str(identity["accounts"]))
    }
    assert given == trusted


def test_no_password_is_in_a_variable_or_the_state(files):
    database = files.of_type("resource", "aws_db_instance")[0].body
    assert database["manage_master_user_password"] is True
    assert not {"password", "password_wo"} & database.keys()
    assert not [name for name in files.variables if re.search("password|secret|token", name)]


def test_the_database_is_private_and_kept(files):
    database = files.of_type("resource", "aws_db_instance")[0].body
    wanted = {"publicly_accessible": False, "storage_encrypted": True, "skip_final_snapshot": False}
    assert {name: database[name] for name in wanted} == wanted
    assert files.variables["protect"]["default"] is True
    rule = files.of_type("resource", "aws_vpc_security_group_ingress_rule")
    assert [(item.body["from_port"], item.body["to_port"]) for item in rule] == [(5432, 5432)]
    assert "cluster_security_group_id" in rule[0].body["referenced_security_group_id"]


def test_the_version_of_kubernetes_is_the_manifests(files):
    wanted = yaml.safe_load((ROOT / "k8s" / "versions.yaml").read_text(encoding="utf-8"))["kubernetes"]
    assert files.variables["kubernetes_version"]["default"] == f'"{wanted}"'


def test_the_files_are_formatted(terraform):
    done = terraform(FOLDER, "fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def evaluated(terraform, tmp_path_factory):
    """Terraform itself evaluates variables and local values; an attribute of a resource is the text that names it."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copy(FOLDER / "variables.tf", folder)
    blocks = [block for text in TEXTS.values() for block in re.findall(r"^locals \{\n.*?^\}\n", text, re.M | re.S)]
    stood_in = re.compile(r"(?<![\w.\"])(?:data\.)?aws_\w+\.\w+(?:\[[^\]]*\])?(?:\.\w+(?:\[\d+\])?)*")
    names = {"node_groups": "local.node_groups", "settings": "local.settings", "stores": "local.store_identities"}
    outputs = [f'output "{name}" {{\n  value = {value}\n}}\n' for name, value in names.items()]
    text = "".join([*blocks, *outputs])
    listed = stood_in.sub(lambda match: json.dumps([match[0]] * 3 if "[*]" in match[0] else match[0]), text)
    (folder / "locals.tf").write_text(listed, encoding="utf-8")
    prepared = terraform(folder, "init", "-input=false", "-no-color")
    assert prepared.returncode == 0, prepared.stderr

    def evaluate(**variables: object) -> subprocess.CompletedProcess[str]:
        given = {"administrators": [ADMINISTRATOR]} | variables
        (folder / "terraform.tfvars.json").write_text(json.dumps(given), encoding="utf-8")
        planned = terraform(folder, "plan", "-input=false", "-no-color", "-out=plan")
        return terraform(folder, "show", "-json", "plan") if planned.returncode == 0 else planned

    return evaluate


def outputs_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return {name: item["value"] for name, item in json.loads(done.stdout)["planned_values"]["outputs"].items()}


def test_terraform_reads_the_local_values(evaluated):
    found = outputs_of(evaluated())
    groups = found["node_groups"]
    assert [item["key"] for item in groups["gpu-spot"]["taints"]] == ["nvidia.com/gpu", "phasetune/spot"]
    assert [item["key"] for item in groups["gpu"]["taints"]] == ["nvidia.com/gpu"]
    assert [groups[name]["min"] for name in ("cpu", "gpu", "gpu-spot")] == [2, 0, 0]
    assert len(groups["cpu"]["subnets"]) == 3
    assert len(groups["gpu"]["subnets"]) == 1
    assert found["settings"].keys() == OUTPUTS
    assert found["settings"]["store_uri"] == "s3://aws_s3_bucket.main.bucket/store"
    assert found["settings"]["role_store_gc_arn"] == 'aws_iam_role.identity["store-gc"].arn'
    assert {name: item["writes"] for name, item in found["stores"].items()} == {
        "pipeline": "store",
        "ray": "store",
        "mlflow": "mlflow",
        "store-gc": "store",
    }
    assert found["stores"]["ray"]["accounts"] == ["phasetune:phasetune-ray"]


def test_given_subnets_and_namespaces_are_taken(evaluated):
    network = {"vpc_id": "vpc-1", "private_subnet_ids": ["subnet-1", "subnet-2"]}
    found = outputs_of(evaluated(network=network, pipeline_namespaces=["phasetune", "kubeflow"], gpu_zones=9))
    assert found["node_groups"]["gpu"]["subnets"] == ["subnet-1", "subnet-2"]
    assert found["stores"]["pipeline"]["accounts"] == ["phasetune:phasetune-pipeline", "kubeflow:phasetune-pipeline"]
    assert found["stores"]["mlflow"]["accounts"] == ["phasetune:phasetune-mlflow"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"administrators": []}, "at least one ARN"),
        ({"region": "Frankfurt"}, "written as us-east-1"),
        ({"name": "Big_Cluster"}, "lower-case letters"),
        ({"network": {"vpc_id": "vpc-1", "private_subnet_ids": ["subnet-1"]}}, "at least two zones"),
        ({"vpc_cidr": "10.0.0.0/24"}, "between /16 and /20"),
        ({"zones": ["a", "a"]}, "2 to 4 different letters"),
        ({"public_endpoint_cidrs": ["0.0.0.0/0"]}, "the whole internet"),
        ({"kubernetes_version": "latest"}, "written as 1.35"),
        ({"cpu_nodes": {"min": 1}}, "At least 2 nodes"),
        ({"gpu_nodes": {"max": 0}}, "max is at least 1"),
        ({"gpu_spot_nodes": {"disk_gib": 50}}, "250 at least"),
        ({"pipeline_namespaces": ["*"]}, "by its whole name"),
        ({"noncurrent_days": 0}, "at least a day"),
        ({"database": {"storage_gib": 300}}, "max_storage_gib is above"),
        ({"database_backup_days": 0}, "1 to 35 days"),
        ({"log_days": 10}, "CloudWatch keeps logs"),
        ({"gpu_zones": 0}, "at least one zone"),
    ],
)
def test_what_cannot_work_is_refused(evaluated, variables, said):
    done = evaluated(**variables)
    assert done.returncode == 1
    assert said in re.sub(r"[\s│]+", " ", done.stderr)


@pytest.mark.proof
def test_checkov_has_nothing_to_say_but_what_is_justified(checkov):
    skips = yaml.safe_load(Path(__file__).with_name("checkov_skips.yaml").read_text(encoding="utf-8"))
    assert all(skip["reason"] for skip in skips)
    justified = {(skip["check"], skip["resource"]) for skip in skips}
    assert {(item["check_id"], item["resource"]) for item in checkov(FOLDER, "terraform")} == justified


@pytest.mark.proof
def test_checkov_sees_a_bucket_without_guards(checkov, tmp_path):
    (tmp_path / "main.tf").write_text('resource "aws_s3_bucket" "main" {\n  bucket = "a"\n}\n', encoding="utf-8")
    found = checkov(tmp_path, "terraform", ["CKV_AWS_21"])
    assert "CKV2_AWS_6" in {item["check_id"] for item in found}
    assert "CKV_AWS_21" not in {item["check_id"] for item in found}
    assert {(item["resource"], item["file_path"]) for item in found} == {("aws_s3_bucket.main", "/main.tf")}


@pytest.mark.proof
def test_checkov_refuses_a_folder_with_nothing_to_check(checkov, tmp_path):
    with pytest.raises(RuntimeError, match="found nothing to check"):
        checkov(tmp_path, "terraform")
