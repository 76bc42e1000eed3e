"""Several processes that do one piece of work together, as a launcher started them.

    accelerate launch --multi_gpu --num_processes 8 -m promptadapt_core.train ppo ...
    torchrun --nproc-per-node 2 -m promptadapt_core.train ppo --device cpu ...

All run the same program on the same settings. Each takes its share of what is costly, and where
they need each other's results they meet: in `gather` and what is made of it. What one process
raises on its way there, all raise there, so that none waits for one that has given up; a process
that is gone is noticed there too. Whoever is the only one, and was not launched, loads nothing of
this and pays nothing for it.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

from .decoding import Stopped
from .devices import pick_device
from .settings import SettingsError

Result = TypeVar("Result")

# The number of processes, as torchrun, accelerate and the launchers of MPI tell it.
NUM_PROCESSES_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
KEPT = "what was saved before is whole, and --resume goes on from there"


class ProcessFailed(ConnectionError):
    """Another process of the group is gone, or has failed by a fault of the program."""


class ProcessGroup:
    """A group of one process; LaunchedGroup is one of several. rank: 0 to num_processes - 1; the
    process of rank 0, the main one, is who writes and tells."""

    def __init__(self, rank: int = 0, num_processes: int = 1):
        self.rank, self.num_processes = rank, num_processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, number: int) -> range:
        """Which of `number` things are this process's: neighbours, as many as others have but for
        one."""
        first, end = (number * rank // self.num_processes for rank in (self.rank, self.rank + 1))
        return range(first, end)

    def own_device(self, name: str) -> str:
        """The name of the device that this process is to use where the user asked for `name`."""
        asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
        return "cpu" if name == "auto" and asked_for_cpu else name

    def gather(self, work: Callable[[], Result]) -> list[Result]:
        """What `work` gives in each process, by rank. Every process has to come here.

        Of tensors, texts, numbers, None, and lists, tuples and dicts of those. What it raises in
        one process all raise: a SettingsError and decoding.Stopped as they are, anything else, and
        the loss of a process, as ProcessFailed. An error goes before a stop.
        """
        return [work()]

    def from_main(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in the main process, the only one that runs it; see gather."""
        return work()

    def agree(self, ask: Callable[[], bool]) -> bool:
        """Whether any process says True."""
        return any(self.gather(lambda: bool(ask())))

    def together(self, work: Callable[[], Result]) -> Result:
        """What `work`, in which processes may meet, gives in this one, once all are done."""
        made: list[Result] = []
        self.gather(lambda: made.append(work()))
        return made[0]

    def on_main(self, work: Callable[[], object]) -> None:
        """Let the main process do something; all wait, and all raise what it raises."""
        self.together(lambda: work() if self.is_main else None)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make each gradient the sum of all processes', the same bits everywhere. A process that
        has none of a parameter adds 0."""


ALONE = ProcessGroup()


class LaunchedGroup(ProcessGroup):
    """One of several processes. Messages are tensors and plain values (torch.save, read with
    weights_only); they go between CPUs by gloo, gradients between GPUs by NCCL where each process
    has one of its own."""

    def __init__(self, timeout_minutes: float):
        """Meets the others, for which it waits as long as for anything else."""
        from accelerate import PartialState

        if sys.platform == "win32":
            os.environ.setdefault("USE_LIBUV", "0")  # torch for Windows is built without it
        self.timeout_minutes = timeout_minutes
        timeout = datetime.timedelta(minutes=timeout_minutes)
        try:
            PartialState(cpu=True, backend="gloo", timeout=timeout)
        except (RuntimeError, ValueError) as error:  # ValueError: what a launcher sets is not there
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            names = [name for name in NUM_PROCESSES_NAMES if name in os.environ]
            raise ProcessFailed(
                f"the processes did not find each other: {reason}; without a launcher, unset "
                f"{', '.join(names)}, which says that there are {num_launched()}"
            ) from None
        dist = torch.distributed
        super().__init__(dist.get_rank(), dist.get_world_size())
        self.told: Exception | None = None  # what all processes have raised together
        self.is_lost = False  # a process is gone: there is no meeting any more
        self._gpus: Any = None  # the group of NCCL

    def own_device(self, name: str) -> str:
        """See ProcessGroup: "auto" and "cuda" are the GPU of this process's place on its machine.
        SettingsError("device", ...) where the machine has fewer."""
        name = super().own_device(name)
        if name not in ("auto", "cuda") or not (number := torch.cuda.device_count()):
            return name
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if place >= number:
            raise SettingsError(
                "device",
                f"there is no GPU for process {place + 1} of this machine, which has {number}: "
                f"launch no more processes, or share one by --device cuda:0",
            )
        return f"cuda:{place}"

    def join_gpus(self, device: str) -> None:
        """Let gradients go from GPU to GPU where every process has one to itself."""
        own = self.gather(lambda: str(pick_device(self.own_device(device))))
        to_itself = device in ("auto", "cuda") and all(name.startswith("cuda:") for name in own)
        if to_itself and torch.distributed.is_nccl_available():
            torch.cuda.set_device(own[self.rank])
            timeout = datetime.timedelta(minutes=self.timeout_minutes)
            self._gpus = torch.distributed.new_group(backend="nccl", timeout=timeout)

    def gather(self, work: Callable[[], Result]) -> list[Result]:
        mine: Exception | None = None
        try:
            message = _encoded({"value": work()})
        except Exception as error:
            if error is self.told:
                raise
            mine, message = error, _encoded({"error": _account_of(error)})
        replies = [_decoded(reply) for reply in self._exchange(message)]
        accounts = [(rank, reply["error"]) for rank, reply in enumerate(replies)
                    if "error" in reply]  # fmt: skip
        if not accounts:
            return [reply["value"] for reply in replies]
        rank, account = min(accounts, key=lambda one: one[1]["kind"] == "stopped")
        self.told = mine if rank == self.rank else _error_of(rank, account)
        assert self.told is not None
        raise self.told

    def from_main(self, work: Callable[[], Result]) -> Result:
        made: list[Any] = []

        def encode() -> int:
            if self.is_main:
                value = work()
                made.extend((value, torch.frombuffer(_encoded(value), dtype=torch.uint8)))
                return len(made[1])
            return 0

        size = self.gather(encode)[0]
        content = made[1] if self.is_main else torch.empty(size, dtype=torch.uint8)
        self._meet(lambda: torch.distributed.broadcast(content, src=0))
        return made[0] if self.is_main else _decoded(content)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        parameters = list(parameters)
        known = self.gather(lambda: [one.grad is not None for one in parameters])
        learning = [one for one, *has in zip(parameters, *known, strict=True) if any(has)]
        if not learning:
            return
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in learning]
        whole = torch.cat([part.detach().reshape(-1) for part in parts])
        if self._gpus is not None:
            self._meet(lambda: torch.distributed.all_reduce(whole, group=self._gpus))
        else:
            on_cpu = whole.cpu()
            self._meet(lambda: torch.distributed.all_reduce(on_cpu))
            whole.copy_(on_cpu)
        sizes = [one.numel() for one in learning]
        for one, part in zip(learning, whole.split(sizes), strict=True):
            one.grad = part.view_as(one)

    def leave(self, error: BaseException | None) -> None:
        """Go out together; `error` is what this process leaves with, which the others hear of at
        their next meeting."""

        def last_words() -> None:
            if error is not None:
                raise error

        is_news = error is None or (isinstance(error, Exception) and error is not self.told)
        if is_news and not self.is_lost:
            try:
                self.gather(last_words)
            except Exception:
                if error is None:
                    raise
        if not self.is_lost:
            torch.distributed.destroy_process_group()

    def _exchange(self, message: bytearray) -> list[torch.Tensor]:
        """Everyone's message, by rank."""
        dist, number = torch.distributed, self.num_processes
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(number)]
        self._meet(lambda: dist.all_gather(sizes, torch.tensor([len(message)])))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(message)] = torch.frombuffer(message, dtype=torch.uint8)
        received = [torch.empty(longest, dtype=torch.uint8) for _ in range(number)]
        self._meet(lambda: dist.all_gather(received, padded))
        return [part[: int(size)] for part, size in zip(received, sizes, strict=True)]

    def _meet(self, communicate: Callable[[], object]) -> None:
        """ProcessFailed where a process is gone, or does not come in time."""
        try:
            communicate()
        except RuntimeError as error:
            self.is_lost = True
            late = "timed out" in str(error).lower()
            what = f"did not come within {self.timeout_minutes:g} minutes" if late else "has ended"
            self.told = ProcessFailed(
                f"process {self.rank} stops: another process of the group {what}; {KEPT}"
            )
            raise self.told from None


def num_launched() -> int:
    """Processes that a launcher started together with this one, itself included."""
    numbers = [os.environ.get(name, "") for name in NUM_PROCESSES_NAMES]
    return max([1, *(int(number) for number in numbers if number.isdecimal())])


def refuse_several(what: str) -> None:
    """SettingsError where a launcher started several processes of what runs in one."""
    if num_launched() > 1:
        reason = f"{what} runs in one process; start it without a launcher, or with 1"
        raise SettingsError("num_processes", reason)


@contextlib.contextmanager
def process_group(device: str, timeout_minutes: float) -> Iterator[ProcessGroup]:
    """The group that this process was launched in; ALONE where it was not.

    device: as the user names it. SettingsError("device", ...) where a process has none. What all
    know of is told by the main process; the others end with exit code 2.
    """
    if num_launched() == 1:
        yield ALONE
        return
    group = LaunchedGroup(timeout_minutes)
    try:
        group.join_gpus(device)
        yield group
    except BaseException as error:
        group.leave(error)
        known = isinstance(error, SettingsError | ProcessFailed) and not group.is_lost
        if known and not group.is_main:
            raise SystemExit(2) from None
        raise
    group.leave(None)


def _encoded(value: Any) -> bytearray:
    file = io.BytesIO()
    torch.save(value, file)
    return bytearray(file.getbuffer())


def _decoded(content: torch.Tensor) -> Any:
    """content: (N,) uint8."""
    return torch.load(io.BytesIO(content.numpy()), map_location="cpu", weights_only=True)


def _account_of(error: Exception) -> dict[str, str]:
    """What is told of an error to the other processes."""
    if isinstance(error, Stopped):
        return {"kind": "stopped", "name": "", "reason": ""}
    if isinstance(error, SettingsError):
        return {"kind": "setting", "name": error.name, "reason": error.reason}
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return {"kind": "fault", "name": type(error).__name__, "reason": reason}


def _error_of(rank: int, account: dict[str, str]) -> Exception:
    """What to raise for the error of another process."""
    name, reason = account["name"], account["reason"]
    if account["kind"] == "stopped":
        return Stopped()
    if account["kind"] == "setting":
        return SettingsError(name, f"process {rank}: {reason}")
    return ProcessFailed(f"process {rank} failed: {name}: {reason}; {KEPT}")
