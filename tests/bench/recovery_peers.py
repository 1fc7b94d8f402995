"""How long a job of four CPU ranks stands still when one of them is killed (SIGKILL), under `torchrun` with elastic restart and
under `torchft`: what `target/debug/recovery` measures of our own ranks. `make bench-recovery` calls all three.

    recovery_peers.py torchrun|torchrun-own-store|torchft --kills N [--timeout SECONDS]

All train the same small convolutional network with AdamW over Gloo, one thread a rank, with about as many trained weights (200,000)
and about the time of a step that our bench's job has (both programs print theirs).
- torchrun: `torchrun --standalone --nproc-per-node 4 --max-restarts …`, DistributedDataParallel, its own checkpoint after each
  step, written beside and renamed; the ranks that are started anew read it.
- torchrun-own-store: the same with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1. By default a restart meets the dead ranks' addresses in the
  agent's store, which all restarts share, and most do not come back from that.
- torchft: its lighthouse with the settings of its README, one replica group per rank, its Manager and its ProcessGroupGloo. A killed
  rank is started again at once, as a launcher would. The gradient goes through `Manager.allreduce` in one piece and not through
  torchft's DistributedDataParallel: in 0.2.0 that ends the survivors (AssertionError in its hook) when a sum breaks off in Gloo.

The time runs from the kill to the end of the first step that was begun after it and completed (under torchft: committed) on any
rank. Before the next kill all four must have done some quiet steps together. A try that takes longer than the time-out, or goes on
from lost state, has failed to recover, and the whole job is started anew. Measures, judges nothing, and leaves no process
behind: each dies with whoever started it.
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
QUIET_STEPS = 5
# Seconds until all four train: a busy machine takes a minute to import torch.
START_WITHIN = 300.0


# --- a rank -----------------------------------------------------------------------------------------------------------------


def die_with_parent():
    """This process gets SIGKILL when its parent ends, however that ends."""
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
    return model(torch.randn(SAMPLES, CHANNELS[0], PIXELS, PIXELS, generator=generator)).square().mean()


def tell(rank, step, world, begin):
    """One line in one write, so that the ranks' lines do not mix; the clock is the machine's."""
    os.write(1, f"told {rank} {os.getpid()} {step} {world} {begin:.6f} {time.monotonic():.6f}\n".encode())


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
        tell(rank, step, world, begin)


def torchft_rank(rank, lighthouse):
    # Its addresses are made of the host's name, which need not have an address.
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
        pg=ProcessGroupGloo(), min_replica_size=1, load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": inner.state_dict()},
        replica_id=f"replica_{rank}", rank=0, world_size=1, store_addr="127.0.0.1", store_port=store.port,
        lighthouse_addr=lighthouse)
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
            tell(rank, manager.current_step(), manager.num_participants(), begin)


def lighthouse():
    from torchft.coordination import LighthouseServer

    server = LighthouseServer(bind="[::]:0", min_replicas=1, quorum_tick_ms=100, join_timeout_ms=10000)
    port = server.address().rsplit(":", 1)[1]
    os.write(1, f"lighthouse http://127.0.0.1:{port}\n".encode())
    signal.pause()


# --- the two jobs -----------------------------------------------------------------------------------------------------------


class Job:
    """Processes that share one pipe, in which the ranks tell their steps; it is at its end when the last of them is gone."""

    def __init__(self, folder):
        self.log = open(os.path.join(folder, "log"), "ab")
        self.environment = dict(os.environ, OMP_NUM_THREADS="1", TMPDIR=folder, PYTHONWARNINGS="ignore")
        self.reader, self.writer = os.pipe()
        self.buffer = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.reader, selectors.EVENT_READ)
        self.processes = {}

    def start(self, name, *arguments):
        command = [sys.executable, os.path.abspath(__file__), *arguments]
        self.processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.writer, stderr=self.log,
                                                env=self.environment)

    def line(self, kind, deadline):
        """The words of the next line of this kind; None at the deadline. Other lines are some library's."""
        while True:
            while b"\n" not in self.buffer:
                if not self.selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                self.buffer += os.read(self.reader, 65536)
            line, self.buffer = self.buffer.split(b"\n", 1)
            word, *words = line.split() or [b""]
            if word == kind:
                return words

    def told(self, deadline):
        """The next step that a rank tells: (rank, process id, step, world, begin, end); None at the deadline."""
        words = self.line(b"told", deadline)
        return words and (*map(int, words[:4]), *map(float, words[4:]))

    def killed(self, rank):
        """What the job's own launcher does not do when a rank has been killed."""

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
        said = self.line(b"lighthouse", time.monotonic() + START_WITHIN)
        if said is None:
            self.close()
            sys.exit("torchft's lighthouse did not start")
        self.address = said[0].decode()
        for rank in range(WORLD):
            self.start(rank, "rank", str(rank), self.address)

    def killed(self, rank):
        self.processes[rank].wait()
        self.start(rank, "rank", str(rank), self.address)


PEERS = {"torchrun": Torchrun, "torchrun-own-store": TorchrunOwnStore, "torchft": Torchft}


# --- the measurement --------------------------------------------------------------------------------------------------------


def quiet(job, timeout):
    """Waits until every rank has done some steps in the whole world, begun from now on; returns who is who (rank -> process
    id), the last step and how long those steps took. None when they do not come together in time."""
    now, last = time.monotonic(), 0
    steps, took, pids = dict.fromkeys(range(WORLD), 0), [], {}
    while min(steps.values()) < QUIET_STEPS:
        told = job.told(now + timeout)
        if told is None:
            return None
        rank, pid, last, world, begin, end = told
        if world == WORLD and now < begin:
            steps[rank] += 1
            pids[rank] = pid
            took.append(end - begin)
    return pids, last, took


def first_step(job, last, killed, timeout):
    """Seconds from the kill to the end of the first step that was begun after it; None when there is none in time, or when
    it is an earlier one than those that were told before."""
    while (told := job.told(killed + timeout)) is not None:
        _, _, step, _, begin, end = told
        if killed < begin:
            return end - killed if last <= step else None
        last = max(last, step)
    return None


class Bench:
    """One job under one peer, started anew whenever it does not come back by itself."""

    def __init__(self, make, timeout):
        self.make, self.timeout, self.job, self.folder = make, timeout, None, None
        self.times, self.steps, self.failed, self.apart = [], [], 0, 0

    def begin(self):
        self.end()
        self.folder = tempfile.TemporaryDirectory()
        self.job = self.make(self.folder.name)
        return quiet(self.job, START_WITHIN)

    def end(self):
        if self.job is not None:
            self.job.close()
            self.folder.cleanup()
            self.job = None

    def come_together(self):
        calm = None
        if self.job is not None:
            calm = quiet(self.job, self.timeout)
            self.apart += calm is None
        calm = calm or self.begin()
        if calm is None:
            with open(os.path.join(self.folder.name, "log"), errors="replace") as log:
                sys.exit("four ranks did not come to train together; last words:\n" + "".join(log.readlines()[-15:]))
        pids, last, took = calm
        self.steps += took
        return pids, last

    def kill(self, victim):
        """Seconds to the next step, or None."""
        pids, last = self.come_together()
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
            said = "did not recover" if seconds is None else f"{seconds:.3f} s"
            print(f"{peer} kill {kill + 1}: rank {kill % WORLD}, {said}", flush=True)
    finally:
        bench.end()
    weights = sum(parameter.numel() for parameter in network().parameters())
    print(f"{peer}: {weights} trained weights, a quiet step takes {1000 * statistics.median(bench.steps):.0f} ms (median)")
    if bench.apart:
        print(f"{peer}: {bench.apart} times not all ranks came back within {timeout:.0f} s, and the job was started anew")
    times = bench.times
    took = f"median {statistics.median(times):.2f} s, longest {max(times):.2f} s" if times else "never"
    print(f"BENCH recovery from kill -9 of one of {WORLD} ranks under {peer}: {took}, {len(times)} of {kills} recovered "
          f"(within {timeout:.0f} s)")


def main():
    if sys.argv[1] == "agent":
        # `torchrun` is this main; called here, it is our own process and dies with us.
        die_with_parent()
        from torch.distributed.run import main as torchrun

        torchrun(["--standalone", f"--nproc-per-node={WORLD}", "--max-restarts=1000000", __file__, "rank", sys.argv[2]])
    elif sys.argv[1] == "lighthouse":
        die_with_parent()
        lighthouse()
    elif sys.argv[1] == "rank":
        die_with_parent()
        torchrun_rank(sys.argv[2]) if len(sys.argv) == 3 else torchft_rank(int(sys.argv[2]), sys.argv[3])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("peer", choices=PEERS)
        parser.add_argument("--kills", type=int, required=True)
        parser.add_argument("--timeout", type=float, default=60.0)
        arguments = parser.parse_args()
        measure(arguments.peer, arguments.kills, arguments.timeout)


if __name__ == "__main__":
    main()
