"""The scripts of figures/on-a-cluster: bash and YAML can read them, and `lofit-lens study run` has the options they use."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from lofit_lens.cli import app

PAGES = Path(__file__).parents[2] / "figures" / "on-a-cluster"
SCRIPTS = sorted(PAGES.glob("*.sbatch"))
MANIFESTS = list(yaml.safe_load_all((PAGES / "rayjob.yaml").read_text()))
JOB = next(manifest for manifest in MANIFESTS if manifest["kind"] == "RayJob")["spec"]
PODS = [
    group["template"]["spec"] for group in (JOB["rayClusterSpec"]["headGroupSpec"], *JOB["rayClusterSpec"]["workerGroupSpecs"])
]


def commands_in(text):
    """All `lofit-lens study ...` of a page or script, as words."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"lofit-lens (study (?:run|status|table|retry|gc)\b[^\n`#>;|&]*)", text)
    return [shlex.split(words) for words in found]


def assert_known(words):
    command = typer.main.get_command(app)
    for name in words[:2]:
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_the_scripts(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("page", [*SCRIPTS, *sorted(PAGES.glob("*.md"))], ids=lambda path: path.name)
def test_every_command_has_its_options(page):
    commands = commands_in(page.read_text())
    assert commands
    for words in commands:
        assert_known(words)


def test_the_jobs_command_has_its_options_and_runs_where_ray_is():
    (words,) = commands_in(JOB["entrypoint"])
    assert_known(words)
    assert words[words.index("--executor") + 1] == "ray"


def test_all_pods_mount_the_store_at_the_same_place():
    claims = {m["metadata"]["name"]: m["spec"]["accessModes"] for m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    (words,) = commands_in(JOB["entrypoint"])
    store = Path(words[words.index("--store") + 1])
    for pod in PODS:
        (volume,) = pod["volumes"]
        assert claims[volume["persistentVolumeClaim"]["claimName"]] == ["ReadWriteMany"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert Path(mount["mountPath"]) in store.parents


def test_a_pod_of_workers_has_what_a_worker_asks_for():
    (words,) = commands_in(JOB["entrypoint"])
    limits = PODS[1]["containers"][0]["resources"]["limits"]
    assert float(limits["cpu"]) >= float(words[words.index("--cpus") + 1])
    assert limits["nvidia.com/gpu"] >= float(words[words.index("--gpus") + 1])
