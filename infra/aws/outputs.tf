# What the production overlay of k8s/ reads: `settings` is all of it as lines of key=value.

locals {
  settings = {
    region               = var.region
    cluster_name         = aws_eks_cluster.main.name
    store_uri            = "s3://${aws_s3_bucket.main.bucket}/store"
    mlflow_artifacts_uri = "s3://${aws_s3_bucket.main.bucket}/mlflow"
    postgres_host        = aws_db_instance.main.address
    postgres_port        = aws_db_instance.main.port
    postgres_database    = aws_db_instance.main.db_name
    postgres_secret_arn  = aws_db_instance.main.master_user_secret[0].secret_arn
    role_pipeline_arn    = aws_iam_role.identity["pipeline"].arn
    role_ray_arn         = aws_iam_role.identity["ray"].arn
    role_mlflow_arn      = aws_iam_role.identity["mlflow"].arn
    role_store_gc_arn    = aws_iam_role.identity["store-gc"].arn
  }
}

output "region" {
  description = "The region."
  value       = local.settings.region
}

output "cluster_name" {
  description = "Name of the cluster, as in aws eks update-kubeconfig --name."
  value       = local.settings.cluster_name
}

output "store_uri" {
  description = "The store: `store` of every spec."
  value       = local.settings.store_uri
}

output "mlflow_artifacts_uri" {
  description = "Where the MLflow server keeps artifacts."
  value       = local.settings.mlflow_artifacts_uri
}

output "postgres_host" {
  description = "Host of MLflow's database."
  value       = local.settings.postgres_host
}

output "postgres_port" {
  description = "Port of MLflow's database."
  value       = local.settings.postgres_port
}

output "postgres_database" {
  description = "Name of MLflow's database."
  value       = local.settings.postgres_database
}

output "postgres_secret_arn" {
  description = "The secret in Secrets Manager that holds the master user's name and password."
  value       = local.settings.postgres_secret_arn
}

output "role_pipeline_arn" {
  description = "Role of the service account phasetune-pipeline."
  value       = local.settings.role_pipeline_arn
}

output "role_ray_arn" {
  description = "Role of the service account phasetune-ray."
  value       = local.settings.role_ray_arn
}

output "role_mlflow_arn" {
  description = "Role of the service account phasetune-mlflow."
  value       = local.settings.role_mlflow_arn
}

output "role_store_gc_arn" {
  description = "Role of the service account phasetune-store-gc."
  value       = local.settings.role_store_gc_arn
}

output "settings" {
  description = "All of the above as lines of key=value, for the production overlay."
  value       = join("", [for name, value in local.settings : "${name}=${value}\n"])
}

output "inputs_uri" {
  description = "Where runs read data and models from; they cannot write there."
  value       = "s3://${aws_s3_bucket.main.bucket}/inputs"
}

output "role_autoscaler_arn" {
  description = "Role of the service account cluster-autoscaler in kube-system."
  value       = aws_iam_role.identity["autoscaler"].arn
}
