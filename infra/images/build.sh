#!/usr/bin/env bash
# Builds the images: infra/images/build.sh [cpu] [gpu] [-- OPTION...]; both without a name, and what follows `--` goes to
# the engine. docker buildx builds them as docker-bake.hcl says; buildah builds the same where there is no docker.
#
# Environment: IMAGE, TAG, BASE_IMAGE, CPU_TORCH, PIP_CONF (see docker-bake.hcl), ENGINE (docker or buildah).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

targets=()
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    cpu | gpu) targets+=("$1") ;;
    *) echo "build.sh: $1 is not an image; there are cpu and gpu" >&2; exit 2 ;;
  esac
  shift
done
[[ ${1-} != -- ]] || shift
[[ ${#targets[@]} -gt 0 ]] || targets=(cpu gpu)

# The label names the commit only where the image is of that commit.
COMMIT=$(git rev-parse HEAD)
[[ -z $(git status --porcelain -- LICENSE README.md pyproject.toml components pipelines infra .dockerignore) ]] || COMMIT+=-changed
export COMMIT

if [[ -z ${ENGINE-} ]]; then
  if docker buildx version > /dev/null 2>&1; then ENGINE=docker; else ENGINE=buildah; fi
fi
case $ENGINE in
  docker) exec docker buildx bake --file infra/images/docker-bake.hcl --load "$@" "${targets[@]}" ;;
  buildah) command -v buildah > /dev/null || { echo "build.sh: neither docker buildx nor buildah is here" >&2; exit 1; } ;;
  *) echo "build.sh: ENGINE is '$ENGINE'; it must be docker or buildah" >&2; exit 2 ;;
esac

arguments=(--build-arg "COMMIT=$COMMIT")
for name in BASE_IMAGE CPU_TORCH; do
  [[ -z ${!name-} ]] || arguments+=(--build-arg "$name=${!name}")
done
[[ -z ${PIP_CONF-} ]] || arguments+=(--secret "id=pip.conf,src=$PIP_CONF")
for target in "${targets[@]}"; do
  tag="${IMAGE:-phasetune}:${TAG:-dev}"
  [[ $target == cpu ]] || tag+=-$target
  buildah build --file infra/images/Dockerfile --ignorefile .dockerignore --target "$target" --tag "$tag" "${arguments[@]}" "$@" .
done
