"""How long a job of four CPU ranks stalls when one of them is killed (SIGKILL), under `torchrun`
with elastic restart and under `torchft`. `target/debug/recovery` does the same with our own ranks.
`make bench-recovery` calls all three.

    recovery_peers.py torchrun|torchrun-own-store|torchft --kills N [--timeout SECONDS]

All train the same small convolutional network with AdamW over Gloo, with one thread per rank. Its
number of trained weights (200,000) and its step time are about those of our benchmark's job (both
programs print theirs).
- torchrun: `torchrun --standalone --nproc-per-node 4 --max-restarts …`, DistributedDataParallel, a
  checkpoint after each step, written to a temporary file and renamed; restarted ranks load it.
- torchrun-own-store: the same with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1. By default all restarts
  share the agent's store, which contains the addresses of the dead ranks; most restarts do not
  recover from that.
- torchft: its lighthouse with the settings of its README, one replica group per rank, its Manager
  and its ProcessGroupGloo. A killed rank is restarted at once, as a launcher would do. The gradient
  is reduced by one `Manager.allreduce` and not by torchft's DistributedDataParallel: in 0.2.0 the
  latter ends the survivors (AssertionError in its hook) when a reduction fails in Gloo.

Measured is the time from the kill to the end of the first step that began after it and was
completed (under torchft: committed) on any rank. Before the next kill all four ranks must have done
some undisturbed steps together. If there is no such step within the timeout, or the job continues
from lost state, it has failed to recover and is restarted. Only measures. Leaves no process behind:
every process dies with its parent.
"""

import argparse
import ctypes
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

WORLD = 4
CHANNELS = (8, 64, 128, 104, 4)
PIXELS = 16
SAMPLES = 1
UNDISTURBED_STEPS = 5
# Seconds until all four ranks train. On a busy machine importing torch takes a minute.
START_WITHIN = 300.0


# --- ranks ----------------------------------------------------------------------------------------


def die_with_parent():
    """Sends SIGKILL to this process when its parent exits for any reason."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def network():
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = []
    for narrow, wide in zip(CHANNELS, CHANNELS[1:]):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def loss_of(model, step, rank):
    import torch

    generator = torch.Generator().manual_seed(step * WORLD + rank)
    return (
        model(torch.randn(SAMPLES, CHANNELS[0], PIXELS, PIXELS, generator=generator))
        .square()
        .mean()
    )


def report_step(rank, step, world, begin):
    """Writes a line with one call, so that lines of ranks do not mix; the clock is system-wide."""
    os.write(
        1, f"step {rank} {os.getpid()} {step} {world} {begin:.6f} {time.monotonic():.6f}\n".encode()
    )


def torchrun_rank(checkpoint):
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    parallel = DistributedDataParallel(model)
    while True:
        begin = time.monotonic()
        optimizer.zero_grad()
        loss_of(parallel, step, rank).backward()
        optimizer.step()
        step += 1
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, checkpoint + ".new")
            os.replace(checkpoint + ".new", checkpoint)
        report_step(rank, step, world, begin)


def torchft_rank(rank, lighthouse):
    # torchft builds addresses from the host name, which may not resolve.
    socket.gethostname = lambda: "127.0.0.1"
    import torch
    from torch.distributed import TCPStore
    from torch.nn.utils import parameters_to_vector, vector_to_parameters
    from torchft import Manager, Optimizer, ProcessGroupGloo

    model = network()
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def load(state):
        model.load_state_dict(state["model"])
        inner.load_state_dict(state["optimizer"])

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(),
        min_replica_size=1,
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": inner.state_dict()},
        replica_id=f"replica_{rank}",
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=lighthouse,
    )
    optimizer = Optimizer(manager, inner)
    while True:
        begin, before = time.monotonic(), manager.current_step()
        optimizer.zero_grad()
        loss_of(model, before, rank).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        whole = parameters_to_vector(gradients)
        manager.allreduce(whole).wait()
        vector_to_parameters(whole, gradients)
        optimizer.step()
        if manager.current_step() != before:
            report_step(rank, manager.current_step(), manager.num_participants(), begin)


def lighthouse():
    from torchft.coordination import LighthouseServer

    server = LighthouseServer(
        bind="[::]:0", min_replicas=1, quorum_tick_ms=100, join_timeout_ms=10000
    )
    port = server.address().rsplit(":", 1)[1]
    os.write(1, f"lighthouse http://127.0.0.1:{port}\n".encode())
    signal.pause()


# --- jobs -----------------------------------------------------------------------------------------


class Job:
    """Processes that share one pipe, to which ranks write their steps. The pipe ends with the last
    process."""

    def __init__(self, folder):
        self.log = open(os.path.join(folder, "log"), "ab")
        self.environment = dict(
            os.environ, OMP_NUM_THREADS="1", TMPDIR=folder, PYTHONWARNINGS="ignore"
        )
        self.reader, self.writer = os.pipe()
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.reader, selectors.EVENT_READ)
        self.processes = {}

    def start(self, name, *arguments):
        command = [sys.executable, os.path.abspath(__file__), *arguments]
        self.processes[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.writer,
            stderr=self.log,
            env=self.environment,
        )

    def line(self, kind, deadline):
        """The words of the next line of this kind; None at the deadline. Skips other lines."""
        while True:
            while b"\n" not in self.buffer:
                if not self.selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                self.buffer += os.read(self.reader, 65536)
            line, self.buffer = self.buffer.split(b"\n", 1)
            word, *words = line.split() or [b""]
            if word == kind:
                return words

    def next_step(self, deadline):
        """The next step: (rank, process id, step, world, begin, end); None at the deadline."""
        words = self.line(b"step", deadline)
        return words and (*map(int, words[:4]), *map(float, words[4:]))

    def killed(self, rank):
        """What the benchmark must do after a kill, because the job has no launcher that does it."""

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        os.close(self.writer)
        while os.read(self.reader, 65536):
            pass
        self.selector.close()
        os.close(self.reader)
        self.log.close()


class Torchrun(Job):
    own_store = False

    def __init__(self, folder):
        super().__init__(folder)
        if self.own_store:
            self.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        self.start("agent", "agent", os.path.join(folder, "checkpoint"))


class TorchrunOwnStore(Torchrun):
    own_store = True


class Torchft(Job):
    def __init__(self, folder):
        super().__init__(folder)
        self.start("lighthouse", "lighthouse")
        result = self.line(b"lighthouse", time.monotonic() + START_WITHIN)
        if result is None:
            self.close()
            sys.exit("torchft's lighthouse did not start")
        self.address = result[0].decode()
        for rank in range(WORLD):
            self.start(rank, "rank", str(rank), self.address)

    def killed(self, rank):
        self.processes[rank].wait()
        self.start(rank, "rank", str(rank), self.address)


PEERS = {"torchrun": Torchrun, "torchrun-own-store": TorchrunOwnStore, "torchft": Torchft}


# --- measurement ----------------------------------------------------------------------------------


def undisturbed_steps(job, timeout):
    """Waits until every rank has done some steps in the full world that began after this call.

    Returns the process id of each rank, the last step and the durations of those steps; None if the
    ranks do not train together in time.
    """
    now, last = time.monotonic(), 0
    steps, took, pids = dict.fromkeys(range(WORLD), 0), [], {}
    while min(steps.values()) < UNDISTURBED_STEPS:
        report = job.next_step(now + timeout)
        if report is None:
            return None
        rank, pid, last, world, begin, end = report
        if world == WORLD and now < begin:
            steps[rank] += 1
            pids[rank] = pid
            took.append(end - begin)
    return pids, last, took


def first_step(job, last, killed, timeout):
    """Seconds from the kill to the end of the first step that began after it.

    None if there is none in time, or if it is older than a step that was reported before.
    """
    while (report := job.next_step(killed + timeout)) is not None:
        _, _, step, _, begin, end = report
        if killed < begin:
            return end - killed if last <= step else None
        last = max(last, step)
    return None


class Bench:
    """One job under one peer, restarted whenever it does not recover by itself."""

    def __init__(self, make, timeout):
        self.make, self.timeout, self.job, self.folder = make, timeout, None, None
        self.times, self.steps, self.failed, self.incomplete = [], [], 0, 0

    def begin(self):
        self.end()
        self.folder = tempfile.TemporaryDirectory()
        self.job = self.make(self.folder.name)
        return undisturbed_steps(self.job, START_WITHIN)

    def end(self):
        if self.job is not None:
            self.job.close()
            self.folder.cleanup()
            self.job = None

    def wait_training(self):
        started = None
        if self.job is not None:
            started = undisturbed_steps(self.job, self.timeout)
            self.incomplete += started is None
        started = started or self.begin()
        if started is None:
            with open(os.path.join(self.folder.name, "log"), errors="replace") as log:
                sys.exit(
                    "four ranks did not train together; last output:\n"
                    + "".join(log.readlines()[-15:])
                )
        pids, last, took = started
        self.steps += took
        return pids, last

    def kill(self, victim):
        """Seconds to the next step, or None."""
        pids, last = self.wait_training()
        killed = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)
        self.job.killed(victim)
        seconds = first_step(self.job, last, killed, self.timeout)
        if seconds is None:
            self.failed += 1
            self.end()
        else:
            self.times.append(seconds)
        return seconds


def measure(peer, kills, timeout):
    bench = Bench(PEERS[peer], timeout)
    try:
        for kill in range(kills):
            seconds = bench.kill(kill % WORLD)
            result = "did not recover" if seconds is None else f"{seconds:.3f} s"
            print(f"{peer} kill {kill + 1}: rank {kill % WORLD}, {result}", flush=True)
    finally:
        bench.end()
    weights = sum(parameter.numel() for parameter in network().parameters())
    print(
        f"{peer}: {weights} trained weights, an undisturbed step takes "
        f"{1000 * statistics.median(bench.steps):.0f} ms (median)"
    )
    if bench.incomplete:
        print(
            f"{peer}: {bench.incomplete} times not all ranks came back within {timeout:.0f} s, "
            "and the job was restarted"
        )
    times = bench.times
    took = (
        f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s" if times else "never"
    )
    print(
        f"BENCH recovery from kill -9 of one of {WORLD} ranks under {peer}: {took}, "
        f"{len(times)} of {kills} recovered "
        f"(within {timeout:.0f} s)"
    )


def main():
    if sys.argv[1] == "agent":
        # `torchrun` is this main; called here, it is our own process and dies with us.
        die_with_parent()
        from torch.distributed.run import main as torchrun

        torchrun(
            [
                "--standalone",
                f"--nproc-per-node={WORLD}",
                "--max-restarts=1000000",
                __file__,
                "rank",
                sys.argv[2],
            ]
        )
    elif sys.argv[1] == "lighthouse":
        die_with_parent()
        lighthouse()
    elif sys.argv[1] == "rank":
        die_with_parent()
        (
            torchrun_rank(sys.argv[2])
            if len(sys.argv) == 3
            else torchft_rank(int(sys.argv[2]), sys.argv[3])
        )
    else:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("peer", choices=PEERS)
        parser.add_argument("--kills", type=int, required=True)
        parser.add_argument("--timeout", type=float, default=60.0)
        arguments = parser.parse_args()
        measure(arguments.peer, arguments.kills, arguments.timeout)


if __name__ == "__main__":
    main()
