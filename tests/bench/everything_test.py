import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import types

import pytest
from jax.profiler import ProfileData

from data_tfds import sets, sizes
from data_tfds.errors import UserError
from facenet_jax.bench import kernels
from facenet_jax.bench.everything import LATER, Request, everything
from facenet_jax.bench.everything_points import points
from facenet_jax.commands import benchmark
from tests.support import tiny_run as tiny

GPU = {
    "device": "1 x NVIDIA Test",
    "platform": "gpu",
    "driver": "580.1",
    "device_limit": 2**36,
    "python": "3.12.1",
    "packages": {"jax": "0.11.2"},
    "commit": None,
    "peak_flops_per_second": 5e14,
    "peak_how": "best of 10 products",
    "refused": {"train": "odd number of tokens", "embed": ""},
    "torch": "",
}
NEEDED = [
    "facenet_jax.commands.benchmark",
    "facenet_jax.bench.everything_child",
    "facenet_jax.bench.alternate",
    "facenet_jax.inputs.sampler",
    "configs.wmveid863",
]
"""The modules that a measurement needs."""

SITE = """
import sys

BLOCKED = {
    "PIL", "array_record", "clu", "grain", "safetensors", "scipy", "tensorboard", "tensorflow",
    "tensorflow_datasets", "torch", "tqdm",
}


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked", name=name)


sys.meta_path.insert(0, Finder())
"""
"""sitecustomize.py: packages that are not there, in a process and in those that it starts."""

CONFIG = """
from configs import common


def get_config():
    c = common.get_config("three_stream")
    c.data.name, c.data.image_size = "msvr310", (16, 8)
    c.model.variant = ""
    c.model.width, c.model.depth, c.model.heads, c.model.patch = 8, 1, 1, 8
    c.train.identities_per_batch, c.train.samples_per_identity = 2, 2
    c.evaluate.batch = 8
    return c
"""


class Fake:
    """A runner and its clock: every measurement takes `seconds`, or what `special` says of it."""

    def __init__(self, seconds=10.0, **special):
        self.seconds, self.special = seconds, special
        self.time, self.asked = 0.0, []

    def now(self):
        return self.time

    def __call__(self, point, request, device, left):
        self.asked.append(point.name)
        assert left == pytest.approx(60 * request.minutes - self.time)
        answer = self.special.get(point.what, {})
        self.time += self.seconds
        if callable(answer):
            answer = answer(point, request)
        if point.what == "device":
            return {"result": GPU | answer}
        assert device == GPU
        return answer if answer.keys() & {"failed", "stopped"} else {"result": figures() | answer}


def figures():
    return {
        "rate": 1000.0,
        "rate_quartiles": [990.0, 1010.0],
        "ms_per_step": 32.0,
        "mfu": 0.4,
        "memory": {"device_peak": 2**33},
        "compile_seconds": 20.0,
        "flops_per_sample": 10**11,
        "remat": "none",
        "unroll": 1,
        "device": GPU["device"],
    }


def request(out, minutes=100.0, **changes):
    config = tiny.config(data__name="wmveid863", model__remat="auto", **changes)
    return Request(config, "tiny.py", (), minutes, out, ("facenet", "benchmark"))


def measured(asked, fake):
    return everything(asked, fake, fake.now)


def written(folder):
    return json.loads((folder / "benchmark.json").read_text())


def test_all_is_measured_in_order_of_worth(tmp_path):
    asked, fake = request(tmp_path), Fake()
    content = measured(asked, fake)
    whats = list(dict.fromkeys(point.what for point in points(asked.config)))
    assert whats == ["device", "embed", "train", "peer", "first", "kernels", "demo"]
    names = [point.name for point in points(asked.config)]
    assert len(set(names)) == len(names)
    assert fake.asked == [name for name in names if name not in content["left_out"]]
    assert fake.asked[1:3] == ["embed, the recipe, batch 8", "train, the recipe, batch 8"]
    assert content == written(tmp_path)
    for batch in (32, 64, 128, 256):
        for remat in ("none", "dots"):
            for unroll in (1, 0):
                name = f"train, batch {batch // 2} x 2, remat {remat}, attention "
                assert f"{name}xla, unroll {unroll}" in fake.asked
                assert (
                    content["left_out"][f"{name}cudnn, unroll {unroll}"]
                    == (GPU["refused"]["train"])
                )
    assert "embed, batch 256, attention cudnn" in fake.asked
    assert "TensorFlow Datasets" in content["left_out"]["demo"]


def test_the_recipe_is_not_measured_twice(tmp_path):
    asked = request(tmp_path, train__identities_per_batch=16)
    content = measured(asked, Fake())
    twice = "train, batch 16 x 2, remat none, attention xla, unroll 1"
    assert "which took remat none, unroll 1" in content["left_out"][twice]
    asked = request(tmp_path / "other", train__identities_per_batch=16)
    asked.config.model.update({"remat": "none", "unroll": 1})
    assert twice not in [point.name for point in points(asked.config)]


def test_changes_fit_the_config(tmp_path):
    for point in points(request(tmp_path).config):
        config = request(tmp_path).config
        config.update_from_flattened_dict(point.changes)
        if "remat" in point.options:
            assert config.model.remat == point.options["remat"]
            assert f"{config.train.identities_per_batch} x 2," in point.name


def test_the_minutes_are_kept_and_the_next_call_goes_on(tmp_path):
    fake = Fake(seconds=25)
    content = measured(request(tmp_path, minutes=2), fake)
    assert len(content["measurements"]) == 4  # 100 s; the fifth would end at 125
    assert fake.time <= 120
    assert LATER in content["left_out"].values()
    again = Fake(seconds=25)
    content = measured(request(tmp_path, minutes=2), again)
    assert "matrix product" not in again.asked
    assert not {*again.asked} & {*fake.asked}
    assert [*content["measurements"]] == fake.asked + again.asked
    rest = Fake()
    content = measured(request(tmp_path), rest)
    assert LATER not in content["left_out"].values()
    assert measured(request(tmp_path), Fake())["measurements"] == content["measurements"]


def test_what_is_cheap_still_fits_where_something_else_does_not(tmp_path):
    class Slow(Fake):
        def __call__(self, point, *others):
            self.seconds = 50 if point.what == "train" else 5
            return super().__call__(point, *others)

    fake = Slow()
    measured(request(tmp_path, minutes=1.5), fake)
    assert [name.partition(",")[0] for name in fake.asked] == [
        *("matrix product", "embed", "train"),
        *("embed",) * 4,
    ]
    assert fake.time <= 90


def test_a_failure_is_written_down_and_ends_nothing(tmp_path):
    sentence = "JaxRuntimeError (RESOURCE_EXHAUSTED:\nout | of memory)"
    content = measured(request(tmp_path), Fake(train={"failed": sentence}))
    failed = [name for name, x in content["measurements"].items() if "failed" in x]
    assert "train, the recipe, batch 8" in failed
    assert "command to first step" in content["measurements"]
    lines = (tmp_path / "benchmark.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| train, the recipe, batch 8 |")]
    assert "failed: JaxRuntimeError (RESOURCE_EXHAUSTED: out / of memory); took 10 s |" in row
    again = Fake()
    measured(request(tmp_path), again)
    assert again.asked == []


def test_each_is_written_as_soon_as_it_is_there(tmp_path):
    def killed(point, asked):
        assert len(written(asked.out)["measurements"]) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(request(tmp_path), Fake(train=killed))
    assert [*written(tmp_path)["measurements"]] == ["matrix product", "embed, the recipe, batch 8"]


def test_what_the_minutes_ended_is_done_again(tmp_path):
    content = measured(request(tmp_path), Fake(first={"stopped": "it was ended with them"}))
    assert "command to first step" not in content["measurements"]
    assert content["left_out"]["command to first step"].startswith(LATER)
    again = Fake()
    measured(request(tmp_path), again)
    assert again.asked == ["command to first step"]


def test_the_table_says_what_the_file_holds(tmp_path):
    peer = {"facenet_jax": {"median_ms": 10.0}, "ratio": 1.5}
    peer["PyTorch"] = {"median_ms": 15.0, "version": "torch 2", "how": "eager"}
    fake = Fake(
        peer=peer,
        first={"cold_seconds": 50.0, "warm_seconds": 9.0},
        kernels={"kernels": [{"name": "gemm", "seconds": 1.0, "runs": 3, "share": 0.25}]},
    )
    content = measured(request(tmp_path), fake)
    text = (tmp_path / "benchmark.md").read_text()
    table, _, rest = text.partition("Left out:")
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [*content["measurements"]]
    assert len({row.count("|") for row in rows}) == 1
    assert all(reason.rstrip(".") in rest for reason in content["left_out"].values())
    assert "1000 (990 to 1010) | 32 | 40.0 % | 8.00 GiB | 20.0 s" in text
    assert "torch 2 (eager) 15 ms, ratio 1.50" in text
    assert "cold cache 50.0 s; warm cache 9.0 s" in text
    assert "`gemm` 25.0 %" in text
    assert "1 x NVIDIA Test, driver 580.1, 64.00 GiB for JAX; Python 3.12.1, jax 0.11.2" in text


def test_on_a_cpu_what_needs_a_gpu_is_left_out(tmp_path):
    cpu = {"platform": "cpu", "torch": "no GPU", "refused": {"train": "a CPU", "embed": "a CPU"}}
    fake = Fake(device=cpu)
    fake_device = GPU | cpu

    def run(point, asked, device, left):
        assert device in ({}, fake_device)
        return fake(point, asked, GPU, left)

    left = everything(request(tmp_path), run, fake.now)["left_out"]
    for name in ("costliest kernels", "train, beside PyTorch (eager)"):
        assert name in left
    assert left["embed, batch 64, attention cudnn"] == "a CPU"


def test_a_model_without_an_option_says_so(tmp_path):
    config = tiny.config("three_stream", data__name="wmveid863")
    with config.unlocked():
        del config.model.attention
    found = {point.name: point for point in points(config)}
    assert "no such option" in found["config.model.attention"].absent
    assert "train, batch 16 x 2, remat none, unroll 1" in found
    assert "embed, batch 64" in found


def test_another_device_or_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"1 x NVIDIA Test, and this machine has 2 x Other"):
        measured(request(tmp_path), Fake(train={"device": "2 x Other"}))
    other = dataclasses.replace(request(tmp_path), overrides=("--config.seed=1",))
    with pytest.raises(UserError, match="another folder for --out"):
        measured(other, Fake())
    (tmp_path / "benchmark.json").write_text("[]")
    with pytest.raises(UserError, match="is not what this command wrote"):
        measured(request(tmp_path), Fake())


def test_without_a_device_there_is_one_sentence(tmp_path):
    def run(*_):
        return {"failed": "no device"}

    with pytest.raises(UserError, match="Nothing can be measured here: no device"):
        everything(request(tmp_path), run)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--everything"], "--minutes 9"),
        (["--everything", "--minutes=1", "--out=x", "--chunks=3"], "--chunks by itself"),
        (["--minutes=1"], "options of --everything"),
        (["--everything", "--minutes=1", "--out=x", "--config.seed", "3"], "as one word"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["facenet", f"--config={tiny.BASELINE}", *arguments])
    with pytest.raises(UserError, match=text):
        benchmark.main()
    assert not any(tmp_path.iterdir())


def test_the_known_sizes_are_those_of_the_data_sets():
    for name, (modalities, size) in sizes.KNOWN.items():
        assert sets.size(name) == size
        assert modalities == sets.lookup(name)[0].MODALITIES


def plane(name, **lines):
    """A plane of a trace in text: {line: [(event, nanoseconds), ...]}."""
    numbers = {}
    parts = [f'planes {{ name: "{name}"']
    for line, events in lines.items():
        parts.append(f'lines {{ name: "{line.replace("_", " ")}"')
        for event, length in events:
            number = numbers.setdefault(event, len(numbers) + 1)
            parts.append(f"events {{ metadata_id: {number} duration_ps: {1000 * length} }}")
        parts.append("}")
    for event, number in numbers.items():
        value = f'value {{ id: {number} name: "{event}" }}'
        parts.append(f"event_metadata {{ key: {number} {value} }}")
    return " ".join([*parts, "}"])


def test_the_costliest_kernels_of_all_streams():
    first = plane(
        "/device:GPU:0",
        Stream_1=[("gemm", 600), ("softmax", 100), ("gemm", 200)],
        Stream_2=[("copy", 100)],
        XLA_Modules=[("jit_chunk", 9000)],
    )
    data = ProfileData.from_text_proto(first + plane("/host:CPU", python=[("main", 10**6)]))
    gemm, second = kernels.ranked(data, 2)
    assert gemm == {
        "name": "gemm",
        "seconds": pytest.approx(800e-9),
        "runs": 2,
        "share": pytest.approx(0.8),
    }
    assert second["name"] in ("softmax", "copy")


def test_a_trace_without_kernels_or_none_at_all_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no trace"):
        kernels.costliest(tmp_path)
    with pytest.raises(UserError, match="no kernels"):
        kernels.ranked(types.SimpleNamespace(planes=[]), 3)


def bare(folder: pathlib.Path) -> dict[str, str]:
    """The environment of a process that cannot import what only data sets need."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(textwrap.dedent(SITE))
    paths = os.pathsep.join([str(folder / "site"), str(tiny.ROOT)])
    return tiny.environment() | {"PYTHONPATH": paths}


def test_measuring_imports_no_package_for_data_sets(tmp_path):
    program = "import importlib\n"
    program += "".join(f"importlib.import_module({name!r})\n" for name in NEEDED)
    program += "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()\n"
    program += "try:\n    import PIL\nexcept ImportError:\n    print('bare')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=bare(tmp_path), capture_output=True, text=True
    )
    assert done.stdout == "bare\n", done.stderr


@pytest.mark.slow  # four processes, each with JAX
def test_a_run_with_few_packages(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    command = [sys.executable, str(tiny.ROOT / "main.py"), "benchmark", "--everything"]
    command += ["--minutes=0.6", "--out=found", "--config=small.py", "--config.seed=3"]
    done = subprocess.run(
        command, env=bare(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    content = written(tmp_path / "found")
    found = content["measurements"]
    assert {"matrix product", "embed, the recipe, batch 8"} < {*found}
    assert all("result" in entry for entry in found.values()), found
    assert content["overrides"] == ["--config.seed=3"]
    assert sum(entry["seconds"] for entry in found.values()) < 36
    embedded = found["embed, the recipe, batch 8"]["result"]
    assert embedded["rate"] > 0
    assert embedded["peak_how"] == found["matrix product"]["result"]["peak_how"]
    assert "train, beside PyTorch (eager)" in content["left_out"]
    assert (tmp_path / "found" / "benchmark.md").read_text() in done.stdout
