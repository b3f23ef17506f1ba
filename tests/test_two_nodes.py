"""Two machines as two network namespaces, joined by torchrun's rendezvous; one is cut off in mid-run."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")
JOB = """
import sys, time
from pathlib import Path
from tiny import images, trainer
from transformers import TrainerCallback
from zspag_hf import heartbeat

heartbeat.INTERVAL, heartbeat.PATIENCE = 0.5, 6.0
resume = "resume" in sys.argv

class Pause(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print("step", state.global_step, flush=True)
        time.sleep(0.0 if resume else 0.3)

options = {"max_steps": 40, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 10}
run = trainer(Path(sys.argv[1]), **options)
run.add_callback(Pause())
run.train(resume_from_checkpoint=resume)
print("trained", sum(float(p.detach().double().sum()) for p in run.model.parameters()))
"""


def ip(*words: str, check: bool = True) -> int:
    return subprocess.run(["ip", *words], check=check, capture_output=True).returncode


@pytest.fixture
def namespaces():
    """Names of two network namespaces with a cable between them."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the ip command")
    names = [f"zspag{os.getpid()}{side}" for side in "ab"]
    try:
        if any(ip("netns", "add", name, check=False) for name in names):
            pytest.skip("network namespaces are not allowed here")
        ip("link", "add", "cable_a", "netns", names[0], "type", "veth", "peer", "name", "cable_b", "netns", names[1])
        for name, link, address in zip(names, ("cable_a", "cable_b"), ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def start(namespaces, folder: Path, *arguments: str) -> list[subprocess.Popen]:
    """The job on both machines, each with a log of its own."""
    tests = Path(__file__).parent
    (folder / "job.py").write_text(JOB)
    processes = []
    for number, (name, address) in enumerate(zip(namespaces, ADDRESSES, strict=True)):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29471"]
        command += ["--rdzv_conf", f"is_host={number == 0}", "--local_addr", address]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"cable_{'ab'[number]}"}
        environment["PYTHONPATH"] = f"{tests}{os.pathsep}{tests.parent}"
        log = (folder / f"{number}.log").open("w")
        command += [str(folder / "job.py"), str(folder), *arguments]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
    return processes


def logs(folder: Path) -> list[str]:
    return [(folder / f"{number}.log").read_text() for number in (0, 1)]


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)
        process.wait()


def test_a_machine_that_is_cut_off_ends_the_run_on_both_and_it_goes_on_from_there(namespaces, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    processes = start(namespaces, whole)
    try:
        wait_for(lambda: all(process.poll() is not None for process in processes), 120)
        assert all("trained" in log for log in logs(whole)), logs(whole)[0][-3000:]
        processes = start(namespaces, cut)
        wait_for(lambda: "step 12" in logs(cut)[0], 90)
        ip("-n", namespaces[1], "link", "set", "cable_b", "down")
        wait_for(lambda: all(re.search(r"^error: .*the run stops", log, re.M) for log in logs(cut)), 60)
        kill(processes)
        ip("-n", namespaces[1], "link", "set", "cable_b", "up")
        processes = start(namespaces, cut, "resume")
        wait_for(lambda: all(process.poll() is not None for process in processes), 120)
    finally:
        kill(processes)
    steps = re.findall(r"^step (\d+)", logs(cut)[0], re.M)
    assert steps[0] == "11", "from the last checkpoint"
    one, other = (re.search(r"^trained (\S+)", logs(folder)[0], re.M).group(1) for folder in (whole, cut))
    assert float(one) == pytest.approx(float(other), rel=1e-6)
