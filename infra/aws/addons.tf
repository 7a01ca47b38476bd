# What every node and every cluster needs. The network add-on also enforces the NetworkPolicies of k8s/.

resource "aws_eks_addon" "before_nodes" {
  for_each = {
    "kube-proxy" = { role = null, settings = null }
    "vpc-cni" = {
      role     = aws_iam_role.identity["vpc-cni"].arn
      settings = jsonencode({ enableNetworkPolicy = "true" })
    }
  }

  cluster_name                = aws_eks_cluster.main.name
  addon_name                  = each.key
  service_account_role_arn    = each.value.role
  configuration_values        = each.value.settings
  resolve_conflicts_on_update = "OVERWRITE"

  depends_on = [aws_iam_role_policy_attachment.system]
}

# These have pods that wait for a node. The volumes are for Kubeflow Pipelines, which keeps its own state in them.
resource "aws_eks_addon" "on_nodes" {
  for_each = {
    "coredns"            = { role = null }
    "aws-ebs-csi-driver" = { role = aws_iam_role.identity["ebs-csi"].arn }
  }

  cluster_name                = aws_eks_cluster.main.name
  addon_name                  = each.key
  service_account_role_arn    = each.value.role
  resolve_conflicts_on_update = "OVERWRITE"

  depends_on = [
    aws_eks_node_group.main,
    aws_iam_role_policy_attachment.system,
  ]
}
