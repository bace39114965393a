"""The batch script for SLURM, run with stand-ins for Ray, raykd and SLURM's programs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "slurm" / "search.sbatch"
JOB = "4711"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

RAY = """\
#!/bin/sh
echo "ray $* mode=$RAY_AUTH_MODE" >> "$RECORD"
stat -c "token %a %s" "$RAY_AUTH_TOKEN_PATH" >> "$RECORD"
trap 'echo "ray ended" >> "$RECORD"; exit 0' TERM
while :; do sleep 0.1; done
"""
SRUN = """\
#!/bin/sh
echo "srun $*" >> "$RECORD"
while [ "${1#-}" != "$1" ]; do shift; done
exec "$@"
"""
RAYKD = """\
#!/bin/sh
echo "raykd $*" >> "$RECORD"
trap 'echo "raykd ended" >> "$RECORD"; exit 143' TERM
[ "$RAYKD_CODE" = wait ] || exit "$RAYKD_CODE"
while :; do sleep 0.1; done
"""
PYTHON = """\
#!/bin/sh
cat > /dev/null
echo "python $*" >> "$RECORD"
until [ "$(grep -c '^ray start' "$RECORD")" -ge "$3" ]; do sleep 0.05; done
"""
"""Waits for the nodes, as the script's own code does."""

PROGRAMS = {
    "ray": RAY,
    "srun": SRUN,
    "raykd": RAYKD,
    "scontrol": '#!/bin/sh\necho "scontrol $*" >> "$RECORD"\n',
    "hostname": "#!/bin/sh\necho node1\n",
    "python": PYTHON,
}


def start(folder: Path, code: str, nodes: int = 2) -> subprocess.Popen[bytes]:
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "HOME": str(folder),
        "RECORD": str(folder / "record"),
        "RAYKD_CODE": code,
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", str(SCRIPT), "study.yaml", "--set", "search.trials=8"]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def record(folder: Path) -> list[str]:
    file = folder / "record"
    return file.read_text().splitlines() if file.exists() else []


def test_search_runs_over_nodes_of_job(tmp_path: Path) -> None:
    assert start(tmp_path, "0").wait(60) == 0
    lines = record(tmp_path)
    (head,) = [line for line in lines if line.startswith("ray start --head")]
    assert "--port=24711" in head and "--num-cpus=8 --num-gpus=4" in head and "mode=token" in head
    (worker,) = [line for line in lines if line.startswith("ray start --block --address")]
    assert "--address=node1:24711" in worker
    (srun,) = [line for line in lines if line.startswith("srun")]
    assert "--nodes=1" in srun and "--exclude=node1" in srun
    expected = "raykd search --address node1:24711 --resume-latest study.yaml --set search.trials=8"
    assert expected in lines
    assert lines.index("python - node1:24711 2") < lines.index(expected)
    assert not any(line.startswith("scontrol") for line in lines)


def test_token_is_private_and_removed(tmp_path: Path) -> None:
    assert start(tmp_path, "0").wait(60) == 0
    assert {line for line in record(tmp_path) if line.startswith("token")} == {"token 600 64"}
    assert not list((tmp_path / ".raykd").iterdir())


def test_single_node_needs_no_worker(tmp_path: Path) -> None:
    assert start(tmp_path, "0", nodes=1).wait(60) == 0
    assert not any(line.startswith("srun") for line in record(tmp_path))


@pytest.mark.parametrize("code", ["1", "2"])
def test_failed_search_is_not_queued_again(code: str, tmp_path: Path) -> None:
    assert start(tmp_path, code).wait(60) == int(code)
    assert not any(line.startswith("scontrol") for line in record(tmp_path))


def test_preempted_search_ends_in_order_and_is_queued_again(tmp_path: Path) -> None:
    process = start(tmp_path, "wait")
    try:
        until = time.monotonic() + 30
        while not any(line.startswith("raykd search") for line in record(tmp_path)):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGTERM)  # as --signal=B:TERM does: the batch shell alone
        assert process.wait(30) == 143
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    lines = record(tmp_path)
    assert "raykd ended" in lines and f"scontrol requeue {JOB}" in lines
    assert lines.count("ray ended") == 2, "head and worker of Ray do not outlive the job"


def test_settings_of_job_are_read_by_sbatch() -> None:
    text = SCRIPT.read_text()
    settings = re.findall(r"^#SBATCH (--[\w-]+)", text, re.MULTILINE)
    assert {"--requeue", "--open-mode", "--signal", "--nodes", "--ntasks-per-node"} <= set(settings)
    before_code = text[: text.index("set -u")].splitlines()
    assert all(line.startswith("#") for line in before_code if line), (
        "sbatch stops at the first command"
    )


@pytest.mark.slow
def test_its_script_waits_for_nodes(tmp_path: Path) -> None:
    """The Python part, on a real cluster of one node, and one that lacks a node."""
    text = SCRIPT.read_text()
    code = text[text.index("import sys, time") : text.index("\nEND\n")]
    code = code.replace("+ 300", "+ 3")
    harness = (
        "import os, subprocess, sys; from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        "for nodes in ('1', '2'):\n"
        f"    command = [sys.executable, '-c', {code!r}, cluster.address, nodes]\n"
        "    print(subprocess.run(command).returncode)\n"
        "cluster.shutdown()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", harness], capture_output=True, text=True, timeout=200, check=True
    )
    assert run.stdout.split() == ["0", "1"]
    assert "joined Ray at" in run.stderr
