# Three groups of nodes. The GPU groups stand at none until a phase's workers wait: the cluster autoscaler raises them.
# Bottlerocket: no shell, a read-only root, and NVIDIA's driver and device plugin in the image of the GPU nodes.

locals {
  gpu_taint = { key = "nvidia.com/gpu", value = "present" }

  # Checkpoints are written to the disk before they go to the store: 500 MB/s where they are large, 125 is the least.
  node_groups = {
    cpu = {
      nodes    = var.cpu_nodes
      min      = var.cpu_nodes.min
      ami      = "BOTTLEROCKET_x86_64"
      capacity = "ON_DEMAND"
      disk     = { gib = var.cpu_nodes.disk_gib, throughput = 125 }
      taints   = []
      subnets  = local.private_subnet_ids
    }
    gpu = {
      nodes    = var.gpu_nodes
      min      = 0
      ami      = "BOTTLEROCKET_x86_64_NVIDIA"
      capacity = "ON_DEMAND"
      disk     = { gib = var.gpu_nodes.disk_gib, throughput = 500 }
      taints   = [local.gpu_taint]
      subnets  = slice(local.private_subnet_ids, 0, min(var.gpu_zones, length(local.private_subnet_ids)))
    }
    "gpu-spot" = {
      nodes    = var.gpu_spot_nodes
      min      = 0
      ami      = "BOTTLEROCKET_x86_64_NVIDIA"
      capacity = "SPOT"
      disk     = { gib = var.gpu_spot_nodes.disk_gib, throughput = 500 }
      taints   = [local.gpu_taint, { key = "phasetune/spot", value = "true" }]
      subnets  = slice(local.private_subnet_ids, 0, min(var.gpu_zones, length(local.private_subnet_ids)))
    }
  }
}

data "aws_iam_policy_document" "node_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.node_trust.json
}

# What the network add-on needs is not the nodes' but its own (identities.tf), out of the reach of their pods.
resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEC2ContainerRegistryPullOnly", "AmazonEKSWorkerNodeMinimalPolicy"])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}

resource "aws_launch_template" "node" {
  for_each = local.node_groups

  name                   = "${var.name}-${each.key}"
  update_default_version = true

  # A pod is one hop further than its node, so that it cannot take the node's role.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  monitoring {
    enabled = true
  }

  # Bottlerocket's own disk, then the one of images, logs and scratch space.
  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size = 8
      volume_type = "gp3"
      encrypted   = true
    }
  }

  block_device_mappings {
    device_name = "/dev/xvdb"

    ebs {
      volume_size = each.value.disk.gib
      volume_type = "gp3"
      throughput  = each.value.disk.throughput
      encrypted   = true
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]

    content {
      resource_type = tag_specifications.value
      tags          = merge(local.tags, { Name = "${var.name}-${each.key}" })
    }
  }
}

resource "aws_eks_node_group" "main" {
  for_each = local.node_groups

  cluster_name    = aws_eks_cluster.main.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = each.value.subnets
  ami_type        = each.value.ami
  capacity_type   = each.value.capacity
  instance_types  = each.value.nodes.instance_types
  labels          = { "phasetune/pool" = each.key }

  # From an empty group the autoscaler knows what the instance type says, and of the disk only what this tag says: our
  # pods ask for disk, so without it no first node would ever come. What the system keeps is left out.
  tags = {
    "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage" = "${floor(each.value.disk.gib * 0.85)}Gi"
  }

  scaling_config {
    min_size     = each.value.min
    desired_size = each.value.min
    max_size     = each.value.nodes.max
  }

  update_config {
    max_unavailable = 1
  }

  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }

  dynamic "taint" {
    for_each = each.value.taints

    content {
      key    = taint.value.key
      value  = taint.value.value
      effect = "NO_SCHEDULE"
    }
  }

  # The autoscaler's.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  # A node without the network add-on never becomes ready.
  depends_on = [
    aws_eks_addon.before_nodes,
    aws_iam_role_policy_attachment.node,
  ]
}
