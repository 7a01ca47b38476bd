"""`make image-test`: build the cpu image for real, and run what is in it, where no container engine is at hand.

The base is made by debootstrap, the image by buildah (both are Debian packages), without a daemon, a registry or name
spaces of users: it must run as root. What runs in the image does so as its own user, on a read-only root; see
sandbox.sh. Everything lies in one temporary folder (in TMPDIR, up to 15 GB while it runs), which is removed at the end.

The pip configuration of the caller goes along: its indexes, its folders of wheels and its certificates, local ones
mounted read-only. One of them must offer torch's CPU build; else CPU_TORCH=torch.lock takes the published one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BASE = "localhost/phasetune-base:test"
IMAGE, TAG = "localhost/phasetune", "test"
TOOLS = {"buildah": "buildah", "debootstrap": "debootstrap", "ip": "iproute2", "setpriv": "util-linux"}
KEPT = ("index-url", "extra-index-url", "find-links", "cert", "timeout", "proxy", "trusted-host")
"""What of a pip configuration says where packages come from."""


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> None:
    """Run a command whose output is for the reader.

    Raises:
        CalledProcessError: If it fails.
    """
    sys.stdout.flush()
    subprocess.run(command, check=True, env={**os.environ, **(env or {})}, cwd=ROOT)


def answer(*command: str | Path, env: Mapping[str, str]) -> str:
    """What a command prints, without the last line's end."""
    ended = subprocess.run(command, check=True, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)
    return ended.stdout.strip()


def require(holds: bool, otherwise: str) -> None:
    """Stop with a message where something does not hold."""
    if not holds:
        raise SystemExit(f"image-test: {otherwise}")


def pip_settings() -> dict[str, list[str]]:
    """The caller's pip configuration, files and environment together, the environment last."""
    printed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found: dict[str, list[str]] = {}
    for line in sorted(printed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, quoted = line.partition("=")
        words = [word for part in shlex.split(quoted) for word in part.split()]
        if name.rpartition(".")[2] in KEPT:
            found[name.rpartition(".")[2]] = words
    return found


def carried(settings: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    """A pip configuration for the build, and buildah's options that bring the local places it names.

    A place of this machine, a path or a file:// URL, is mounted below /mnt, so that it hides nothing of the image's.
    """
    lines = ["[global]"]
    options: list[str] = []
    for name, words in settings.items():
        there = []
        for word in words:
            path = word.removeprefix("file://")
            if not path.startswith("/"):
                there.append(word)
                continue
            # An index is mounted with the folder around it: its pages may point to files beside it.
            outer = Path(path).parent if name.endswith("index-url") else Path(path)
            place = f"/mnt/pip{len(options)}"
            options.append(f"--volume={outer.resolve()}:{place}:ro")
            prefix = "file://" if word.startswith("file://") else ""
            there.append(prefix + place + (f"/{Path(path).name}" if outer != Path(path) else ""))
        lines.append(f"{name} = {' '.join(there)}")
    return "\n".join(lines) + "\n", options


def storage_driver(work: Path) -> str:
    """`overlay` where it can be mounted; else `vfs`, which works everywhere and copies every layer whole."""
    folder = work / "overlay"
    parts = {name: folder / name for name in ("lowerdir", "upperdir", "workdir")}
    for part in (*parts.values(), folder / "merged"):
        part.mkdir(parents=True)
    options = ",".join(f"{name}={part}" for name, part in parts.items())
    command = ("mount", "-t", "overlay", "overlay", "-o", options, folder / "merged")
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        return "vfs"
    run("umount", folder / "merged")
    return "overlay"


def release(work: Path) -> None:
    """Unmount what is still mounted below a folder, the last one first, so that removing it reaches nothing else."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for place in reversed([place for place in mounts if Path(place).is_relative_to(work)]):
        run("umount", "--lazy", place)


def make_base(work: Path, suite: str, mirror: str, env: Mapping[str, str]) -> None:
    """A Debian with Python, as an image in buildah's storage."""
    root = work / "base"
    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv", suite, root, mirror)
    container = answer("buildah", "from", "scratch", env=env)
    run("buildah", "add", "--quiet", container, root, "/", env=env)
    run("buildah", "commit", "--quiet", "--rm", container, BASE, env=env)
    shutil.rmtree(root)


def check_configuration(config: Mapping[str, Any]) -> None:
    """The image says whose it is and of which commit, and holds no trace of where its packages came from."""
    revision = config["Labels"]["org.opencontainers.image.revision"]
    require(config["User"] == "10001:10001", f"the user is {config['User']}")
    require(re.fullmatch(r"[0-9a-f]{40}(-changed)?", revision) is not None, f"the revision is {revision}")
    require(not [line for line in config["Env"] if line.startswith(("PIP_", "COMMIT"))], f"env: {config['Env']}")


def check(work: Path, env: Mapping[str, str]) -> None:
    """Run inside.sh in the image that was built."""
    container = answer("buildah", "from", "--pull-never", f"{IMAGE}:{TAG}", env=env)
    config = json.loads(answer("buildah", "inspect", "--type", "image", f"{IMAGE}:{TAG}", env=env))["OCIv1"]["config"]
    check_configuration(config)
    root = Path(answer("buildah", "mount", container, env=env))
    left = [str(path) for path in (root / "root", root / "build", root / "src", root / "mnt") if _files(path)]
    require(not left, f"what only the build needs is in the image: {left}")
    files = work / "files"
    files.mkdir()
    for name in ("inside.sh", "as_kfp.py"):
        shutil.copy(HERE / name, files)
    variables = dict(line.split("=", 1) for line in config["Env"])
    uid, gid = config["User"].split(":")
    name_spaces = ("unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child")
    sandbox = (HERE / "sandbox.sh", root, uid, gid, variables["HOME"], files)
    # One core's worth of threads: what runs here shares its machine, and threads that wait for each other spin.
    given = ("env", "-i", *config["Env"], "OMP_NUM_THREADS=1")
    run(*name_spaces, *sandbox, *given, "bash", "/mnt/inside.sh")


def _files(folder: Path) -> list[Path]:
    """What lies in a folder, but for a home folder's start-up files, and for files that are but mount points."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".bashrc", ".profile")]
    return [path for path in found if path.stat().st_size]


def build_and_check(work: Path, env: Mapping[str, str], suite: str, mirror: str) -> None:
    """Base, image, checks, all below a folder."""
    make_base(work, suite, mirror, env)
    configuration, volumes = carried(pip_settings())
    pip_conf = work / "pip.conf"
    pip_conf.write_text(configuration, encoding="utf-8")
    build = {"ENGINE": "buildah", "IMAGE": IMAGE, "TAG": TAG, "BASE_IMAGE": BASE, "PIP_CONF": str(pip_conf)}
    run(HERE.parent / "build.sh", "cpu", "--", "--quiet", *volumes, env={**env, **build})
    check(work, env)


def main() -> int:
    """Build, check, clean up; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="bookworm", help="Debian's release; it must have Python 3.11")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="where debootstrap takes it from")
    asked = parser.parse_args()
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        print(f"image-test: install what is missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 1
    if os.geteuid() != 0:
        print("image-test: debootstrap, mounts and another user's name need root", file=sys.stderr)
        return 1
    # Ended from outside, it cleans up all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="phasetune-image-") as folder:
        work = Path(folder)
        storage = work / "storage.conf"
        places = f'graphroot = "{work / "storage"}"\nrunroot = "{work / "run"}"'
        storage.write_text(f'[storage]\ndriver = "{storage_driver(work)}"\n{places}\n', encoding="utf-8")
        env = {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}
        try:
            build_and_check(work, env, asked.suite, asked.mirror)
        finally:
            release(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
