# The cluster that phasetune runs on, on AWS. README.md says how it is applied.

terraform {
  # 1.8 of either Terraform or OpenTofu.
  required_version = ">= 1.8"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # The arguments in these files were compared with those of 6.25.
      version = "~> 6.25"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  tags      = merge(var.tags, { "app.kubernetes.io/part-of" = "phasetune", "phasetune/cluster" = var.name })
}
