# docker buildx bake --file infra/images/docker-bake.hcl     (from the repository's root; `make images` does it)

variable "IMAGE" {
  default = "phasetune"
}

variable "TAG" {
  default = "dev"
}

# In production: the mirror's name of it, by digest.
variable "BASE_IMAGE" {
  default = "python:3.11-slim-bookworm"
}

variable "CPU_TORCH" {
  default = "torch-cpu.lock"
}

variable "COMMIT" {
  default = "unknown"
}

# A pip configuration file for the build: indexes, credentials. It is mounted while pip runs and is in no layer.
variable "PIP_CONF" {
  default = ""
}

group "default" {
  targets = ["cpu", "gpu"]
}

target "common" {
  context    = "."
  dockerfile = "infra/images/Dockerfile"
  platforms  = ["linux/amd64"]
  args = {
    BASE_IMAGE = BASE_IMAGE
    COMMIT     = COMMIT
  }
  secret = PIP_CONF == "" ? [] : ["type=file,id=pip.conf,src=${PIP_CONF}"]
}

target "cpu" {
  inherits = ["common"]
  target   = "cpu"
  tags     = ["${IMAGE}:${TAG}"]
  args = {
    CPU_TORCH = CPU_TORCH
  }
}

target "gpu" {
  inherits = ["common"]
  target   = "gpu"
  tags     = ["${IMAGE}:${TAG}-gpu"]
}
