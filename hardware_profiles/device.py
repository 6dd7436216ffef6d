"""Devices: what a GPU, a chip or a server socket offers, each number with its source.

One YAML file a device in ``devices/``. Its name is the device's name, ``<device>-<form>-<memory>``; where one
chip is sold with several memories (or a CPU in servers of one and two sockets) the last part lists them,
``apple-m2-ultra-76c-64gb+128gb+192gb.yaml``, and each is a device of its own. So the names are known without
reading any file, and loading a device reads its own file only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from hardware_profiles.errors import InputError, nearest
from hardware_profiles.files import read_text
from hardware_profiles.quantity import Quantity, read_quantity
from hardware_profiles.records import dataclass

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml: slower, the same result
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

DEVICES_DIR = Path(__file__).parent / "devices"

DeviceKind = Literal["gpu", "apple", "cpu", "asic", "apu"]
Topology = Literal["all_to_all", "mesh", "pairs", "pcie"]


@dataclass(frozen=True)
class Link:
    """What connects the devices of one node.

    kind : ``nvlink4``, ``xgmi``, ``pcie5``, ``roce``...
    bytes_per_s_per_direction : of one device, over all its links.
    topology : ``all_to_all`` (a switch: any pair gets the whole bandwidth), ``mesh`` (a fixed link to each
        peer), ``pairs`` (bridged pairs, PCIe beyond), ``pcie`` (through the host).
    peer_bytes_per_s_per_direction : between two devices alone, where that is less (``mesh``).
    peer_access : devices read each other's memory; else everything is copied through the host's (GeForce cards: datasheet).
    """

    kind: str
    bytes_per_s_per_direction: Quantity
    topology: Topology
    peer_bytes_per_s_per_direction: Quantity | None = None
    peer_access: bool = True


@dataclass(frozen=True)
class Device:
    """One device. Rates are the vendor's dense peaks, not what kernels reach.

    peak_flops_per_s : by arithmetic (``fp32 tf32 bf16 fp16 fp8 fp4 int8``), multiply-add counted as two.
    memory_bytes : what the driver reports to a process, not the label; on Apple what macOS lets the GPU wire.
    formats : number formats the matrix units compute in; the first is the usual one.
    weight_only_formats : formats that weights may be stored in and are widened before the arithmetic.
    multiprocessors : SMs, compute units, GPU cores or CPU cores.
    node_size : devices joined by `link`; None of `link` where a machine has one.
    sustained_bandwidth_bytes_per_s : what a benchmark of memory measured of `memory_bandwidth_bytes_per_s`.
    kernel_profile : folder under ``kernels/`` with fitted kernel times, if there is one.
    kernel_error : mean relative error of the datasheet's physics under rates that were fitted to kernels of the device.

    A CPU device is a whole machine of one or two sockets.
    """

    name: str
    title: str
    vendor: str
    kind: DeviceKind
    architecture: str
    formats: tuple[str, ...]
    weight_only_formats: tuple[str, ...]
    peak_flops_per_s: Mapping[str, Quantity]
    memory_bytes: Quantity
    memory_bandwidth_bytes_per_s: Quantity
    tdp_w: Quantity
    node_size: Quantity
    l2_bytes: Quantity | None = None
    multiprocessors: Quantity | None = None
    clock_hz: Quantity | None = None
    idle_w: Quantity | None = None
    link: Link | None = None
    pcie_bytes_per_s_per_direction: Quantity | None = None
    inter_node_bytes_per_s_per_direction: Quantity | None = None
    sustained_bandwidth_bytes_per_s: Quantity | None = None
    kernel_profile: str | None = None
    kernel_error: Quantity | None = None


#: Names of devices with stacked memory begin with these; all others have GDDR or LPDDR. kind: datasheet.
STACKED_MEMORY = (
    "a30-",
    "a100-",
    "a800-",
    "h100-",
    "gh200-",
    "h20-",
    "h200-",
    "h800-",
    "b200-",
    "b300-",
    "gb200-",
    "gb300-",
    "mi3",
    "mi50-",
    "mi100-",
    "mi2",
    "v100-",
    "tesla-p100-",
)

#: Short names that fit several devices, and the one that is meant: the part most often rented or measured.
ALIASES: Mapping[str, str] = {
    "a100": "a100-sxm-80gb",
    "a100-80gb": "a100-sxm-80gb",
    "a100-40gb": "a100-sxm-40gb",
    "a100-sxm": "a100-sxm-80gb",
    "a100-pcie": "a100-pcie-80gb",
    "h100": "h100-sxm-80gb",
    "h100-80gb": "h100-sxm-80gb",
    "h200": "h200-sxm-141gb",
    "b200-192gb": "b200-sxm-180gb",
    "gb200-192gb": "gb200-186gb",
    "gb200-185gb": "gb200-186gb",
    "gb200-sxm": "gb200-186gb",
    "gb300-sxm": "gb300-288gb",
    "gh200": "gh200-96gb",
    "gh200-480gb": "gh200-96gb",
    "v100": "v100-sxm-32gb",
    "gh100": "h100-sxm-80gb",
    "a6000": "rtx-a6000-48gb",
    "7900-xtx": "rx-7900-xtx-24gb",
    "gb10": "dgx-spark-128gb",
    "r9700": "radeon-ai-pro-r9700-32gb",
    "thor": "jetson-thor-128gb",
    "strix-halo": "ryzen-ai-max-395-128gb",
    "890m": "ryzen-ai-9-hx-370-32gb",
    "780m": "ryzen-7-8845hs-32gb",
    "orin": "jetson-agx-orin-64gb",
    "agx-orin": "jetson-agx-orin-64gb",
    "orin-nano": "jetson-orin-nano-8gb",
    "rtx-5060": "rtx-5060-8gb",
    "rtx-5060-ti": "rtx-5060-ti-16gb",
    "rtx-4060-ti": "rtx-4060-ti-16gb",
    "rtx-3080": "rtx-3080-10gb",
    "rx-9060-xt": "rx-9060-xt-16gb",
    "p40": "tesla-p40-24gb",
    "p100": "tesla-p100-16gb",
    "core-ultra-7-258v": "arc-140v-32gb",
    "core-ultra-9-285h": "arc-140t-32gb",
}
#: Words that makers and drivers put into a name and that tell no devices apart here.
_NOISE = frozenset(
    re.findall(
        r"\w+",
        """nvidia amd intel aws tesla geforce instinct radeon habana platinum gold scalable processor cpu gpu
        core tensor graphics blackwell generation server workstation edition hbm hbm2 hbm2e hbm3 hbm3e nvl72 oam dgx""",
    )
)
_SPELLING: Mapping[str, str] = {
    "sxm2": "sxm",
    "sxm4": "sxm",
    "sxm5": "sxm",
    "sxm6": "sxm",
    "rtx4090": "rtx-4090",
    "rtx3090": "rtx-3090",
    "rtx5090": "rtx-5090",
    "rtxpro6000": "rtx-pro-6000",
    "rtx6000pro": "rtx-pro-6000",
    "gaudi2": "gaudi-2",
    "gaudi3": "gaudi-3",
}


@lru_cache(maxsize=1)
def _files() -> Mapping[str, tuple[Path, str | None]]:
    """Device name -> its file, and the option within it where the file holds several."""
    found: dict[str, tuple[Path, str | None]] = {}
    for path in DEVICES_DIR.iterdir():
        if path.suffix != ".yaml":
            continue
        head, _, last = path.stem.rpartition("-")
        several = "+" in last or not re.fullmatch(r"\d+gb", last) or head.startswith("apple-")
        for option in last.split("+"):
            found[f"{head}-{option}"] = (path, option if several else None)
    return dict(sorted(found.items()))


_OWN: dict[str, Path] = {}
"""Devices of files that were named by their path in this process: the file of each name."""


def _own_file(name: str) -> str | None:
    """The name of the device in a file, if `name` is the path of one; it can then be loaded by that name too.

    Raises InputError for a file that is not there, or has the name of a shipped device.
    """
    path = Path(name)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return None
    if not path.is_file():
        raise InputError(f"there is no device file '{name}'", where="hardware", mend="check the path")
    own = path.stem.lower()
    if own in _files():
        raise InputError(f"'{own}' is the name of a shipped device", where=str(path), mend="give the file another name")
    _OWN[own] = path.resolve()
    return own


def device_names() -> list[str]:
    """Return the names of all devices, sorted; reads no file."""
    return list(_files())


def sockets(name: str) -> int:
    """Sockets of a server's processors by the device's name: one, or two that are one machine (``-2s``)."""
    return 2 if name.endswith("-2s") else 1


def _words(name: str) -> list[str]:
    """Split a name into lower-case words without noise: ``NVIDIA A100-SXM4-80GB`` -> ``a100 sxm 80gb``."""
    text = re.sub(r"(?<![a-z\d])(\d+)\s*g(?:i?b)?\b", r"\1gb", name.lower().replace("+", " ").replace("(r)", " "))
    text = re.sub(r"\b(rtx|gtx|rx)(?=\d)", r"\1 ", text)
    text = re.sub(r"\b(?:i?mac|macbook)(?:\s+(?:pro|air|mini|studio))?\b", " ", text)  # a Mac goes by its chip
    if re.search(r"\bm\d\b", text):
        text = re.sub(r"\b\d+[\s-]?cores?[\s-]cpu\b", " ", text)
        text = re.sub(r"\b(\d+)[\s-]?cores?\b", r"\1c", text)
    words: list[str] = []
    for word in re.split(r"[^a-z0-9.]+", text):
        words.extend(w for w in _SPELLING.get(word, word).split("-") if w)
    useful = [w for w in words if w not in _NOISE]
    return useful or words


def _gpu_cores(name: str) -> int:
    """GPU cores in the name of an Apple chip; 0 without."""
    found = re.search(r"-(\d+)c-", name)
    return int(found[1]) if found else 0


def _counted(name: str) -> tuple[str, str] | None:
    """The device and the number in a name such as ``2x h100`` or ``h100 x 2``; None where the letter is of the name (rtx3050)."""
    before = re.fullmatch(r"0*([1-9]\d*)\s*[x×*]\s*(.+)", name)
    if before:
        return resolve_device(before[2]), before[1]
    behind = re.fullmatch(r"(.+?)\s*[x×*]\s*0*([1-9]\d*)", name)
    if behind:
        with suppress(InputError):
            return resolve_device(behind[1]), behind[2]
    return None


def resolve_device(name: str) -> str:
    """Return the canonical name of the device that `name` means.

    Case, separators, makers' names and driver spellings are forgiven (``H100``, ``NVIDIA H100 80GB HBM3``,
    ``A100_SXM4_80GB``). The path of a device file (``my-card.yaml``) means that file's device. A name that fits nothing, or
    several devices that no alias decides, raises InputError naming the nearest.
    """
    plain = str(name).strip().lower()
    known = _files()
    if plain in known or plain in _OWN:
        return plain
    if (own := _own_file(str(name))) is not None:
        return own
    words = _words(plain)
    short = "-".join(words)
    for candidate in (short, ALIASES.get(plain, ""), ALIASES.get(short, "")):
        if candidate in known:
            return candidate
    wanted = set(words)
    fits = [k for k in known if wanted <= set(k.split("-"))] if wanted else []
    if len(fits) > 1:  # a server processor named without its sockets comes in pairs
        fits = [k for k in fits if sockets(k) == 2] or fits
    if len(fits) > 1:  # "M4" is not the Max, "4090" not the laptop's
        fits = [k for k in fits if not {"pro", "max", "ultra", "laptop"} & (set(k.split("-")) - wanted)] or fits
    if len(fits) > 1 and re.search(r"\bmac[\s-]?mini\b", plain):  # fewer cores of a plain chip are an iMac's
        most = max(_gpu_cores(k) for k in fits)
        fits = [k for k in fits if _gpu_cores(k) == most or {"pro", "max"} & wanted]
    if len(fits) > 1:  # "rtx 4080" is not the Super
        fits = [k for k in fits if len(set(k.split("-")) - wanted) == 1 and k.endswith("gb")] or fits
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise InputError(
            f"hardware '{name}' fits several devices: {', '.join(fits[:6])}{' ...' if len(fits) > 6 else ''}",
            where="hardware",
            mend=f"name one of them, for example '{fits[0]}'",
        )
    from hardware_profiles.machines import machine_named

    machine = machine_named(plain)
    if machine is not None:
        one, number = machine
        raise InputError(
            f"hardware '{name}' is a machine, not a device",
            where="hardware",
            mend=f"write hardware: {one}" + f"; it has {number}: tensor_parallel or replicas say how many" * (number > 1),
        )
    counted = _counted(plain)
    if counted:
        one, count = counted
        raise InputError(
            f"hardware '{name}' counts devices",
            where="hardware",
            mend=f"write hardware: {one}, with tensor_parallel: {count} for one server on all of them, or replicas: {count} for "
            "as many servers",
        )
    near = nearest(short, [*known, *ALIASES]) or nearest(plain, list(known))
    near = ALIASES.get(near, near) if near else None
    hint = f"did you mean '{near}'? " if near else ""
    raise InputError(
        f"unknown hardware '{name}'", where="hardware", mend=f"{hint}all: capacity-plan list hardware"
    )


@lru_cache(maxsize=128)
def _read(path: Path) -> dict[str, Any]:
    return _parsed(path)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(read_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"this is no YAML: {str(error).splitlines()[0]}", where=str(path), mend="correct it") from None
    if not isinstance(data, dict):
        raise InputError("a device file is a mapping", where=str(path))
    return data


_QUANTITIES = (
    "memory_bytes",
    "memory_bandwidth_bytes_per_s",
    "tdp_w",
    "node_size",
    "l2_bytes",
    "multiprocessors",
    "clock_hz",
    "idle_w",
    "pcie_bytes_per_s_per_direction",
    "inter_node_bytes_per_s_per_direction",
    "sustained_bandwidth_bytes_per_s",
    "kernel_error",
)
_UNITS: Mapping[str, tuple[tuple[str, ...], float, float]] = {
    "peak_flops_per_s": (("FLOP/s", "OP/s"), 1e9, 1e17),
    "bytes_per_s": (("byte/s",), 1e7, 1e15),
    "bytes": (("byte",), 1e5, 1e14),
    "hz": (("Hz",), 1e7, 1e11),
    "w": (("W",), 0.1, 1e5),
}
"""Unit of a number by the end of its key, and the least and most that one of it can be (assumed: orders of magnitude)."""
_TEXTS = ("title", "vendor", "kind", "architecture", "formats")
_KEYS = {*_QUANTITIES, *_TEXTS, "weight_only_formats", "kernel_profile", "peak_flops_per_s", "link"}
_FORMATS = ("bf16", "fp16", "fp32", "fp8", "fp4", "int8", "int4")
_PEAKS = ("bf16", "fp16", "fp32", "tf32", "fp8", "fp4", "int8")
_LINK_KEYS = ("kind", "topology", "bytes_per_s_per_direction", "peer_bytes_per_s_per_direction", "peer_access")


def read_device(path: Path, name: str, option: str | None = None) -> Device:
    """Return the device written in `path`, under `name`; `option` picks one of the file's options.

    Raises InputError naming the file and the key when something is missing, unknown or malformed.
    """
    raw = _read(path) if path.parent == DEVICES_DIR else _parsed(path)
    where = path.name
    sources = raw.get("sources", {})
    merged = {k: v for k, v in raw.items() if k not in ("sources", "options")}
    if option is not None:
        if option not in raw.get("options", {}):
            raise InputError(
                f"the file has no option '{option}'",
                where=f"{where}: options",
                mend="name the file after its options",
            )
        merged |= raw["options"][option]
    _check_keys(merged, _KEYS, (*_TEXTS, *_QUANTITIES[:4], "peak_flops_per_s"), where)
    _check_words([merged["kind"]], get_args(DeviceKind), "kind", where)
    for key in ("formats", "weight_only_formats"):
        _check_words(merged.get(key, []), _FORMATS, key, where)
    _check_words(merged["peak_flops_per_s"], _PEAKS, "peak_flops_per_s", where)
    if not {"bf16", "fp16", "fp32"} & set(merged["peak_flops_per_s"]):
        raise InputError("no peak in bf16, fp16 or fp32 is given", where=f"{where}: peak_flops_per_s", mend="give one")

    def quantity(value: Any, key: str) -> Quantity:
        found = read_quantity(value, sources, f"{where}: {key}")
        if found.value <= 0:
            raise InputError(f"{key} is {found.value:g}", where=where, mend="give a number above zero")
        kept = "peak_flops_per_s" if key in merged["peak_flops_per_s"] else key.removesuffix("_per_direction")
        for end, (units, least, most) in _UNITS.items():
            if kept == end or kept.endswith(f"_{end}"):
                if found.unit not in units:
                    raise InputError(f"{key} is in {found.unit}", where=where, mend=f"give it in {' or '.join(units)}")
                if not least <= found.value <= most:
                    mend = f"give it in {units[0]}, without a prefix such as kilo or tera"
                    raise InputError(f"{key} cannot be {found.value:g} {found.unit}", where=where, mend=mend)
                break
        return found

    link = None
    if (raw_link := merged.get("link")) is not None:
        _check_keys(raw_link, _LINK_KEYS, _LINK_KEYS[:3], f"{where}: link")
        _check_words([raw_link["topology"]], get_args(Topology), "link.topology", where)
        keys = ("bytes_per_s_per_direction", "peer_bytes_per_s_per_direction")
        rates = {k: quantity(raw_link[k], f"link.{k}") for k in keys if k in raw_link}
        through = bool(raw_link.get("peer_access", True))
        link = Link(kind=raw_link["kind"], topology=raw_link["topology"], peer_access=through, **rates)
    return Device(
        name=name,
        title=merged["title"] + (f", {option}" if option else ""),
        vendor=merged["vendor"],
        kind=merged["kind"],
        architecture=merged["architecture"],
        formats=tuple(merged["formats"]),
        weight_only_formats=tuple(merged.get("weight_only_formats", ())),
        peak_flops_per_s={k: quantity(v, k) for k, v in merged["peak_flops_per_s"].items()},
        link=link,
        kernel_profile=merged.get("kernel_profile"),
        **{k: quantity(merged[k], k) for k in _QUANTITIES if k in merged},
    )


def _check_keys(raw: object, known: Iterable[str], needed: Iterable[str], where: str) -> None:
    """Raise InputError for what is no mapping, an unknown key, or keys that lack."""
    if not isinstance(raw, Mapping):
        raise InputError(f"'{raw}' is no mapping", where=where, mend=f"give {', '.join(needed)}")
    if unknown := sorted(set(map(str, raw)) - set(known)):
        near = nearest(unknown[0], sorted(known))
        raise InputError(f"unknown key '{unknown[0]}'", where=where, mend=f"did you mean '{near}'?" if near else None)
    if missing := [key for key in needed if key not in raw]:
        said = ", ".join(f"'{key}'" for key in missing)
        raise InputError(
            f"{said} {'is' if len(missing) == 1 else 'are'} missing",
            where=where,
            mend="state it: a number as {value, unit, kind, source} (docs/how-to/own-device.md)",
        )


def _check_words(said: object, known: tuple[str, ...], key: str, where: str) -> None:
    """Raise InputError for words that are none of `known`, or for something else than a list or a mapping of words."""
    if not isinstance(said, Sequence | Mapping) or isinstance(said, str):
        raise InputError(f"'{said}' is no list", where=f"{where}: {key}", mend=f"give some of {', '.join(known)}")
    for word in said:
        if word not in known:
            raise InputError(f"unknown {key} '{word}'", where=f"{where}: {key}", mend=f"one of {', '.join(known)}")


@lru_cache(maxsize=256)
def _load(name: str) -> Device:
    path, option = _files()[name]
    return read_device(path, name, option)


def load_device(name: str) -> Device:
    """Return the device that `name` means (see :func:`resolve_device`); reads one file."""
    resolved = resolve_device(name)
    if resolved in _OWN:
        return _load_own(_OWN[resolved], resolved, written_ns(resolved))
    return _load(resolved)


def written_ns(resolved: str) -> int:
    """When the file of a user's own device was written last [ns]; 0 of shipped ones, which stay as they are."""
    return _OWN[resolved].stat().st_mtime_ns if resolved in _OWN else 0


@lru_cache(maxsize=16)
def _load_own(path: Path, name: str, written_ns: int) -> Device:
    """A device of a file as it was written at a time."""
    return read_device(path, name)


HBM_BYTES_PER_S = 3e12
"""Memory bandwidth that tells Blackwell with HBM from the rest [byte/s]. kind: assumed, 2026-11, between RTX PRO 6000 (1.8e12)
and B200 (7.7e12)."""


def stacked_blackwell(device: Device) -> bool:
    """Whether it is a Blackwell GPU with stacked memory, not a workstation's."""
    return device.architecture == "blackwell" and device.memory_bandwidth_bytes_per_s.value >= HBM_BYTES_PER_S


def device_word(name: str) -> str:
    """What one device of that name is called: a GPU, a machine (CPUs, Macs, processors with a GPU inside) or a device."""
    try:
        kind = load_device(name).kind
    except InputError:  # that of a run which knew it
        return "device"
    return {"gpu": "GPU", "asic": "device"}.get(kind, "machine")


def all_devices() -> list[Device]:
    """Return every device; reads every file (some tenths of a second)."""
    return [_load(name) for name in device_names()]


def provenance(device: Device) -> list[dict[str, Any]]:
    """Return a record (what, value, unit, kind, source, date, note) of every number of a device."""
    records: list[dict[str, Any]] = []
    for f in fields(device):
        value = getattr(device, f.name)
        if isinstance(value, Quantity):
            records.append(value.provenance(f.name))
        elif isinstance(value, Link):
            for g in fields(value):
                if isinstance(part := getattr(value, g.name), Quantity):
                    records.append(part.provenance(f"{f.name}.{g.name}"))
        elif isinstance(value, Mapping):
            records.extend(q.provenance(f"{f.name}.{key}") for key, q in value.items())
    return records
