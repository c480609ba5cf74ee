"""python -m emjax.serve: a process of its own, where it may listen, how it ends."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import jax
import pytest

from emjax import models, serve
from emjax.config import LoraConfig
from emjax.models import lora
from emjax.sampling.guard import Limits
from emjax.sampling.server import make_app

from .served import CHECKPOINT, NAME, load

ROOT = Path(CHECKPOINT).parents[3]
KEY = "a-key-that-no-log-may-hold"


@pytest.fixture
def endless(tmp_path):
    """The micro model with an end token that it never says, so that answers are long, and an adapter beside it."""
    shutil.copytree(CHECKPOINT, tmp_path / "endless")
    (tmp_path / "endless" / "generation_config.json").write_text('{"eos_token_id": [0]}')
    lm = models.load(CHECKPOINT, dtype="float32")
    models.save_adapter(lm.replace(adapter=lora.init(LoraConfig(2, 4.0), lm.config, jax.random.key(0))), tmp_path / "tuned")
    return tmp_path


def test_sigterm_ends_the_process_when_its_requests_are_done(endless):
    command = [
        sys.executable,
        "-m",
        "emjax.serve",
        "--model",
        str(endless / "endless"),
        "--adapter",
        f"mine={endless / 'tuned'}",
    ]
    command += ["--port", "0", "--slots", "4", "--cache_length", "500", "--mesh", "1x1x2", "--dtype", "float32"]
    env = os.environ | {
        "EMJAX_API_KEY": KEY, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        line = next(line for line in process.stdout if line.startswith("serving"))
        names, url = line.removeprefix("serving ").strip().removesuffix("/v1").split(" at ")
        assert names == f"{endless / 'endless'}, mine"
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
            assert httpx.get(url + "/v1/models").status_code == 401
            assert [m["id"] for m in client.get("/v1/models").json()["data"]] == names.split(", ")
            # Eight answers on four slots: they last while another request is sent.
            body = {"model": "mine", "prompt": [1, 3], "max_tokens": 490, "n": 8, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
                refused = client.post("/v1/completions", json=body)
                rest = [line for line in lines if line]
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert rest[-1] == "data: [DONE]"
        assert process.wait(30) == 0
        assert KEY not in line + process.stdout.read()
    finally:
        process.kill()
        process.wait()


def test_a_drain_has_an_end():
    engine, lm, _ = load()
    app = make_app(engine, lm.replace(eos_ids=(0,)), {NAME: None}, limits=Limits())
    server = serve.Server(app, drain_seconds=0.3)
    sock = serve.listen("127.0.0.1", 0, None)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    # A client whose body never comes whole is a request that would never end.
    with socket.create_connection(sock.getsockname()) as stuck:
        stuck.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{")
        while not app.active:
            time.sleep(0.01)
        server.handle_exit(signal.SIGTERM, None)
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "somewhere.example"])
def test_without_a_key_only_this_machine_is_served(host, monkeypatch, capsys):
    for key in (None, ""):
        monkeypatch.delenv("EMJAX_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("EMJAX_API_KEY", key)
        assert serve.main(["--model", CHECKPOINT, "--port", "0", "--host", host]) == 2
        assert "no API key" in capsys.readouterr().err
    if host in ("0.0.0.0", "::"):
        serve.listen(host, 0, KEY).close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--mesh", "8"], "--mesh 8"),
        (["--adapter", f"{CHECKPOINT}={CHECKPOINT}"], "is taken"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--cache_length", "1000"], "512 positions"),
    ],
)
def test_what_is_wrong_is_said_in_a_paragraph(arguments, said, capsys):
    assert serve.main(["--model", CHECKPOINT, "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_a_port_that_is_taken(capsys):
    with serve.listen("127.0.0.1", 0, None) as taken:
        assert serve.main(["--model", CHECKPOINT, "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err
