# The roles of service accounts (IRSA). Ours reach objects below one prefix of one bucket (and see the names of the others
# in it), and nothing else in the account.

locals {
  issuer = replace(aws_eks_cluster.main.identity[0].oidc[0].issuer, "https://", "")

  # Accounts as namespace:name. What is under `reads` can be read, under `writes` also written and deleted.
  store_identities = {
    pipeline = {
      accounts = [for namespace in var.pipeline_namespaces : "${namespace}:phasetune-pipeline"]
      reads    = ["inputs"]
      writes   = "store"
    }
    ray = {
      accounts = [for namespace in var.pipeline_namespaces : "${namespace}:phasetune-ray"]
      reads    = ["inputs"]
      writes   = "store"
    }
    mlflow = {
      accounts = ["phasetune:phasetune-mlflow"]
      reads    = []
      writes   = "mlflow"
    }
    "store-gc" = {
      accounts = ["phasetune:phasetune-store-gc"]
      reads    = []
      writes   = "store"
    }
  }

  system_identities = {
    "vpc-cni" = {
      accounts = ["kube-system:aws-node"]
      managed  = "AmazonEKS_CNI_Policy"
    }
    "ebs-csi" = {
      accounts = ["kube-system:ebs-csi-controller-sa"]
      managed  = "service-role/AmazonEBSCSIDriverPolicy"
    }
    autoscaler = {
      accounts = ["kube-system:cluster-autoscaler"]
      managed  = null
    }
  }

  accounts = merge(
    { for name, identity in local.store_identities : name => identity.accounts },
    { for name, identity in local.system_identities : name => identity.accounts },
  )
}

data "aws_iam_policy_document" "identity_trust" {
  for_each = local.accounts

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.cluster.arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = [for account in each.value : "system:serviceaccount:${account}"]
    }
  }
}

resource "aws_iam_role" "identity" {
  for_each = local.accounts

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.identity_trust[each.key].json
}

data "aws_iam_policy_document" "store" {
  for_each = local.store_identities

  # Without it, S3 answers 403 instead of 404 where an object is not there, and nothing could be looked up. A condition on
  # s3:prefix would take it away again: a request for one object carries no prefix.
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.main.arn]
  }

  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = [for prefix in concat(each.value.reads, [each.value.writes]) : "${aws_s3_bucket.main.arn}/${prefix}/*"]
  }

  statement {
    sid = "Write"
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:ListMultipartUploadParts",
      "s3:PutObject",
    ]
    resources = ["${aws_s3_bucket.main.arn}/${each.value.writes}/*"]
  }

  # The key, only for objects of this bucket and only through S3.
  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.store.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }

    condition {
      test     = "StringLike"
      variable = "kms:EncryptionContext:aws:s3:arn"
      values   = [aws_s3_bucket.main.arn, "${aws_s3_bucket.main.arn}/*"]
    }
  }
}

resource "aws_iam_role_policy" "store" {
  for_each = local.store_identities

  name   = "bucket"
  role   = aws_iam_role.identity[each.key].id
  policy = data.aws_iam_policy_document.store[each.key].json
}

# Uploads that were cut off are found by listing them, which S3 allows for a whole bucket only.
data "aws_iam_policy_document" "uploads" {
  statement {
    actions   = ["s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.main.arn]
  }
}

resource "aws_iam_role_policy" "uploads" {
  name   = "uploads"
  role   = aws_iam_role.identity["store-gc"].id
  policy = data.aws_iam_policy_document.uploads.json
}

resource "aws_iam_role_policy_attachment" "system" {
  for_each = { for name, identity in local.system_identities : name => identity.managed if identity.managed != null }

  role       = aws_iam_role.identity[each.key].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}

data "aws_iam_policy_document" "autoscaler" {
  # What there is: these actions know no single resources.
  statement {
    sid = "See"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    resources = ["*"]
  }

  # The labels and taints of a group that stands at none.
  statement {
    sid       = "SeeGroups"
    actions   = ["eks:DescribeNodegroup"]
    resources = ["arn:${local.partition}:eks:${var.region}:${local.account}:nodegroup/${var.name}/*"]
  }

  statement {
    sid       = "Scale"
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["arn:${local.partition}:autoscaling:${var.region}:${local.account}:autoScalingGroup:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}"
      values   = ["owned"]
    }
  }
}

resource "aws_iam_role_policy" "autoscaler" {
  name   = "groups"
  role   = aws_iam_role.identity["autoscaler"].id
  policy = data.aws_iam_policy_document.autoscaler.json
}
