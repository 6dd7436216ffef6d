"""What an engine declares, what a pool asks of it, and what that yields: everything a replica is built from.

A module `engine_models/engines/<name>.py` (or of a plug-in) ends with ``ENGINE = Engine(...)``; `engine_models.engines.known`
finds it. Others read of an engine what stands here, and nothing of its own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from engine_models.cost.settings import StepCosts
from engine_models.cost.terms import Formats
from engine_models.flags import FlagTable
from engine_models.model.blocks import Architecture
from engine_models.model.formats import Format
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import INFINITY, Gate, Scheduler
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import KvTier, StoreNames, TierKind
from hardware_profiles.device import Device, DeviceKind, load_device
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from engine_models.cost.drafting import Speculation
    from engine_models.cost.event_loop import EventLoop
    from engine_models.cost.first_use import FirstUse
    from engine_models.cost.start_up import Place, StartUp
    from engine_models.parts.handover import Peer

Role = Literal["mixed", "prefill", "decode", "encode"]
"""Whether a pool computes prompts and answers, or one of the two, and shares each request with a pool of the other kind; or
encodes images for the others."""

Mode = Literal["jump", "step", "record"]
"""How a scheduler runs: proving runs of equal steps; plainly, the reference; or noting the rows of every batch."""


@dataclass(frozen=True)
class PoolRequest:
    """What a scenario asks of an engine for one pool.

    `flags` are the engine's own flags by snake_case name, already parsed. `device_memory_bytes` is what the driver
    reports; `device_name` serves defaults that engines key to a product. `data_parallel` are the ranks that share the experts
    of one replica, each with its own attention, scheduler and KV cache (1: none).
    `role` other than "mixed" asks for a scheduler that shares requests (`engine_models.parts.handover`), over a `connector`, in
    a `schedule_style` (None: the engine's choice). `tiers` keep KV blocks beyond the device. `device_cores` are those of a CPU,
    `host_link_bytes_per_s` the nominal rate of the device's link to the host, one way, `network_bytes_per_s` that of its link to
    other machines (0: unknown). `lora` are a pool's settings of adapters, None for none;
    `structured` says whether grammars constrain answers, `images` whether prompts hold images, `encoded` whether other servers
    encode them (over the connector `encoder_connector`, None: the engine's choice).
    """

    arch: Architecture
    formats: Formats
    device_name: str
    device_memory_bytes: int
    device_kind: DeviceKind = "gpu"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: int = 1
    flags: dict[str, Any] = field(default_factory=dict)
    speculation: Speculation | None = None
    tiers: tuple[KvTier, ...] = ()
    role: Role = "mixed"
    connector: str | None = None
    schedule_style: str | None = None
    lora: Mapping[str, Any] | None = None
    structured: bool = False
    images: bool = False
    encoded: bool = False
    encoder_connector: str | None = None
    device_cores: int = 0
    host_link_bytes_per_s: float = 0.0
    network_bytes_per_s: float = 0.0

    @property
    def device_vendor(self) -> str:
        """Who makes the device, in lower case."""
        return load_device(self.device_name).vendor

    @property
    def encodes(self) -> bool:
        """Whether its steps encode images: prompts that it computes hold some, and no other server does it for them."""
        own = self.images and not self.encoded and self.role != "decode"
        return own or self.role == "encode"

    @property
    def more_memory(self) -> str:
        """What to try where the model does not fit."""
        parallelism = "tensor or data parallelism" if self.data_parallel > 1 else "tensor parallelism"
        return f"more {parallelism}, a smaller number format, or larger devices"


@dataclass(frozen=True)
class MemoryLine:
    """One use of device memory before the KV cache: its key in reports, its words, its bytes."""

    key: str
    label: str
    bytes: int


def line_if_any(key: str, label: str, amount_bytes: int) -> tuple[MemoryLine, ...]:
    """The line of a use that not every pool has: none where it takes no bytes."""
    return (MemoryLine(key, label, amount_bytes),) if amount_bytes else ()


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of one device: what the engine may use, what it needs besides the KV cache, what is left in whole blocks.

    `lines` are the uses before the KV cache in the engine's own words.
    """

    device_bytes: int
    usable_bytes: int
    lines: tuple[MemoryLine, ...]
    kv_bytes: int
    kv_bytes_per_token: float
    block_bytes: int
    blocks: int

    def bytes_of(self, key: str) -> int:
        """Bytes of the line with this key, 0 where the engine has none."""
        return sum(line.bytes for line in self.lines if line.key == key)

    def as_dict(self) -> dict[str, int | float]:
        """The budget by key; uses that every engine may have are always there."""
        used = {f"{key}_bytes": 0 for key in ("weight", "activation", "other", "graph", "draft")}
        return {
            "device_bytes": self.device_bytes,
            "usable_bytes": self.usable_bytes,
            **used,
            **{f"{line.key}_bytes": line.bytes for line in self.lines},
            "kv_bytes": self.kv_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "block_bytes": self.block_bytes,
            "blocks": self.blocks,
        }


@dataclass(frozen=True)
class Limits:
    """What one rank takes, in requests and tokens.

    rows : requests that run at once; rows_by : what they follow from, empty for the engine's own flag (`Engine.same_as`).
    step_tokens : most tokens of a step.
    context_tokens : the engine's context; a prompt with its asked-for limit may not be longer.
    kv_tokens : tokens of full attention that the KV cache holds at once.
    stated_tokens : tokens that the engine itself says at its start, None for `kv_tokens`.
    least_stated : the fewest that it may say, on its first start or as it may be installed; None: it says the same each time.
    kv_blocks, block_tokens : the blocks (or pages) in which the cache is handed out, and the tokens of one.
    prompt_tokens : longest prompt that is taken; prompt_by : the engine's flag that bounds it, empty where the context does.
    row_tokens : longest prompt and answer together; an answer is cut there.
    page_after_prompt : whether it is also cut where the whole blocks of its prompt and a further one leave no room in the cache.
    asked_tokens : most of an asked-for limit that is held against the context, None for all of it.
    answer_tokens : longest answer to a request that asks for no limit, None for the room that there is.
    request_tokens : tokens that the KV cache holds of one request alone, None for `kv_tokens`.
    row_blocks : blocks that a request takes beside those of its tokens, for states of recurrent layers.
    cuts_prompts : whether a longer prompt is cut, not refused.
    spare_tokens : memory that a row's last step may hold beyond its own tokens, for drafts that come to nothing [tokens].
    """

    rows: int
    step_tokens: int
    context_tokens: int
    kv_tokens: int
    kv_blocks: int
    block_tokens: int
    prompt_tokens: int
    row_tokens: int
    spare_tokens: int = 0
    asked_tokens: int | None = None
    answer_tokens: int | None = None
    request_tokens: int | None = None
    stated_tokens: int | None = None
    least_stated: int | None = None
    row_blocks: int = 0
    cuts_prompts: bool = False
    page_after_prompt: bool = False
    rows_by: str = ""
    prompt_by: str = ""

    @property
    def told_tokens(self) -> int:
        """Tokens that the engine says its cache holds."""
        return self.kv_tokens if self.stated_tokens is None else self.stated_tokens

    @property
    def held_tokens(self) -> int:
        """Longest request that the KV cache holds."""
        return self.kv_tokens if self.request_tokens is None else self.request_tokens


@dataclass(frozen=True)
class Executor:
    """How a replica executes: batches scheduled ahead, pipeline stages, ranks that step together, and who of them gets a request.

    rank_router : "least_loaded", "round_robin", or "fewest" requests.
    gate : makes what the ranks of a replica agree on before each step, None for nothing.
    launches_ahead : whether the operations of a step are launched while the step before runs, whose results are seen after that.
    """

    depth: int = 1
    stages: int = 1
    ranks: int = 1
    rank_router: Literal["least_loaded", "round_robin", "fewest"] = "least_loaded"
    gate: Callable[[], Gate | None] = lambda: None
    launches_ahead: bool = False


@dataclass(frozen=True)
class FrontEnd:
    """What stands before the scheduler of a replica.

    before_s : time of a request in it that delays nobody else [s].
    tokenise_token_s, tokenise_request_s : time of the one tokeniser for each token of a prompt, and for a prompt whatever its
        length, one prompt after the other [s]. image_token_s : time of the same thread for each token of an image, which it
        scales and cuts into patches [s]; image_threads : how many such threads a server has that only encodes.
    loop : the event loop that takes in and sends, where it is known; chat : whether requests come as chats.
    tokenises_late : whether the loop deals with a prompt when it hands the request over, and not when it takes it in.
    inflight : requests that a replica holds at once, all its ranks together, None for no limit; others are answered `on_full`.
    asks : whether the scheduler is asked too (`Scheduler.sheds`).
    """

    before_s: float = 0.0
    tokenise_token_s: float = 0.0
    tokenise_request_s: float = 0.0
    image_token_s: float = 0.0
    image_threads: int = 1
    inflight: int | None = None
    on_full: Literal["429", "503"] = "429"
    asks: bool = False
    loop: EventLoop | None = None
    chat: bool = True
    tokenises_late: bool = False

    def served(self, *, chat: bool, speed: float | None) -> FrontEnd:
        """The same for requests of that kind, on a host whose core has that speed (None: as assumed)."""
        loop = self.loop if speed is None or self.loop is None else replace(self.loop, speed=speed)
        return replace(self, loop=loop, chat=chat)

    def unqueued(self) -> FrontEnd:
        """The same without queues in the loop: each request takes the time of one that is alone."""
        if self.loop is None:
            return self
        return replace(self, before_s=self.before_s + self.loop.lone_s(chat=self.chat), loop=None)


@dataclass(frozen=True)
class Handover:
    """How a pool passes requests on, or takes them over.

    connector : the engine's own name of what moves the KV cache.
    rate_share : share of the network's rate that its transfers reach, latency_s : what each takes beside its bytes [s].
    unit_tokens : tokens of the smallest part that is moved, unit_s : what each adds to a transfer beside its bytes [s].
    token_bytes : bytes that a token counts for on a rank, where it is not one of all layers but of one group of the KV cache.
    request_bytes : bytes on a rank that a request has besides its tokens, such as states; they go with the last of these.
    hop_s : time between a prompt's end and the request's arrival at the second server, beside that one's front end [s].
    reserves : whether a request goes to both servers at once, and the second has to reserve memory before the first begins; else
        it goes to the second when its prompt is computed.
    whole_requests : whether the first server is sent the request as it is; else it is asked for one token.
    agreed : what else both servers must have alike, by what it is called.
    lease_s : where prompts are read, for how long a computed one is held whose reader is lost: from its end, and from the latest
        sign of the reader; none where it is not modelled what a lost server leaves behind.
    computes : whether decode servers compute prompts that nobody sends them.
    tells : whether a reader that drops a request lets the holder of its prompt know.
    beats_s : time between two signs of life that a second server asks of the first [s]; it takes the first for lost when so many
        (the other number) do not come. None: it hears of that from the router alone.
    gives_up_s : a transfer that takes longer from its first piece on fails, and its request with it [s].
    drops : whether it is modelled what servers do about requests that another one, or a client, drops.
    """

    connector: str
    unit_tokens: int
    unit_s: float = 0.0
    token_bytes: float | None = None
    request_bytes: float = 0.0
    hop_s: float = 0.0
    rate_share: float = 1.0
    latency_s: float = 0.0
    reserves: bool = False
    whole_requests: bool = False
    agreed: Mapping[str, str] = field(default_factory=dict)
    lease_s: tuple[float, float] | None = None
    tells: bool = True
    computes: bool = False
    beats_s: tuple[float, int] | None = None
    gives_up_s: float = INFINITY
    drops: bool = True


@dataclass(frozen=True)
class Embeddings:
    """How what a vision tower has made of images goes from servers that encode to those that read it.

    connector : the engine's own name of what moves it; both sides have the same.
    token_bytes : bytes of a token of an image, which each rank that reads has whole.
    sent : whether it goes over the network, and a request waits for it before its server sees it; else the step that is the first
        to need it reads it.
    rate_share : share of the network's rate that its transfers reach; most_bytes_per_s : what they reach at most, whatever the
        network.
    once : whether the ranks of a server share what comes; else it comes for each.
    evenly : whether the images of a request are spread over all servers, in an order that is drawn; else each goes to the next
        server in turn.
    """

    connector: str
    token_bytes: int
    sent: bool = True
    rate_share: float = 1.0
    most_bytes_per_s: float | None = None
    once: bool = False
    evenly: bool = False


@dataclass(frozen=True)
class EnginePlan:
    """One pool's engine, resolved: what others may read of it.

    `scheduler` builds a fresh scheduler of one rank with its KV cache. `prefix_caching` says whether equal contents of two
    requests matter to it. `handover` is that of a pool with a role, `embeddings` that of one that encodes or has images
    encoded. `outside` names in what the plan leaves the measured runs, as ``axis: what``. `sources` are those of the
    overheads. `kernels` are the version's, where they are not the engine's. `recorded` says whether recorded steps of the
    engine are of the rule that serves this pool. `sleeps`: its servers can fall asleep.
    `store` says how blocks stand in the shared one of `tiers`, None without.
    `compiles`: they compile their model when they start, if their engine does; `compiles_products`: the kernels of products too.
    `first_use` is what servers that have just started wait for, None where that is not known of the engine.
    `first_use_s` is what the first large prompts of a fresh server wait for kernels that are compiled on first use; no simulation
    has it, comparisons with runs on fresh servers do.
    """

    engine: str
    version: str
    limits: Limits
    memory: MemoryBudget
    scheduler: Callable[[Mode], Scheduler]
    costs: StepCosts
    executor: Executor = field(default_factory=Executor)
    front: FrontEnd = field(default_factory=FrontEnd)
    prefix_caching: bool = False
    handover: Handover | None = None
    embeddings: Embeddings | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    sources: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    kernels: str = ""
    tiers: tuple[TierKind, ...] = ()
    store: StoreNames | None = None
    recorded: bool = True
    sleeps: bool = False
    compiles: bool = True
    compiles_products: bool = False
    first_use: FirstUse | None = None
    first_use_s: float = 0.0

    @property
    def captures(self) -> bool:
        """Whether its servers capture CUDA graphs when they start."""
        return bool(self.costs.terms.graph_sizes)

    def start_up(self, place: Place = "disk", *, compiled: bool = False) -> tuple[StartUp, list[str]]:
        """How long a server takes until it serves, by parts, and what is assumed; `compiled`: its compilation cache is filled."""
        from engine_models.cost.start_up import predicted

        return predicted(
            self.engine,
            self.memory.bytes_of("weight"),
            place=place,
            compiled=compiled,
            captures=self.captures,
            compiles=self.compiles,
            compiles_products=self.compiles_products,
        )

    @property
    def speculation(self) -> Speculation | None:
        """What is drafted, if anything."""
        return self.costs.speculation


@dataclass
class Said:
    """What is said of a pool while it is resolved."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Support:
    """Where an engine has something: kinds of devices, the source that says so, architectures (all where none is named), and the
    last version that has it (the newest where none is named)."""

    kinds: frozenset[DeviceKind]
    source: str
    architectures: tuple[str, ...] = ()
    last: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """The kinds, the architectures where few have it, and the last version that does."""
        kinds = " ".join(sorted(self.kinds))
        until = (f"until {'.'.join(map(str, self.last))}",) if self.last else ()
        narrowed = ", ".join((*self.architectures, *until))
        return f"{kinds} ({narrowed})" if narrowed else kinds

    def on(self, device: Device, version: tuple[int, ...]) -> bool:
        """Whether a version of the engine has it on a device."""
        if self.last and version[: len(self.last)] > self.last:
            return False
        return device.kind in self.kinds and (not self.architectures or device.architecture in self.architectures)


@dataclass(frozen=True)
class Lockstep:
    """When data-parallel ranks of a model with experts share these and step together, and what is said of it.

    applies : from the flags, the tensor-parallel ranks of one rank and the ranks that share the experts.
    launch : how such a server is launched, from its devices and ranks; "" where that needs no words.
    dense : how what is not expert is computed, for the summary.
    """

    applies: Callable[[Mapping[str, Any], int, int], bool]
    launch: Callable[[int, int], str]
    dense: str


Line = dict[str, Any]
"""A line of a recording."""


@dataclass(frozen=True)
class Replay:
    """How a recorded schedule is run again: the scheduler, the executor's depth, and a step as the recording writes it.

    columns : the columns that are compared.
    as_recorded : from a settled batch and the requests' names by index; None: it is no step of its own there.
    """

    scheduler: Scheduler
    depth: int
    columns: tuple[str, ...]
    as_recorded: Callable[[Batch, Mapping[int, str]], dict[str, Any] | None]


class PairRecorder(Protocol):
    """Writes the steps of a server that shares requests, as its recording does, into `lines`; `columns` are compared."""

    columns: tuple[str, ...]
    lines: list[dict[str, Any]]

    def turn(self, end_s: float) -> None:
        """A turn without a batch ends at `end_s`."""

    def step(self, batch: Batch) -> None:
        """A batch has been settled."""

    def heard(self, seq: Sequence, at_s: float) -> None:
        """A peer is done with a request at `at_s`."""


R = TypeVar("R")


def checked(version: Callable[[str], object], replay: Callable[[Mapping[str, Any]], R]) -> Callable[[str, Mapping[str, Any]], R]:
    """`replay` from a recording's knobs, once `version` has found that it is of one that is declared."""

    def of_recording(version_text: str, knobs: Mapping[str, Any]) -> R:
        version(version_text)
        return replay(knobs)

    return of_recording


Decisions = tuple[list[dict[str, Any]], tuple[str, ...]]
"""Steps of a recording again, and the columns that are compared."""


@dataclass(frozen=True)
class PairReplay:
    """How recorded schedules of servers that share requests are run again.

    prefill, decode : make a fresh scheduler of a server of either side.
    recorder : from a server's scheduler and the requests' names by index.
    """

    prefill: Callable[[], Peer]
    decode: Callable[[], Peer]
    recorder: Callable[[Peer, Mapping[int, str]], PairRecorder]


FEATURES = {
    "handover": ("a split into prefill and decode pools", "deployment.role"),
    "speculative": ("speculative decoding", "deployment.speculative"),
    "offload": ("KV offload", "deployment.offload"),
    "lora": ("LoRA adapters", "deployment.lora"),
    "structured": ("structured output", "workload.structured_output"),
    "images": ("images in prompts", "workload.images"),
    "encoders": ("a pool that encodes images", "deployment.role"),
    "pipeline_parallel": ("pipeline parallelism", "deployment.pipeline_parallel"),
}
"""What an engine may lack: its words, and the key of a scenario that asks for it."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine, declared.

    name : as a scenario names it; title : as it is spoken of; rule : how its scheduler decides, in a paragraph.
    versions : the newest first; of each older one what differs from the next newer, by the names of the engine's switches.
    oldest : oldest release for which the oldest declared version stands, "" for that version itself.
    devices : kinds of devices with a backend, and the source.
    formats : number formats of weights that it loads (or families of packed ones, `Format.family`), and where.
    features : of `FEATURES`, those that are simulated, and where.
    flags : its flags; same_as : for words of all engines (rows, context, step_tokens, memory_share...) its own flag.
    kernels : framework whose kernel tables are its own, as the tables name it.
    weights : number format that it loads where a pool and a checkpoint state none, None for the checkpoint's own.
    files : format of the files that are published for it of checkpoints in a format, which it loads unless a pool names one.
    overheads_from : engine whose overheads stand in for those that nobody measured, None for none.
    measured : devices with end-to-end runs behind its overheads (docs/fidelity.md), and their tensor-parallel ranks.
    plan : resolves a pool, given the version as it was asked for (None: the newest).
    replay : from a recording's version and knobs; None: no recording can be run again.
    kv_formats : narrow formats in which it keeps a KV cache, beside those of packed files; None: nobody checks.
    kv_format : format of the KV cache of a model on a device unless the pool names one; None: the model's.
    keeps_stated_kv : first version, in numbers, that keeps the KV cache in a format that the checkpoint states, by format.
    activation_format : format to which activations are quantised before weights of a format, by flags and version, unless the
        pool names one; None: what the weights' format says.
    decisions : `replay` of an engine that was recorded without a model: its steps again, from the knobs and the requests.
    lockstep : None where data parallelism always means copies.
    pair_replay : `replay` of servers that share requests, from a version and the knobs.
    adapters_beside : keys of a pool, of `speculative`, `offload`, `kv_tiers`, `role`, `pipeline_parallel` and `data_parallel`
        (attention of its ranks), beside which adapters are simulated.
    masks_beside, images_beside : the same keys, beside which structured output and images are.
    drafts : settings of speculative decoding (a pool's `speculative`) with the engine's defaults for this model and its flags;
        InputError for what it does not do. None: they are taken as they are.
    transcribe : recordings that are written in a form of their own as others are: `config` line, requests and steps.
    """

    name: str
    title: str
    rule: str = ""
    versions: Mapping[str, Mapping[str, Any]]
    oldest: str = ""
    devices: Mapping[DeviceKind, str]
    formats: Mapping[str, Support]
    features: Mapping[str, Support]
    flags: Callable[[], FlagTable]
    same_as: Mapping[str, str]
    kernels: str
    weights: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    overheads_from: str | None = None
    kv_formats: tuple[str, ...] | None = None
    kv_format: Callable[[Device, Architecture], str | None] | None = None
    keeps_stated_kv: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    activation_format: Callable[[Device, Architecture, Format, Mapping[str, Any], tuple[int, ...]], str | None] | None = None
    measured: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    plan: Callable[[PoolRequest, str | None], EnginePlan]
    replay: Callable[[str, Mapping[str, Any]], Replay] | None = None
    decisions: Callable[[Mapping[str, Any], list[dict[str, Any]]], Decisions] | None = None
    lockstep: Lockstep | None = None
    pair_replay: Callable[[str, Mapping[str, Any]], PairReplay] | None = None
    adapters_beside: tuple[str, ...] = ()
    masks_beside: tuple[str, ...] = ()
    images_beside: tuple[str, ...] = ()
    drafts: Callable[[Mapping[str, Any], Architecture, Mapping[str, Any]], dict[str, Any]] | None = None
    transcribe: Callable[[Line, list[Line], list[Line]], tuple[Line, list[Line], list[Line]]] | None = None

    @property
    def newest(self) -> str:
        """The newest declared version."""
        return next(iter(self.versions))

    @property
    def releases(self) -> list[str]:
        """The declared versions, the oldest first."""
        return list(self.versions)[::-1]

    def version(self, text: str | None) -> str:
        """Return the newest declared version not above `text` (None: the newest); two parts, as 0.15, name a whole series.

        InputError if `text` is no version, or older than any that is modelled.
        """
        if text is None:
            return self.newest
        wanted, declared = self.parts(text), list(self.versions)
        fits = [name for name in declared if self.parts(name)[: len(wanted)] <= wanted]
        if fits:
            return fits[0]
        oldest = declared[-1]
        if not self.oldest or wanted < self.parts(self.oldest):
            raise InputError(
                f"{self.title} {text} is older than the oldest modelled version {oldest}",
                mend=f"use one of {', '.join(self.releases)}, or leave the version out for the newest",
            )
        return oldest

    def parts(self, text: str) -> tuple[int, ...]:
        """The numbers of a version, that of a post-release last; InputError if it is none."""
        try:
            return tuple(int(part) for part in text.lstrip("v").replace(".post", ".").split("."))
        except ValueError:
            raise InputError(
                f"'{text}' is not a version of {self.title}",
                mend=f"write it as in {self.name}@{self.newest}, or leave it out for the newest",
            ) from None

    def release(self, text: str | None) -> tuple[int, ...]:
        """The numbers of the release asked for: the newest for None and for the series that it is of."""
        newest = self.parts(self.newest)
        asked = newest if text is None else self.parts(text)
        return newest if asked == newest[: len(asked)] else asked

    def switches(self, version: str) -> dict[str, Any]:
        """What differs between a declared version and the newest."""
        found: dict[str, Any] = {}
        for name, changes in self.versions.items():
            found |= changes
            if name == version:
                break
        return found
