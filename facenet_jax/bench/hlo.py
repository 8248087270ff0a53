"""What a compiled TPU program costs by its compiler's estimate, read from the text of the program.

`compiled.as_text()` names for each scheduled instruction the cycles that XLA:TPU's cost model gives
it, and a stack of source lines. The walk starts at ENTRY and takes the body of a loop as often as
it runs. Collectives and kernels (custom calls) have no honest estimate and count as none; neither
have copies in the background, which bring to the chip's fast memory what is needed next.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from facenet_jax.bench.collectives import BITS, Collective, collectives

HEADER = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"^\S+ ([a-z][a-z\-]*)\(")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
FRAME = re.compile(r"stack_frame_id=(\d+)")
NAME = re.compile(r'op_name="([^"]*)"')
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TYPE = re.compile(r"(\w+)\[([\d,]*)\]")
CHANNEL = re.compile(r"channel_id=(\d+)")
CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")

NO_WORK = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "iota", "broadcast"}
"""Operations of a fusion that say nothing about what it does."""

MOVING = {"copy", "transpose", "reshape", "concatenate", "pad", "slice", "dynamic-slice"}
"""Operations that only bring elements to other places."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    text: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate, 0 where it gives none."""
        found = CYCLES.search(self.text)
        return int(found[1]) if found else 0

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it names."""
        branches = BRANCHES.search(self.text)
        if branches:
            return tuple(name.strip(" %") for name in branches[1].split(","))
        return tuple(CALLED.findall(self.text))

    @property
    def operation(self) -> str:
        """The path of the JAX operation that it was made for, as JAX names it."""
        found = NAME.search(self.text)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Cost:
    """An instruction, and how often a call of the program runs it."""

    instruction: Instruction
    times: int
    source: str  # "file.py:line function", "" where the program does not say
    moves: bool  # a copy or a change of layout, nothing else
    takes: bool  # takes the entry of a layer out of a stack of them, nothing else

    @property
    def cycles(self) -> int:
        """Of all its runs."""
        return self.instruction.cycles * self.times


class Program:
    """The text of a compiled program, taken apart.

    `steps` is how often a loop runs that has no constant number of runs: that over training steps.
    """

    def __init__(self, text: str, steps: int = 1):
        self.steps = steps
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        self.tables = tables(text)
        current: list[Instruction] = []
        for line in text.splitlines():
            if header := HEADER.match(line):
                current = self.computations.setdefault(header[1], [])
                self.entry = header[1] if line.startswith("ENTRY") else self.entry
            elif (found := INSTRUCTION.match(line)) and (op := opcode(found[2])):
                current.append(Instruction(found[1], op, found[2]))

    @functools.cached_property
    def costs(self) -> list[Cost]:
        """Every instruction that is scheduled by itself, with how often it runs."""
        return list(self.walk(self.entry, 1))

    def walk(self, name: str, times: int) -> Iterator[Cost]:
        """The costs of a computation that runs `times` times, and of those that it calls."""
        for each in self.computations[name]:
            if each.opcode == "while":
                condition = re.search(r"condition=%([\w.\-]+)", each.text)[1]
                body = re.search(r"body=%([\w.\-]+)", each.text)[1]
                yield from self.walk(body, times * self.trips(each, condition))
            elif each.opcode == "conditional":
                branches = [list(self.walk(branch, times)) for branch in each.called]
                yield from max(branches, key=lambda costs: sum(cost.cycles for cost in costs))
            elif each.opcode == "call":
                yield from self.walk(each.called[0], times)
            else:
                takes = self.work(each) == {"dynamic-slice"}
                moves = self.moves(each) and not takes
                yield Cost(each, times, self.source(each), moves, takes)

    def trips(self, loop: Instruction, condition: str) -> int:
        """How often a loop runs: what is known of it, or the one constant of its condition."""
        if known := TRIPS.search(loop.text):
            return int(known[1])
        texts = [x.text for x in self.computations[condition]]
        for each in self.computations[condition]:
            texts += [x.text for name in each.called for x in self.computations[name]]
        found = {int(value) for text in texts for value in CONSTANT.findall(text)} - {0}
        return found.pop() if len(found) == 1 else self.steps

    def moves(self, each: Instruction) -> bool:
        """Whether an instruction copies or changes the layout and computes nothing.

        One that changes the type of the elements as well is a conversion, and none of these.
        """
        if each.opcode in ("copy", "transpose"):
            return True
        if each.opcode != "fusion":
            return False
        found = (re.findall(r"^\(?(bf16|f32)\[", x.text) for x in self.inside(each))
        types, work = {kind for kinds in found for kind in kinds}, self.work(each)
        return bool(work) and work <= MOVING and len(types) == 1

    def inside(self, each: Instruction) -> list[Instruction]:
        """The instructions of the computations that an instruction names."""
        return [x for name in each.called for x in self.computations.get(name, ())]

    def work(self, each: Instruction) -> set[str]:
        """The operations of a fusion that say what it does; of others their own."""
        if each.opcode != "fusion":
            return {each.opcode}
        return {x.opcode for x in self.inside(each)} - NO_WORK

    def source(self, each: Instruction) -> str:
        """The innermost line of our own code that an instruction comes from."""
        found = FRAME.search(each.text)
        frame = int(found[1]) if found else 0
        files, functions, locations, frames = self.tables
        seen = set()
        while frame in frames and frame not in seen:
            seen.add(frame)
            location, parent = frames[frame]
            file, function, line = locations[location]
            if "site-packages" not in files[file]:
                return f"{short(files[file])}:{line} {functions[function].replace('.<locals>', '')}"
            frame = parent
        return ""

    def collectives(self) -> list[tuple[Collective, int]]:
        """(a collective, how often it runs), for all of them.

        A fusion may hold one. A TPU divides a sum over its devices in a fusion of an all-reduce
        and a slice of its result, which sends what a reduce-scatter sends. It also cuts one into
        its start, steps in the fusions of other work, and its end, which name one channel.
        """
        found, held = [], [(cost, self.inside_fusion(cost.instruction)) for cost in self.costs]
        starts = {channel(x) for cost, inside in held if starts_one(cost) for x in inside} - {""}
        for cost, inside in held:
            each = cost.instruction
            fused = each.opcode == "fusion"
            if fused and not starts_one(cost) and {channel(x) for x in inside} & starts:
                continue  # a later part of what was started
            one = [x for line in inside for x in collectives(f"%x = {line.text}")]
            divides = any(x.opcode == "dynamic-slice" for x in inside)
            if divides and [x.kind for x in one] == ["all-reduce"]:
                one = collectives(f"%x = {each.text.split(' fusion(')[0]} reduce-scatter(")
            found += [(x, cost.times) for x in one]
        return found

    def inside_fusion(self, each: Instruction) -> list[Instruction]:
        """The instructions of a fusion, or the one that it is."""
        return self.inside(each) if each.opcode == "fusion" else [each]

    def background(self) -> float:
        """Bytes copied between the memories of a device while other instructions run."""
        total = 0.0
        for cost in self.costs:
            if cost.instruction.opcode in ("copy-start", "slice-start"):
                # (result, operand, ...) or ((operand), result, ...), of which a slice is the part.
                dtype, shape = TYPE.findall(cost.instruction.text)[1]
                elements = math.prod(int(length) for length in shape.split(",") if length)
                total += cost.times * elements * BITS[dtype] / 8
        return total


def starts_one(cost: Cost) -> bool:
    """Whether an instruction is the start of a collective that others go on with."""
    return cost.instruction.name.startswith("async-collective-start")


def channel(each: Instruction) -> str:
    """The number by which the parts of a collective know each other, "" where there is none."""
    found = CHANNEL.search(each.text)
    return found[1] if found else ""


def opcode(text: str) -> str:
    """The operation of `TYPE operation(arguments)`, where TYPE may be a tuple of tuples."""
    if text.startswith("("):
        depth = 0
        for i, letter in enumerate(text):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                text = "x" + text[i + 1 :]
                break
    found = OPCODE.match(text)
    return found[1] if found else ""


def tables(text: str) -> tuple[Mapping, Mapping, Mapping, Mapping]:
    """The paths of files, names of functions, places and frames that instructions refer to.

    By number: a place is (file, function, line), a frame (place, frame of the caller).
    """
    found: dict[str, dict] = collections.defaultdict(dict)
    part = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            break
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            part = line
        elif part and (row := re.match(r"^(\d+) (.*)$", line)):
            numbers = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row[2])}
            found[part][int(row[1])] = {
                "FileLocations": lambda n: (n["file_name_id"], n["function_name_id"], n["line"]),
                # Numbers of parents are one too large, so that 0 can stand for none.
                "StackFrames": lambda n: (n["file_location_id"], n.get("parent_frame_id", 0) - 1),
            }.get(part, lambda n, name=row[2]: name.strip('"'))(numbers)
    return tuple(
        found[name] for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
    )


def short(path: str) -> str:
    """A path from the last folder `facenet_jax` on, or its file alone."""
    _, found, after = path.rpartition("/facenet_jax/")
    return f"facenet_jax/{after}" if found else path.rpartition("/")[2]
