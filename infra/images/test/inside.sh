#!/usr/bin/env bash
# What must hold inside the image, as its own user on a read-only root; run by sandbox.sh.
set -euo pipefail
cd

step() { printf '\n-- %s\n' "$1"; }
fail() { echo "FAILED: $1" >&2; exit 1; }

step "the user has no right, and the root takes nothing"
[[ $(id -u):$(id -g) == 10001:10001 ]] || fail "the user is $(id)"
grep -q '^CapEff:[[:space:]]*0*$' /proc/self/status || fail "the user has capabilities"
for place in / /opt/phasetune /opt/phasetune/bin /etc /usr/local/bin /var/tmp; do
  if touch "$place/.probe" 2> /dev/null; then fail "$place can be written"; fi
done
for place in /tmp "$HOME" /dev/shm; do
  touch "$place/.probe" || fail "$place cannot be written"
done

step "no compiler, no installer"
for tool in cc gcc g++ c++ clang ld make; do
  if type -P "$tool"; then fail "$tool is in the image"; fi
done
if python -c "import pip" 2> /dev/null; then fail "the environment holds an installer"; fi
for tool in bash wget; do type -P "$tool" > /dev/null || fail "$tool is missing"; done
[[ -s /etc/ssl/certs/ca-certificates.crt ]] || fail "the authorities' certificates are missing"

step "a login shell, as KubeRay starts Ray, finds the environment"
[[ $(bash -lc 'type -P python ray phasetune mlflow') == "$(type -P python ray phasetune mlflow)" ]] || fail "another PATH"

step "phasetune lab, score, split: files in, files out"
phasetune lab lab --count 200 --seed 3
phasetune score lab/instructions*.jsonl --method ifd --held-out 0.2 --out scores
phasetune split scores/scores.parquet --tiers 3 --cut quantiles --out tiers
python - << 'PYTHON'
import pyarrow.parquet as pq

tiers = [pq.read_table(f"tiers/tier-{tier}.parquet").to_pylist() for tier in (1, 2, 3)]
scored = pq.read_table("scores/scores.parquet").num_rows
print(f"{scored} scored examples, tiers of {[len(tier) for tier in tiers]}")
assert sum(len(tier) for tier in tiers) == scored > 100
assert max(row["difficulty"] for row in tiers[0]) < min(row["difficulty"] for row in tiers[2])
PYTHON

step "the components prepare, score and split, as Kubeflow starts them"
cat > spec.yaml << 'SPEC'
name: image-test
model: {path: lab}
data: {train: [{path: "lab://instructions?count=200"}], held_out: {fraction: 0.2}}
scoring: {method: length}
splitting: {tiers: 3, cut: quantiles}
tracking: {enabled: false}
store: /tmp/store
SPEC
python /mnt/as_kfp.py spec.yaml prepare score split

step "Ray starts, and answers the probes of KubeRay"
bash -lc 'ray start --head --num-cpus=1 --memory=500000000 --object-store-memory=200000000 --dashboard-host=127.0.0.1' > ray.log \
  || { cat ray.log; fail "Ray does not start"; }
for _ in $(seq 300); do
  if wget -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success \
    && wget -T 2 -q -O- http://localhost:8265/api/gcs_healthz | grep success; then healthy=yes; break; fi
  sleep 1
done
ray stop > /dev/null
[[ ${healthy-} == yes ]] || { cat ray.log; fail "Ray's probes find nothing"; }

step "all held"
