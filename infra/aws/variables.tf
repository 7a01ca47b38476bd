variable "administrators" {
  description = "ARNs of the IAM roles or users that may do everything in the cluster. Whoever applies this is not one by that alone."
  type        = list(string)

  validation {
    condition     = length(var.administrators) > 0 && alltrue([for arn in var.administrators : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "Give at least one ARN of an IAM role or user, such as arn:aws:iam::123456789012:role/platform."
  }
}

variable "region" {
  description = "The AWS region of everything."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "The region is written as us-east-1 is."
  }
}

variable "name" {
  description = "Name of the cluster, and the beginning of every other name."
  type        = string
  default     = "phasetune"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "tags" {
  description = "Further tags of every resource, such as a cost centre."
  type        = map(string)
  default     = {}
}

variable "network" {
  description = "Private subnets that are there already, in at least two zones, with a way to the internet or to endpoints of the AWS services. null: a VPC is made."
  type = object({
    vpc_id             = string
    private_subnet_ids = list(string)
  })
  default = null

  validation {
    condition     = var.network == null ? true : length(var.network.private_subnet_ids) >= 2
    error_message = "EKS and RDS want subnets in at least two zones."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the VPC, if one is made. A sixteenth is a zone's: with /16 that are 4,091 addresses, one for each pod."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(regex("/(16|17|18|19|20)$", var.vpc_cidr)) && can(cidrhost(var.vpc_cidr, 0))
    error_message = "Give an IPv4 range between /16 and /20."
  }
}

variable "zones" {
  description = "Letters of the region's zones that the VPC is in, if one is made. GPUs are looked for in the first (see gpu_zones)."
  type        = list(string)
  default     = ["a", "b", "c"]

  validation {
    condition     = length(distinct(var.zones)) == length(var.zones) && contains([2, 3, 4], length(var.zones)) && alltrue([for zone in var.zones : can(regex("^[a-z]$", zone))])
    error_message = "Give 2 to 4 different letters: EKS and RDS want two zones, and more than 4 have no addresses here."
  }
}

variable "nat_per_zone" {
  description = "Whether each zone has its own NAT gateway. With one for all, the loss of its zone cuts the others off from the internet, but not from S3."
  type        = bool
  default     = false
}

variable "public_endpoint_cidrs" {
  description = "Addresses from which the cluster's API can be reached over the internet. None: only from inside the network."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_endpoint_cidrs : can(cidrhost(cidr, 0)) && !can(regex("/0$", cidr))])
    error_message = "Give IPv4 ranges; the whole internet is not one of them."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes. AWS asks six times the price for a cluster whose version has left standard support."
  type        = string
  default     = "1.35"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "The version is written as 1.35 is."
  }
}

variable "cpu_nodes" {
  description = "Nodes for Kubeflow, Kueue, KubeRay, MLflow, the pipeline's pods and Ray's heads. max is how far the autoscaler may go."
  type = object({
    instance_types = optional(list(string), ["r7i.xlarge"])
    min            = optional(number, 2)
    max            = optional(number, 8)
    disk_gib       = optional(number, 200)
  })
  default = {}

  validation {
    condition     = var.cpu_nodes.min >= 2 && var.cpu_nodes.max >= var.cpu_nodes.min && var.cpu_nodes.disk_gib >= 150
    error_message = "At least 2 nodes, as MLflow's replicas are on different ones, with 150 GiB each: a Ray head asks for 100."
  }
}

variable "gpu_nodes" {
  description = "GPU nodes at the full price, for Ray's workers. Instance types of one group have the same GPUs, as the autoscaler expects."
  type = object({
    instance_types = optional(list(string), ["g6e.12xlarge"])
    max            = optional(number, 2)
    disk_gib       = optional(number, 1000)
  })
  default = {}

  validation {
    condition     = var.gpu_nodes.max >= 1 && var.gpu_nodes.disk_gib >= 250
    error_message = "A worker asks for 200 GiB, so a node has 250 at least (200 for each GPU and 50), and max is at least 1: a group that nobody uses stands at none."
  }
}

variable "gpu_spot_nodes" {
  description = "GPU nodes that AWS may take back with two minutes' notice. A phase goes on from its last checkpoint."
  type = object({
    instance_types = optional(list(string), ["g6e.12xlarge"])
    max            = optional(number, 4)
    disk_gib       = optional(number, 1000)
  })
  default = {}

  validation {
    condition     = var.gpu_spot_nodes.max >= 1 && var.gpu_spot_nodes.disk_gib >= 250
    error_message = "A worker asks for 200 GiB, so a node has 250 at least (200 for each GPU and 50), and max is at least 1: a group that nobody uses stands at none."
  }
}

variable "gpu_zones" {
  description = "How many zones GPU nodes may be in, from the first. In one, the workers of a phase speak fast and for nothing; several find free GPUs more often."
  type        = number
  default     = 1

  validation {
    condition     = var.gpu_zones >= 1
    error_message = "GPU nodes are in at least one zone."
  }
}

variable "pipeline_namespaces" {
  description = "Namespaces whose service accounts phasetune-pipeline and phasetune-ray are the runs'. Add kubeflow for a standalone Kubeflow Pipelines."
  type        = list(string)
  default     = ["phasetune"]

  validation {
    condition     = length(var.pipeline_namespaces) > 0 && alltrue([for name in var.pipeline_namespaces : can(regex("^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", name))])
    error_message = "Give at least one namespace by its whole name."
  }
}

variable "bucket_name" {
  description = "Name of the bucket, which nobody else in the world may have. null: the cluster's name, the account and the region."
  type        = string
  default     = null
}

variable "noncurrent_days" {
  description = "Days for which what was deleted from the bucket or overwritten can be brought back."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "S3 keeps such versions for at least a day."
  }
}

variable "database" {
  description = "MLflow's PostgreSQL: instance class and disk in GiB, which grows up to max_storage_gib."
  type = object({
    instance_class  = optional(string, "db.t4g.medium")
    storage_gib     = optional(number, 20)
    max_storage_gib = optional(number, 200)
  })
  default = {}

  validation {
    condition     = var.database.storage_gib >= 20 && var.database.max_storage_gib > var.database.storage_gib
    error_message = "A disk has at least 20 GiB, and max_storage_gib is above storage_gib."
  }
}

variable "database_standby" {
  description = "Whether a second database in another zone takes over when the first is lost; it doubles the price."
  type        = bool
  default     = true
}

variable "database_backup_days" {
  description = "Days for which MLflow's database can be taken back to any moment."
  type        = number
  default     = 14

  validation {
    condition     = var.database_backup_days >= 1 && var.database_backup_days <= 35
    error_message = "RDS keeps back-ups for 1 to 35 days."
  }
}

variable "log_days" {
  description = "Days for which the logs of the cluster, the network and the database are kept. One of the periods that CloudWatch has."
  type        = number
  default     = 365

  validation {
    condition     = contains([30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096], var.log_days)
    error_message = "CloudWatch keeps logs for 30, 60, 90, 120, 150, 180, 365, 400, 545, 731 or 1096 days."
  }
}

variable "protect" {
  description = "Whether AWS refuses to delete the cluster and the database. Apply false before a destroy."
  type        = bool
  default     = true
}
