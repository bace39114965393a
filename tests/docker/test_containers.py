"""The cluster in containers, as far as it can be checked without Docker: what is written is valid,
safe, and asks for things that are there."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from raykd.cli import commands as cli
from raykd.study.checks.load import load_study

DOCKER = Path(__file__).parents[2] / "docker"
ROOT = DOCKER.parent
FILES = ("compose.yaml", "compose.gpu.yaml")
LONG_RUNNING = ("head", "worker", "mlflow")
SERVICES = ("token", *LONG_RUNNING, "study")


@functools.cache
def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text())


def service(name: str) -> dict[str, Any]:
    return compose()["services"][name]


def arguments(name: str) -> list[str]:
    """A service's command, `${NAME:-default}` replaced by its default."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(word)) for word in service(name)["command"]]


def options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


@functools.cache
def instructions() -> list[tuple[str, str]]:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


class TestCompose:
    @pytest.mark.parametrize("name", FILES)
    def test_it_is_a_compose_file(self, name: str) -> None:
        validator = Path(sys.executable).with_name("check-jsonschema")
        command = [str(validator), "--builtin-schema", "vendor.compose-spec", str(DOCKER / name)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr

    def test_it_has_the_parts_that_its_readme_tells_of(self) -> None:
        assert set(compose()["services"]) == set(SERVICES)
        readme = (DOCKER / "README.md").read_text()
        assert [name for name in SERVICES if f"| `{name}` |" not in readme] == []
        settings = set(re.findall(r"\$\{(\w+):-", (DOCKER / "compose.yaml").read_text()))
        assert [name for name in settings if f"| `{name}` |" not in readme] == []

    def test_ports_are_bound_to_this_machine_alone(self) -> None:
        ports = [port for part in compose()["services"].values() for port in part.get("ports", ())]
        assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_container_has_no_more_rights_than_it_needs(self, name: str) -> None:
        part = service(name)
        assert not {"privileged", "cap_add", "pid", "userns_mode", "devices", "user"} & set(part)
        assert part["cap_drop"] == ["ALL"]
        assert part["security_opt"] == ["no-new-privileges:true"]
        assert part.get("network_mode") in (None, "none")
        assert not any("docker.sock" in volume for volume in part.get("volumes", ()))

    def test_no_password_stands_in_it(self) -> None:
        for path in DOCKER.iterdir():
            for line in path.read_text().splitlines():
                assert not re.search(r"(?i)(passw\w*|secret\w*|auth_token)\s*[:=]\s*\S", line), line
                assert not re.search(r"://[^/\s]*:[^/\s]*@", line), line

    @pytest.mark.parametrize("name", SERVICES)
    def test_every_part_is_built_here(self, name: str) -> None:
        part = service(name)
        assert part["image"] == "raykd:local"
        context = (DOCKER / part["build"]["context"]).resolve()
        assert context == ROOT
        assert (context / part["build"]["dockerfile"]).is_file()

    @pytest.mark.parametrize("name", LONG_RUNNING)
    def test_what_stays_up_is_watched_and_started_again(self, name: str) -> None:
        part = service(name)
        assert part["restart"] == "unless-stopped"
        kind, program, flag, code = part["healthcheck"]["test"]
        assert (kind, program, flag) == ("CMD", "python", "-c")
        compile(code, "healthcheck", "exec")

    def test_parts_wait_for_one_another(self) -> None:
        for name in SERVICES:
            for other, wait in service(name).get("depends_on", {}).items():
                healthy = "healthcheck" in service(other)
                expected = "service_healthy" if healthy else "service_completed_successfully"
                assert wait == {"condition": expected}
        assert set(service("study")["depends_on"]) == {"worker", "mlflow"}

    def test_volumes_are_declared_and_belong_to_the_user(self) -> None:
        folders = next(rest for word, rest in instructions() if "chown" in rest)
        for name in SERVICES:
            for volume in service(name).get("volumes", ()):
                source, target, *_ = volume.split(":")
                if source.startswith("."):
                    assert (DOCKER / source).is_dir()
                else:
                    assert source in compose()["volumes"]
                    assert target in folders.partition("chown")[2]
        assert set(compose()["volumes"]) == {"token", "studies", "data", "mlflow"}

    def test_ray_wants_a_token_which_all_its_nodes_have(self) -> None:
        for name in ("head", "worker", "study"):
            assert service(name)["environment"]["RAY_AUTH_MODE"] == "token"
            assert "token:/home/raykd/.ray:ro" in service(name)["volumes"]
            assert "studies:/studies" in service(name)["volumes"]

    def test_rays_object_store_fits_into_the_shared_memory(self) -> None:
        for name in ("head", "worker", "study"):
            shm = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service(name)["shm_size"])
            store = service("study")["environment"]["RAYKD_OBJECT_STORE"]
            assert int(shm.removesuffix("m")) * 2**20 > int(re.sub(r"\D", "", store.split(":-")[1]))

    def test_the_study_is_a_job_that_is_asked_for(self) -> None:
        assert service("study")["profiles"] == ["study"]
        assert service("study")["restart"] == "no"


class TestCommands:
    @pytest.mark.parametrize("name", ["head", "worker"])
    def test_ray_start_knows_its_options(self, name: str) -> None:
        program, verb, *words = arguments(name)
        assert (program, verb) == ("ray", "start")
        assert set(options(words)) <= _known_to("ray.scripts.scripts", "start")

    def test_ray_draws_the_token(self) -> None:
        *_, script = arguments("token")
        assert "umask 077 && ray get-auth-token --generate" in script
        assert "--generate" in _known_to("ray.scripts.scripts", "get-auth-token")

    def test_mlflow_server_knows_its_options(self) -> None:
        program, verb, *words = arguments("mlflow")
        assert (program, verb) == ("mlflow", "server")
        assert set(options(words)) <= _known_to("mlflow.cli", "server")

    def test_mlflow_answers_to_the_names_it_is_called_by(self) -> None:
        allowed = next(w for w in arguments("mlflow") if w.startswith("--allowed-hosts="))
        hosts = allowed.partition("=")[2].split(",")
        called = service("study")["environment"]["RAYKD_TRACKING"].removeprefix("http://")
        assert {called, "127.0.0.1:5000"} <= set(hosts)
        assert "*" not in allowed

    def test_the_study_joins_the_head(self) -> None:
        port = next(w for w in arguments("head") if w.startswith("--port=")).partition("=")[2]
        assert service("study")["environment"]["RAY_ADDRESS"] == f"head:{port}"
        assert f"--address=head:{port}" in arguments("worker")

    def test_the_study_it_runs_is_one_of_ours(self) -> None:
        verb, file = arguments("study")
        assert verb in _verbs()
        settings = service("study")["environment"]
        opened = load_study(
            ROOT / file,
            overrides=[
                f"cluster.storage={settings['RAYKD_STORAGE']}",
                f"tracking.uri={settings['RAYKD_TRACKING']}",
            ],
        )
        assert opened.settings.cluster.storage == "/studies"


class TestEntrypoint:
    """`docker/study`, run with stand-ins for `ray` and `raykd` that say how they are called."""

    @pytest.fixture
    def call(self, tmp_path: Path) -> Any:
        if shutil.which("sh") is None:
            pytest.skip("no shell")
        for name in ("ray", "raykd"):
            program = tmp_path / name
            program.write_text(f'#!/bin/sh\necho "{name} $*"\n')
            program.chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "RAY_ADDRESS": "head:6379",
            "RAYKD_OBJECT_STORE": "1000",
            "RAYKD_STORAGE": "/studies",
            "RAYKD_TRACKING": "http://mlflow:5000",
        }

        def call(*words: str) -> list[str]:
            command = [str(DOCKER / "study"), *words]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            return done.stdout.splitlines()

        return call

    def test_a_search_joins_the_cluster_first(self, call: Any) -> None:
        joined, searched = call("search", "a b.yaml", "--set", "search.trials=8")
        assert joined.startswith("ray start --address=head:6379 --num-cpus=0")
        assert set(options(joined.split())) <= _known_to("ray.scripts.scripts", "start")
        ours = "--set cluster.storage=/studies --set tracking.uri=http://mlflow:5000"
        assert searched == f"raykd search {ours} a b.yaml --set search.trials=8"

    def test_a_search_that_goes_on_is_left_as_it_was(self, call: Any) -> None:
        _, searched = call("search", "--resume", "/studies/x")
        assert searched == "raykd search --resume /studies/x"

    def test_other_verbs_start_nothing(self, call: Any) -> None:
        assert call("list", "losses") == ["raykd list losses"]
        (validated,) = call("validate", "x.yaml")
        assert validated.startswith("raykd validate --set cluster.storage=/studies")

    def test_verbs_that_get_values_take_them(self) -> None:
        for verb in ("search", "distill", "teacher", "validate"):
            assert "--set" in _options_of(_verbs()[verb])


class TestDockerfile:
    def test_the_image_is_pinned_and_not_run_by_root(self) -> None:
        images = [rest for word, rest in instructions() if word == "FROM"]
        assert all(re.fullmatch(r"[\w-]+:\d+\.\d+\.\d+[\w.-]*", image) for image in images)
        users = [rest for word, rest in instructions() if word == "USER"]
        assert users[-1] == "raykd"

    def test_what_it_copies_is_there_and_not_ignored(self) -> None:
        kept = {
            line[1:]
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        }
        copies = [rest.split() for word, rest in instructions() if word == "COPY"]
        assert copies
        for words in copies:
            for source in [word for word in words if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists()
                assert source in kept

    def test_packages_come_before_the_source(self) -> None:
        said = [f"{word} {rest}" for word, rest in instructions()]
        packages = next(i for i, line in enumerate(said) if "-r pyproject.toml" in line)
        source = next(i for i, line in enumerate(said) if line.startswith("COPY raykd"))
        assert packages < source

    def test_the_programs_it_is_asked_for_are_on_its_path(self) -> None:
        assert "study" in next(rest for word, rest in instructions() if "docker/study" in rest)
        assert (DOCKER / "study").stat().st_mode & 0o111
        paths = [rest for word, rest in instructions() if word == "ENV" and "PATH=" in rest]
        assert any("/opt/raykd/bin" in rest for rest in paths)


@functools.cache
def _known_to(module: str, verb: str) -> set[str]:
    """The options of a verb of another program, which is not let into this process."""
    code = (
        f"from {module} import cli; params = cli.commands[{verb!r}].params; "
        "print(*(o for p in params for o in (*p.opts, *p.secondary_opts)))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines()[-1].split())


def _options_of(command: Any) -> set[str]:
    return {option for param in command.params for option in (*param.opts, *param.secondary_opts)}


def _verbs() -> dict[str, Any]:
    return typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
