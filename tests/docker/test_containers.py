"""The cluster in containers, as far as it can be checked without Docker: what is written is valid,
safe, and asks for things that are there."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tomllib
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
LONG_RUNNING = ("head", "worker", "mlflow", "postgres", "s3")
SERVICES = ("token", "bucket", *LONG_RUNNING, "study")
PASSWORD = re.compile(r"(?i)(passw|secret|token)\w*\s*[:=]\s*[\"']?[a-z0-9+=]{8,}[\"']?\s*$")
"""A value that is written down: no variable, no file, no reference."""
BUILT = {"token": "raykd", "head": "raykd", "worker": "raykd", "study": "raykd"}
BUILT |= {"mlflow": "mlflow", "bucket": "mlflow"}
SECRETS = ("postgres_password", "mlflow_password", "mlflow_key", "s3_key")


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


def _dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")


@functools.cache
def instructions() -> list[tuple[str, str]]:
    text = _dockerfile()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


class TestCompose:
    @pytest.mark.parametrize("name", FILES)
    def test_it_is_compose_file(self, name: str) -> None:
        validator = Path(sys.executable).with_name("check-jsonschema")
        command = [str(validator), "--builtin-schema", "vendor.compose-spec", str(DOCKER / name)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr

    def test_parts_of_readme_exist(self) -> None:
        assert set(compose()["services"]) == set(SERVICES)
        readme = (DOCKER / "README.md").read_text()
        assert [name for name in SERVICES if f"| `{name}` |" not in readme] == []
        settings = set(re.findall(r"\$\{(\w+):-", (DOCKER / "compose.yaml").read_text()))
        assert [name for name in settings if f"| `{name}` |" not in readme] == []

    def test_ports_are_bound_to_this_machine_alone(self) -> None:
        ports = [port for part in compose()["services"].values() for port in part.get("ports", ())]
        assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]

    @pytest.mark.parametrize("name", SERVICES)
    def test_container_has_no_more_rights_than_it_needs(self, name: str) -> None:
        part = service(name)
        assert not {"privileged", "cap_add", "pid", "userns_mode", "devices"} & set(part)
        assert part.get("user") in (None, "postgres")
        assert part["cap_drop"] == ["ALL"]
        assert part["security_opt"] == ["no-new-privileges:true"]
        assert part.get("network_mode") in (None, "none")
        assert not any("docker.sock" in volume for volume in part.get("volumes", ()))

    def test_file_contains_no_password(self) -> None:
        for path in (each for each in DOCKER.rglob("*") if each.is_file() and each.name != ".env"):
            for line in path.read_text().splitlines():
                assert not PASSWORD.search(line), line
                assert not re.search(r"://[^/\s]*:[^$/\s][^/\s]*@", line), line

    @pytest.mark.parametrize("name", BUILT)
    def test_own_images_are_built(self, name: str) -> None:
        part, target = service(name), BUILT[name]
        assert part["image"] == ("raykd:local" if target == "raykd" else "raykd-mlflow:local")
        assert part["build"]["target"] == target
        context = (DOCKER / part["build"]["context"]).resolve()
        assert context == ROOT
        assert (context / part["build"]["dockerfile"]).is_file()

    def test_foreign_images_are_pinned_or_listed(self) -> None:
        assert "@sha256:" in service("postgres")["image"]
        assert service("s3")["image"] == "${RAYKD_S3_IMAGE:-chrislusf/seaweedfs:latest}"
        assert "not pinned" in (DOCKER / "README.md").read_text()

    def test_every_secret_comes_from_environment_and_is_used(self) -> None:
        """Compose starts nothing if one of the variables is missing."""
        secrets = compose()["secrets"]
        assert set(secrets) == set(SECRETS)
        assert all(value == {"environment": f"RAYKD_{n.upper()}"} for n, value in secrets.items())
        used = {name for part in compose()["services"].values() for name in part.get("secrets", ())}
        assert used == set(SECRETS)

    def test_stores_are_out_of_reach_of_training(self) -> None:
        assert compose()["networks"]["stores"] == {"internal": True}
        for name in ("postgres", "s3", "bucket"):
            assert service(name)["networks"] == ["stores"]
            assert "ports" not in service(name)
        for name in ("head", "worker", "study"):
            assert service(name)["networks"] == ["cluster"]
        assert service("mlflow")["networks"] == ["cluster", "stores"]

    @pytest.mark.parametrize("name", LONG_RUNNING)
    def test_services_have_health_checks_and_restart(self, name: str) -> None:
        part = service(name)
        assert part["restart"] == "unless-stopped"
        kind, program, *rest = part["healthcheck"]["test"]
        if name in BUILT:
            flag, code = rest
            assert (kind, program, flag) == ("CMD", "python", "-c")
            compile(code, "healthcheck", "exec")
        else:
            assert (kind, program.split()[0]) in {("CMD", "pg_isready"), ("CMD-SHELL", "wget")}

    def test_services_wait_for_their_dependencies(self) -> None:
        for name in SERVICES:
            for other, wait in service(name).get("depends_on", {}).items():
                healthy = "healthcheck" in service(other)
                expected = "service_healthy" if healthy else "service_completed_successfully"
                assert wait == {"condition": expected}
        assert set(service("study")["depends_on"]) == {"worker", "mlflow"}

    def test_volumes_are_declared_and_belong_to_user(self) -> None:
        folders = next(rest for word, rest in instructions() if "chown" in rest)
        for name in SERVICES:
            for volume in service(name).get("volumes", ()):
                source, target, *_ = volume.split(":")
                if source.startswith("."):
                    assert (DOCKER / source).exists()
                else:
                    assert source in compose()["volumes"]
                    if name in BUILT:
                        assert target in folders.partition("chown")[2]
        assert set(compose()["volumes"]) == {"token", "studies", "data", "postgres", "s3"}

    def test_ray_wants_token_which_all_its_nodes_have(self) -> None:
        for name in ("head", "worker", "study"):
            assert service(name)["environment"]["RAY_AUTH_MODE"] == "token"
            assert "token:/home/raykd/.ray:ro" in service(name)["volumes"]
            assert "studies:/studies" in service(name)["volumes"]

    def test_rays_object_store_fits_into_shared_memory(self) -> None:
        for name in ("head", "worker", "study"):
            shm = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service(name)["shm_size"])
            store = service("study")["environment"]["RAYKD_OBJECT_STORE"]
            assert int(shm.removesuffix("m")) * 2**20 > int(re.sub(r"\D", "", store.split(":-")[1]))

    def test_study_runs_only_on_request(self) -> None:
        assert service("study")["profiles"] == ["study"]
        assert service("study")["restart"] == "no"


class TestCommands:
    @pytest.mark.parametrize("name", ["head", "worker"])
    def test_ray_start_accepts_options(self, name: str) -> None:
        program, verb, *words = arguments(name)
        assert (program, verb) == ("ray", "start")
        assert set(options(words)) <= _known_to("ray.scripts.scripts", "start")

    def test_ray_draws_token(self) -> None:
        *_, script = arguments("token")
        assert "umask 077 && ray get-auth-token --generate" in script
        assert "--generate" in _known_to("ray.scripts.scripts", "get-auth-token")

    def test_mlflow_server_accepts_options(self) -> None:
        program, *words = arguments("mlflow")
        assert program == "mlflow-server"
        script = (DOCKER / program).read_text()
        words += re.findall(r"--[a-z-]+", script[script.index("exec mlflow server") :])
        assert set(options(words)) <= _known_to("mlflow.cli", "server")

    def test_mlflow_answers_to_names_it_is_called_by(self) -> None:
        allowed = next(w for w in arguments("mlflow") if w.startswith("--allowed-hosts="))
        hosts = allowed.partition("=")[2].split(",")
        called = service("study")["environment"]["RAYKD_TRACKING"].removeprefix("http://")
        assert {called, "127.0.0.1:5000"} <= set(hosts)
        assert "*" not in allowed

    def test_study_joins_head(self) -> None:
        port = next(w for w in arguments("head") if w.startswith("--port=")).partition("=")[2]
        assert service("study")["environment"]["RAY_ADDRESS"] == f"head:{port}"
        assert f"--address=head:{port}" in arguments("worker")

    def test_study_file_is_in_repository(self) -> None:
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
            "SECRETS": str(tmp_path),
        }

        def call(*words: str) -> list[str]:
            command = [str(DOCKER / "study"), *words]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            return done.stdout.splitlines()

        return call

    def test_search_joins_cluster_first(self, call: Any) -> None:
        joined, searched = call("search", "a b.yaml", "--set", "search.trials=8")
        assert joined.startswith("ray start --address=head:6379 --num-cpus=0")
        assert set(options(joined.split())) <= _known_to("ray.scripts.scripts", "start")
        ours = "--set cluster.storage=/studies --set tracking.uri=http://mlflow:5000"
        assert searched == f"raykd search --resume-latest {ours} a b.yaml --set search.trials=8"

    def test_running_search_is_not_changed(self, call: Any) -> None:
        _, searched = call("search", "--resume", "/studies/x")
        assert searched == "raykd search --resume /studies/x"

    def test_other_commands_start_nothing(self, call: Any) -> None:
        assert call("list", "losses") == ["raykd list losses"]
        (validated,) = call("validate", "x.yaml")
        assert validated.startswith("raykd validate --set cluster.storage=/studies")

    def test_password_of_mlflow_reaches_it_in_environment(self, call: Any, tmp_path: Path) -> None:
        (tmp_path / "mlflow_password").write_text("planted")
        (tmp_path / "raykd").write_text('#!/bin/sh\necho "$MLFLOW_TRACKING_PASSWORD $*"\n')
        (password,) = call("report", "x")
        assert password == "planted report x"

    def test_commands_accept_values(self) -> None:
        for verb in ("search", "distill", "teacher", "validate"):
            assert "--set" in _options_of(_verbs()[verb])


class TestSecrets:
    def test_passwords_are_drawn_once_and_are_private(self, tmp_path: Path) -> None:
        file = tmp_path / ".env"
        subprocess.run([str(DOCKER / "new-secrets"), str(file)], check=True)
        assert file.stat().st_mode & 0o777 == 0o600
        values = dict(line.split("=") for line in file.read_text().splitlines())
        assert set(values) == {f"RAYKD_{name.upper()}" for name in SECRETS}
        assert len(set(values.values())) == len(SECRETS)
        assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in values.values())
        again = subprocess.run(
            [str(DOCKER / "new-secrets"), str(file)], capture_output=True, text=True, check=False
        )
        assert again.returncode == 1 and "exists" in again.stderr
        assert dict(line.split("=") for line in file.read_text().splitlines()) == values

    def test_git_ignores_them(self) -> None:
        assert "/docker/.env" in (ROOT / ".gitignore").read_text().splitlines()

    @pytest.mark.parametrize("program", ["mlflow-server", "s3-server", "make-bucket"])
    @pytest.mark.parametrize("content", [None, ""])
    def test_start_requires_password(
        self, program: str, content: str | None, tmp_path: Path
    ) -> None:
        pytest.importorskip("boto3")
        if content is not None:
            for name in SECRETS:
                (tmp_path / name).write_text(content)
        run = _script(program, tmp_path)
        assert run.returncode != 0
        assert "missing or empty" in run.stderr and "new-secrets" in run.stderr

    def test_password_that_would_change_address_is_refused(self, tmp_path: Path) -> None:
        for name in SECRETS:
            (tmp_path / name).write_text("a@b:c/d")
        run = _script("mlflow-server", tmp_path)
        assert run.returncode == 78 and "letters, digits" in run.stderr


def _script(program: str, secrets: Path) -> subprocess.CompletedProcess[str]:
    command = [str(DOCKER / program)]
    if program == "make-bucket":
        command = [sys.executable, *command, "mlflow"]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "SECRETS": str(secrets), "AWS_DEFAULT_REGION": "us-east-1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


class TestDockerfile:
    def test_image_is_pinned_and_not_run_by_root(self) -> None:
        base = next(rest for word, rest in instructions() if word == "ARG")
        assert re.fullmatch(r"BASE=[\w-]+:\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", base)
        stages: list[str] = []
        users: dict[str, str] = {}
        for word, rest in instructions():
            if word == "FROM":
                image, _, stage = rest.partition(" AS ")
                assert image == "${BASE}" or image in stages
                stages.append(stage)
            elif word == "USER":
                users[stages[-1]] = rest
        assert users == {"mlflow": "1000:1000", "raykd": "1000:1000"}

    def test_device_is_cpu_or_cuda(self) -> None:
        choice = next(rest for word, rest in instructions() if "case" in rest)
        script = choice[choice.index("case") : choice.index("&& uv ")] + '; echo "<$backend>"'
        answers = {}
        for device in ("cpu", "cuda", "tpu"):
            run = subprocess.run(
                ["sh", "-c", script],
                env={"DEVICE": device},
                capture_output=True,
                text=True,
                check=False,
            )
            answers[device] = (run.returncode, run.stdout.strip())
        expected = {"cpu": (0, "<--torch-backend=cpu>"), "cuda": (0, "<>"), "tpu": (1, "")}
        assert answers == expected

    def test_copied_files_exist_and_are_not_ignored(self) -> None:
        kept = {
            line[1:]
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        }
        copies = [rest.split() for word, rest in instructions() if word == "COPY"]
        copies += [[file, "/"] for file in re.findall(r"type=bind,source=([^,]+)", _dockerfile())]
        assert ["pyproject.toml", "/"] in copies
        for words in copies:
            if any(word.startswith("--from") for word in words):
                continue
            for source in [word for word in words if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists()
                assert source in kept

    def test_packages_come_before_source(self) -> None:
        said = [f"{word} {rest}" for word, rest in instructions()]
        packages = next(i for i, line in enumerate(said) if "-r pyproject.toml" in line)
        source = next(i for i, line in enumerate(said) if line.startswith("COPY --from=source"))
        assert packages < source

    def test_uv_is_in_no_image(self) -> None:
        installed = [rest for word, rest in instructions() if word == "RUN" and "uv pip" in rest]
        assert len(installed) == 3
        for rest in installed:
            assert "--mount=type=bind,from=uv" in rest or "--target /opt/source" in rest
            assert "--no-cache" in rest and "--compile-bytecode" in rest

    def test_user_can_write_to_working_folder(self) -> None:
        """`docker run` of a study without a cluster writes there: mlflow.db, studies/."""
        folders = next(rest for word, rest in instructions() if "chown" in rest)
        owned = folders.partition("chown")[2].split()
        assert {rest for word, rest in instructions() if word == "WORKDIR"} - {"/build"} <= {*owned}

    def test_optional_packages_of_shipped_studies_are_installed(self) -> None:
        extras = re.search(r'ARG EXTRAS="([\w ]+)"', _dockerfile())
        assert extras
        names = set(extras[1].split())
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert names <= set(project["optional-dependencies"])
        studies = [file.read_text() for file in (ROOT / "search_spaces").glob("*.yaml")]
        needed = {name for text in studies for name in re.findall(r"--extra (\w+)", text)}
        models = {"name: channel_pruning": "pruning", "name: hf/": "hf", "name: timm/": "timm"}
        needed |= {models[name] for text in studies for name in models if name in text}
        assert {"hf", "pruning"} <= needed <= names

    def test_health_checks_of_kuberay_have_their_program(self) -> None:
        """KubeRay before Ray's own /api/healthz runs wget in the pods, unless a probe is given."""
        texts = [file.read_text() for file in (DOCKER / "kubernetes").glob("ray*.yaml")]
        probes = [text for text in texts if "livenessProbe" in text and "readinessProbe" in text]
        assert len(probes) == len(texts) or re.search(r"apt-get install .*\bwget\b", _dockerfile())

    def test_programs_are_on_path(self) -> None:
        copied = " ".join(rest for word, rest in instructions() if word == "COPY")
        for program in ("study", "mlflow-server", "make-bucket"):
            assert f"docker/{program}" in copied
            assert (DOCKER / program).stat().st_mode & 0o111
        paths = [rest for word, rest in instructions() if word == "ENV" and "PATH=" in rest]
        assert any("/opt/source/bin:/opt/raykd/bin" in rest for rest in paths)


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
