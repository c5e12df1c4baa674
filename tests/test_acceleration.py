import os
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

from r2kd import ROOT, acceleration, models
from r2kd import frozen as frozen_module
from r2kd.frozen import frozen

import pytest
import torch
from conftest import Stream, fill
from torch import nn


def pixels(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def batchnorms(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize("name", models.NAMES)
def test_a_frozen_model_answers_as_the_model_does(name):
    model = fill(models.create(name, 100)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = frozen(model)
    assert batchnorms(folded) < batchnorms(model)
    assert not any(parameter.requires_grad for parameter in folded.parameters()) and not folded.training
    for size in (32, 64):
        with torch.no_grad():
            expected = model.eval()(pixels(size))
        torch.testing.assert_close(folded(pixels(size)), expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_after_each_convolution_of_a_resnet_no_batchnorm_is_left():
    assert batchnorms(frozen(models.create("resnet56", 10))) == 0


def test_in_bfloat16_only_convolutions_and_the_classifier_are_rounded():
    model = fill(models.create("wrn_16_2", 10)).eval()
    half = frozen(model, torch.bfloat16)
    kinds = {
        type(layer): {p.dtype for p in layer.parameters()} for layer in half.modules() if not list(layer.children())
    }
    assert kinds[nn.Conv2d] == kinds[nn.Linear] == {torch.bfloat16} and kinds[nn.BatchNorm2d] == {torch.float32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, expected = half(pixels(32, 8)), model(pixels(32, 8))
    assert logits.dtype == torch.bfloat16
    assert float((logits - expected).norm() / expected.norm()) < 0.03


def test_a_cpu_computes_in_float32():
    cpu = torch.device("cpu")
    assert acceleration.precision(cpu) == "float32"
    with acceleration.autocast(cpu, "float32"):
        assert models.create("resnet8", 10)(pixels(16)).dtype == torch.float32


FAULTS = """
import resource, torch
from r2kd import acceleration
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
assert acceleration.keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    printed = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    handed_back, kept = map(int, printed.split())
    assert handed_back > 100_000 and kept < handed_back / 10  # the heap may still grow once


def test_without_glibc_nothing_is_kept_and_nothing_breaks(monkeypatch):
    monkeypatch.setattr(acceleration.ctypes, "CDLL", lambda _: object())
    assert acceleration.keep_freed_memory() is False


def test_on_a_cpu_a_replayed_function_is_the_function():
    total = torch.zeros(3)
    replayed = acceleration.Replayed(acceleration.Lane(torch.device("cpu")))
    for _ in range(6):
        assert replayed(total.add_, torch.ones(3)) is total
    assert total.tolist() == [6, 6, 6]


@pytest.fixture
def gpu(monkeypatch):
    """A lane as on a GPU, whose captures are noted: (lane, what they were asked for, streams entered and left)."""
    captured, streams, main = [], [], Stream()

    @contextmanager
    def capture(graph, **mode):
        captured.append(mode)
        yield

    @contextmanager
    def entered(stream):
        streams.append(stream)
        try:
            yield
        finally:
            streams.append(main)

    for name, value in {
        "Stream": Stream,
        "stream": entered,
        "current_stream": lambda: main,
        "graph_pool_handle": lambda: "pool",
        "graph": capture,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None, reset=lambda: captured.append("reset")),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    acceleration._stream.cache_clear()
    yield acceleration.Lane(torch.device("cuda")), captured, streams
    acceleration._stream.cache_clear()


def test_a_lane_captures_on_its_stream_in_its_pool_and_other_threads_may_go_on_meanwhile(gpu):
    lane, captured, streams = gpu
    calls = []
    replayed = acceleration.Replayed(lane)
    for _ in range(8):
        for count in (2, 3):
            replayed(lambda x: calls.append(len(x)), torch.ones(count))
    assert captured == [{"pool": lane.pool, "stream": lane.stream, "capture_error_mode": "thread_local"}] * 2
    assert calls == [2, 3] * 4  # three eager calls and the captured one
    assert set(streams[::2]) == {lane.stream} and lane.stream not in streams[1::2]
    assert len(lane.graphs) == 2
    lane.release()
    assert not lane.graphs and captured[2:] == ["reset"] * 2
    device = torch.device("cuda")
    assert acceleration.Lane(device).stream is lane.stream is not acceleration.Lane(device, "teachers").stream


def test_what_a_lane_reads_is_kept_until_what_follows_waits_for_it(gpu):
    lane, _, _ = gpu
    replayed, given = acceleration.Replayed(lane), []
    main = torch.cuda.current_stream()
    for call in range(6):
        batch = torch.full((3,), float(call))
        given.append(weakref.ref(batch))
        replayed(torch.neg, batch)
        del batch
        kept = [one() is not None for one in given]
        assert kept == [False] * (call - 1) + [True] * min(call + 1, acceleration.AHEAD)
        assert len(main.waited) == max(0, call + 1 - acceleration.AHEAD)


@pytest.mark.parametrize("why", ["CUDA out of memory. Tried", "operation not permitted when stream is capturing"])
def test_what_cannot_be_captured_runs_call_by_call_and_lets_go_of_what_it_held(gpu, monkeypatch, capsys, why):
    lane, _, streams = gpu
    activations = []

    @contextmanager
    def broken(graph, **mode):
        nonlocal capturing
        capturing = True
        try:
            yield
        finally:
            capturing = False

    capturing = False
    monkeypatch.setattr(torch.cuda, "graph", broken)
    released, lane.pool, lane.stream.device_index = [], "broken", 0
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: released.append(pool), raising=False)

    def function(x):
        activation = x + 1
        activations.append(weakref.ref(activation))
        if capturing:
            raise torch.OutOfMemoryError(why)
        return activation * 2

    replayed = acceleration.Replayed(lane)
    assert [float(replayed(function, torch.ones(()))) for _ in range(6)] == [4.0] * 6
    assert all(activation() is None for activation in activations)
    assert capsys.readouterr().err == f"no CUDA graph, so slower: {why}\n"
    assert streams[-1] is not lane.stream and len(lane.graphs) == 1  # the failed one lives as long as the others
    assert released == [(0, "broken")] and lane.pool == "pool"


@pytest.fixture
def forget():
    """What is remembered of devices: before and after a test that plays one."""
    memories = (acceleration._lacking, acceleration._usable_gpu, acceleration.native_bfloat16)
    for memory in memories:
        memory.cache_clear()
    yield
    for memory in memories:
        memory.cache_clear()


def test_a_gpu_that_computes_nothing_is_left_alone_and_that_is_said_once(monkeypatch, capsys, forget):
    def ones(*_, device):
        if device != "cpu":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
        return torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(acceleration.torch, "ones", ones)
    assert {acceleration.resolve_device("auto") for _ in range(3)} == {torch.device("cpu")}
    assert capsys.readouterr().err == (
        "the GPU is left alone, it does not compute here (CUDA error: no kernel image is available for execution on the "
        "device): on the CPU instead\n"
    )
    with pytest.raises(ValueError, match="device 'cuda' is not to be had here: CUDA error: no kernel image"):
        acceleration.resolve_device("cuda")


@pytest.mark.parametrize("name", ["mps", "meta", "xpu:0", "gpu", ""])
def test_a_device_that_would_go_wrong_unsaid_is_refused(name):
    with pytest.raises(ValueError, match="is not supported: auto, cpu, cuda or cuda:1 are"):
        acceleration.resolve_device(name)


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch, forget):
    current = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(torch._utils._get_device_index(device)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(acceleration, "_lacking", lambda name: "")
    assert acceleration.resolve_device("cuda:1") == torch.device("cuda:1")
    assert acceleration.resolve_device("auto") == torch.device("cuda:1")
    assert current == [0, 1, 1]


@pytest.mark.parametrize("native", [True, False])
def test_by_itself_a_gpu_computes_in_bfloat16_where_it_has_it_and_a_cpu_in_float32(monkeypatch, native):
    asked = []
    monkeypatch.setattr(acceleration, "native_bfloat16", lambda device: asked.append(device) or native)
    gpu, cpu = torch.device("cuda:1"), torch.device("cpu")
    assert acceleration.precision(gpu) == ("bfloat16" if native else "float32") and asked == [gpu]
    assert acceleration.precision(cpu) == acceleration.precision(gpu, "float32") == "float32"
    assert acceleration.precision(cpu, "bfloat16") == acceleration.precision(gpu, "bfloat16") == "bfloat16"


@pytest.mark.parametrize("flags", ["fpu avx512_bf16 sse", "fpu amx_bf16", "fp asimd bf16"])
def test_a_cpu_tells_by_its_flags_whether_it_has_bfloat16(monkeypatch, tmp_path, flags, forget):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(acceleration, "Path", lambda _: cpuinfo)
    assert not acceleration.native_bfloat16(torch.device("cpu"))
    acceleration.native_bfloat16.cache_clear()
    cpuinfo.write_text(f"flags : {flags}\n")
    assert acceleration.native_bfloat16(torch.device("cpu"))
    acceleration.native_bfloat16.cache_clear()
    cpuinfo.write_text("flags : fpu avx512f avx512_vnni notbf16\n")
    assert not acceleration.native_bfloat16(torch.device("cpu"))


def test_exact_is_float32_in_earnest_and_puts_back_what_was_allowed():
    def allowed():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with acceleration.exact():
            assert allowed() == (False, False)
        assert allowed() == (True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_a_convolution_and_its_relu_are_one_operation_in_bfloat16_on_a_cpu_alone():
    model = fill(models.create("resnet20", 10))

    def joined(dtype):
        return sum(type(layer).__name__ == "_ConvolutionReLU" for layer in frozen(model, dtype).modules())

    assert (joined(torch.bfloat16), joined(torch.float32)) == (19, 0)


@pytest.mark.parametrize("other", [(2, 4, 8, 8), (4, 1, 1), (1,)])
def test_what_a_convolution_is_added_to_may_have_to_be_repeated(other):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
            self.other = nn.Parameter(torch.randn(other, generator=torch.Generator().manual_seed(0)))

        def forward(self, images):
            return self.relu(self.convolution(images) + self.other)

    model = Residual().eval()
    half = frozen(model, torch.bfloat16)
    assert any(type(layer).__name__ == "_ConvolutionReLU" for layer in half.modules())
    with torch.no_grad():
        torch.testing.assert_close(half(pixels(8)).float(), model(pixels(8)), rtol=0.02, atol=0.02)


def test_a_torch_without_the_joined_operation_does_without(monkeypatch):
    monkeypatch.setattr(frozen_module, "_can_join", lambda: False)
    half = frozen(models.create("resnet8", 10), torch.bfloat16)
    assert not any(type(layer).__name__ == "_ConvolutionReLU" for layer in half.modules())


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_wait_without_spinning_unless_the_user_says_how(given, expected):
    ours = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    asked = [sys.executable, "-c", "import os, r2kd; print(os.environ.get('GOMP_SPINCOUNT'))"]
    printed = subprocess.run(asked, env=ours | given, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == expected


@pytest.mark.parametrize("path", [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "tests" / "conftest.py"])
def test_r2kd_is_imported_before_torch_which_reads_how_threads_wait(path):
    text = path.read_text()
    first = min(text.find(word) for word in ("import r2kd", "from r2kd") if word in text)
    assert "import torch" not in text or first < text.index("import torch")


CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets torch's number of threads, until the test is over."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_side_by_side_each_call_has_its_share_of_the_threads_and_the_program_keeps_all(threads):
    threads(4)
    together, seen = threading.Barrier(2), []

    def look(item):
        together.wait(timeout=20)  # two at a time, or never
        seen.append((item, torch.get_num_threads()))

    with acceleration.SideBySide(CPU, threads=2) as side_by_side:
        assert side_by_side.threads == 2 and torch.get_num_threads() == 4
        side_by_side(look, "abcd")
        assert sorted(seen) == [("a", 2), ("b", 2), ("c", 2), ("d", 2)]
        assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


@pytest.mark.parametrize(("allowed", "asked", "own"), [(4, None, 4), (4, 4, 4), (4, 9, 4), (1, 1, 1)])
def test_with_nothing_to_share_calls_run_in_the_program_one_after_the_other(threads, allowed, asked, own):
    threads(allowed)
    seen = []
    with acceleration.SideBySide(CPU, asked) as side_by_side:
        side_by_side(lambda item: seen.append((item, threading.current_thread())), "abc")
    assert seen == [(item, threading.main_thread()) for item in "abc"] and side_by_side.threads == own


def test_a_gpus_calls_run_in_the_program(threads):
    threads(4)
    assert acceleration.SideBySide(torch.device("cuda"), threads=1)._pool is None


def test_what_a_call_raises_comes_out_once_the_others_are_done(threads):
    threads(2)
    done = []

    def call(item):
        if item == "a":
            raise FloatingPointError("a is not finite")
        done.append(item)

    raised = pytest.raises(FloatingPointError, match="a is not finite")
    with acceleration.SideBySide(CPU, threads=1) as side_by_side, raised:
        side_by_side(call, "abcd")
    assert sorted(done) == ["b", "c", "d"]
