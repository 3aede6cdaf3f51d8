"""The registry on an MLflow server with passwords, on PostgreSQL."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tests.registry.test_models import PROMOTE, another

INITDB = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)

pytestmark = [
    pytest.mark.ops,
    pytest.mark.slow,
    pytest.mark.skipif(INITDB is None, reason="PostgreSQL is not installed"),
]

CHECK = """
import mlflow
from medstyle.networks.translator import Translator
from medstyle.registry.models import connect, example, fetch, rollback, versions
def aliases():
    found = {alias: row["version"] for row in versions() for alias in row["aliases"].split()}
    print(f"champion={found['champion']} previous={found['previous']}")
aliases(); print(rollback()); aliases()
print(Translator.load(fetch("models:/medstyle@champion")).sha256)
[row] = mlflow.pyfunc.load_model("models:/medstyle@champion").predict(example()).to_dict("records")
print(row["weights_sha256"])
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def database():
    """A PostgreSQL of its own with the databases mlflow and auth; it refuses to run as root."""
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="medstyle-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)

        def run(tool, *arguments):
            command = [INITDB.with_name(tool), *arguments]
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        data, local = f"{folder}/data", ("-h", "127.0.0.1", "-p", str(port), "-U", "medstyle")
        run("initdb", "-D", data, "-U", "medstyle", "--auth=trust", "--no-sync")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            for name in ("mlflow", "auth"):
                run("createdb", *local, name)
            yield f"postgresql+psycopg://medstyle@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    """An MLflow server with passwords; yields the environment of its user."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}/auth\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # a password takes 0.2 s to check, and a version is 240 files
    )
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a long password",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--backend-store-uri", f"{database}/mlflow", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if requests.get(f"{url}/health", timeout=2).ok:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        user = {"MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_USERNAME": "admin"}
        yield {**env, **user, "MLFLOW_TRACKING_PASSWORD": "a long password"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_a_version_lives_on_postgresql_behind_a_password(run, server, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(run.root, project)

    def python(*arguments, **env):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=project,
            env={**server, **env},
            text=True,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def medstyle(*arguments, **env):
        return python("-m", "medstyle.cli", *arguments, **env)

    code, _, error = medstyle("models", MLFLOW_TRACKING_PASSWORD="wrong")
    assert code == 2
    assert re.search(r"^medstyle: .*refuses this user.*MLFLOW_TRACKING_PASSWORD", error, re.MULTILINE), error

    code, output, error = medstyle("register")
    assert (code, "version 1: registered" in output, "gate failed" in output) == (0, True, True), output + error
    code, _, error = medstyle("promote", "1")
    assert (code, "did not pass the gate" in error) == (2, True)
    assert "version 1 is the new champion" in medstyle("promote", "1", "--because", "a test")[1]

    other = another(project / "models/translator", tmp_path / "other", 1)
    shutil.rmtree(project / "models/translator")
    other.rename(project / "models/translator")
    output = medstyle("register")[1]
    assert "version 2: registered" in output
    assert "cannot be measured" not in output

    pipes = {"cwd": project, "env": server, "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    promote = PROMOTE.replace("promote(version)", "promote(version, 'a test')")
    both = [subprocess.Popen([sys.executable, "-c", promote, version], **pipes) for version in ("2", "1")]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = "".join(process.communicate(timeout=120)[0] for process in both)
    assert "version 2 is the new champion, after 1" in said

    code, output, error = python("-c", CHECK, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    assert code == 0, error
    before, sentence, after, fetched, served = output.splitlines()
    assert {before, after} == {"champion=1 previous=2", "champion=2 previous=1"}
    assert "is champion again" in sentence
    assert fetched == served
