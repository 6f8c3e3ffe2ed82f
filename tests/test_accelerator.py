"""scripts/accelerator: what it does with processes that die, and what it concludes. On a CPU; speed is not tested."""

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import accelerator  # noqa: E402
import accelerator_report  # noqa: E402
from accelerator_plan import ARMS, FULL, QUICK, Arm, Case, applies, cases  # noqa: E402

# -- decisions -------------------------------------------------------------------------------------------------------


def microseconds(case, arm):
    """A GPU on which small work is bound by launches, loops in command buffers help, and cuDNN is a little faster."""
    work = case.hidden**2 * case.runs * (0.5 if case.dtype == "bfloat16" else 1.0) / 1e3
    if arm == "torch":
        return 4000.0 if case.kind == "decoder" else 460.0
    if case.kind == "product":
        return work / 10
    launches = 500.0 if arm in ("default", "off") else 400.0
    return max(launches / case.unroll, work) * (1.3 if case.backward == "autodiff" else 1.0)


def results(microseconds=microseconds, arms=None, platform="gpu", value=lambda case, arm: 1.0):
    about = {"platform": platform, "device": "a device", "versions": {"jax": "1"}}
    status = {arm.name: {"flags": arm.flags, "gone": "", "trouble": [], "about": about} for arm in ARMS}
    for name, changes in (arms or {}).items():
        status[name] |= changes
    records = []
    for case in cases(FULL):
        found = {}
        for arm in ARMS:
            if not applies(case, arm):
                continue
            seconds = microseconds(case, arm.name) * 1e-6
            found[arm.name] = accelerator.quartiles([0.9 * seconds, seconds, 1.2 * seconds])
            found[arm.name] |= {"prepared": 1.0, "value": value(case, arm.name)}
            if status[arm.name]["gone"]:
                found[arm.name] = {"missing": status[arm.name]["gone"]}
        records.append({"name": str(case), **vars(case), "arms": found})
    sizes = {name: getattr(FULL, name) for name in ("hidden", "runs", "types", "unrolled")}
    return {"device": about, "sizes": sizes, "seconds": 500.0, "arms": status, "cases": records}


def told(found, *words):
    """The only line of the decisions that has all the words."""
    (line,) = [line for line in accelerator_report.decisions(found) if all(word in line for word in words)]
    return line


def test_the_rule():
    found = results()
    assert "8 runs take 1.00 times the time of one: bound by launches" in told(
        found, "gradient H=128 tensorfloat32", "8 runs"
    )
    # 512^2 * 8 / 1e3 against 500.
    assert "8 runs take 4.19 times the time of one: bound by work" in told(found, "train H=512 tensorfloat32", "8 runs")
    # Work is 10 products, so 10 / 3 of the floor.
    assert "3.3 times its three products" in told(found, "H=512 R=32 tensorfloat32", "products")
    assert told(found, "H=512 R=32 tensorfloat32", "products").endswith("write the kernel for LSTM and GRU.")
    near = results(lambda case, arm: microseconds(case, arm) * (4 if case.kind == "product" else 1))
    assert told(near, "H=512 R=32 tensorfloat32", "products").endswith("ship JAX alone.")
    between = results(lambda case, arm: microseconds(case, arm) * (1.33 if case.kind == "product" else 1))
    assert "nothing is decided" in told(between, "H=512 R=32 tensorfloat32", "products")

    decoder = told(found, "decoder with input feeding, H=128 tensorfloat32")
    assert "8.00 times as fast as PyTorch's loop; target 5: reached; at best 10.00 (decoder H=128" in decoder
    assert decoder.endswith("R=1 tensorfloat32 [while]).")
    encoder = told(found, "encoder, H=512 tensorfloat32")
    assert "0.92 times as fast as PyTorch's cuDNN; target 0.9: reached" in encoder
    # Unrolled by all 30 steps launches cost nothing: 262 of work against 460.
    assert "at best 1.75 (gradient H=512" in encoder
    for dtype in ("float32", "tensorfloat32"):
        together = told(found, f"32 training runs of SCAN's size in one program, {dtype}:")
        assert together.endswith("1.05 times the time of one; target 3: reached.")
    scans = told(found, "LSTM gradient H=128 R=1 tensorfloat32: own")
    assert "own backward 1.30 times as fast as autodiff; unroll=5 5.00 times as fast as 1" in scans


def test_a_flag_is_adopted_only_if_it_is_faster_equal_and_stable():
    def fast(case, arm):
        return microseconds(case, arm) / (1.0 if arm in ("default", "off") else 1.5)

    found = results(fast)
    assert told(found, "- while:").endswith("adopt: faster, equal in numbers, stable.")
    assert "not 1.15 times as fast" in told(found, "- off:")

    died = results(fast, {"while": {"trouble": ["the process ended with -6"]}})
    assert "do not adopt: not stable (the process ended with -6)" in told(died, "- while:")

    wrong = Case("train", 128, 8)
    other = results(fast, value=lambda case, arm: 1.01 if (case, arm) == (wrong, "while") else 1.0)
    assert f"do not adopt: other numbers in {wrong}." in told(other, "- while:")
    assert "adopt: faster, equal" in told(other, "- while_unrolled:")

    unknown = {"gone": "this jaxlib does not know the flag: --xla_x"}
    assert told(results(fast, {"while": unknown}), "- while:").endswith("--xla_x.")


def test_what_is_missing_is_said():
    found = results(arms={"torch": {"gone": "no PyTorch"}}, platform="cpu")
    assert "no GPU here" in told(found, "There is")
    assert "loop: no PyTorch" in told(found, "decoder with input feeding, H=512 bfloat16")
    late = "gradient H=512 R=32 tensorfloat32"
    for case in found["cases"]:
        if case["name"] == late:
            case["arms"]["while"] = {"missing": "no time was left"}
    text = accelerator_report.text(found)
    assert f"not measured, no time was left: {late} [while]" in text
    (row,) = [line for line in text.splitlines() if line.startswith("decoder H=128 R=1 tensorfloat32 ")]
    assert "500 (475-550)" in row
    assert len(row.split("  ")) > 5


# -- processes -------------------------------------------------------------------------------------------------------

WORKER = """
import json, os, sys, time
flags = os.environ["XLA_FLAGS"]
if "unknown" in flags:
    sys.exit("F1 parse_flags.cc:1] Unknown flag in XLA_FLAGS: --xla_unknown=1")
print(json.dumps({"platform": "gpu", "device": "fake", "versions": {}}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    if "die" in flags:
        print("out of luck", file=sys.stderr)
        os._exit(3)
    if ("slow" in flags and "measure" in command) or "late" in flags:
        time.sleep(60)
    if "broken" in flags:
        print(json.dumps({"missing": "CUDA_ERROR_ILLEGAL_ADDRESS", "broken": True}), flush=True)
        break
    answer = {"seconds": 0.5} if "measure" in command else {"prepared": 1.0, "value": 2.0}
    print(json.dumps(answer), flush=True)
"""


class Impatient(accelerator.Worker):
    """Waits for what an arm never answers, and for nothing else, very shortly."""

    def __init__(self, arm, quick):
        super().__init__(arm, quick)
        self.hangs = {"--slow": "measure", "--late": "prepare"}.get(arm.flags)
        self.limit = math.inf

    def send(self, **command):
        self.limit = 0.1 if self.hangs in command else math.inf
        super().send(**command)

    def answer(self, seconds):
        return super().answer(min(seconds, self.limit))


def test_arms_that_die_hang_or_are_unknown_leave_the_others_alone(tmp_path, monkeypatch):
    (tmp_path / "accelerator_worker.py").write_text(WORKER)
    monkeypatch.setattr(accelerator, "HERE", tmp_path)
    monkeypatch.setattr(accelerator, "CASE_SECONDS", 600.0)
    monkeypatch.setattr(accelerator, "MEASURE_SECONDS", 600.0)
    monkeypatch.setattr(accelerator, "Worker", Impatient)
    arms = [Arm("default"), Arm("odd", "--unknown"), Arm("dying", "--die"), Arm("hanging", "--slow")]
    arms += [Arm("compiling", "--late"), Arm("broken", "--broken")]
    kept = []
    keep = lambda now: kept.append(len(now["cases"]))  # noqa: E731
    found = accelerator.measure(arms, cases(QUICK)[:4], True, 3600.0, keep)
    assert kept == [1, 2, 3, 4]
    for case in found["cases"]:
        times = case["arms"]["default"]
        assert (times["median"], times["repetitions"], times["value"]) == (0.5, QUICK.repetitions, 2.0)
        assert case["arms"]["odd"] == {"missing": "this jaxlib does not know the flag: --xla_unknown=1"}
    by_case = [
        [case["arms"][name]["missing"] for case in found["cases"]]
        for name in ("dying", "hanging", "compiling", "broken")
    ]
    death, illegal = "the process ended with 3: out of luck", "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert by_case == [
        [death, death, *[f"given up after 2 processes: {death}"] * 2],
        ["took too long", "took too long", *["given up after 2 processes: took too long"] * 2],
        ["took too long"] * 4,
        [illegal, illegal, *[f"given up after 2 processes: {illegal}"] * 2],
    ]
    assert found["arms"]["dying"]["trouble"] == [death, death]
    assert found["arms"]["default"]["trouble"] == found["arms"]["compiling"]["trouble"] == []

    found = accelerator.measure(arms[:1], cases(QUICK)[:2], True, -1.0)
    assert [case["arms"] for case in found["cases"]] == [{"default": {"missing": "no time was left"}}] * 2


def test_without_a_gpu_the_product_s_own_code_is_measured(monkeypatch):
    monkeypatch.setattr(accelerator, "CASE_SECONDS", 600.0)
    monkeypatch.setattr(accelerator, "MEASURE_SECONDS", 600.0)  # this is no test of speed
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    chosen = [Case("gradient", 8, 2), Case("gradient", 8, 2, backward="autodiff"), Case("gradient", 8, 2, unroll=2)]
    chosen += [Case("cudnn", 8), Case("decoder", 8, 2), Case("train", 8, 2), Case("train", 8, buckets=3)]
    chosen = [case for case in cases(QUICK) if case in chosen]
    assert len(chosen) == 7
    found = accelerator.measure(ARMS, chosen, True, 3600.0)
    assert found["device"]["platform"] == "cpu"
    (cudnn,) = (case for case in found["cases"] if case["kind"] == "cudnn")
    timed = [case for case in found["cases"] if case["kind"] != "cudnn"]
    assert cudnn["arms"]["default"] == {"missing": "cuDNN is for GPUs"}
    values = [case["arms"]["default"]["value"] for case in timed if case["kind"] == "gradient"]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5), "one gradient in three ways"
    for case in timed:
        assert 0 < case["arms"]["default"]["median"] < 1
        if case["unroll"] == 1 and case["backward"] == "own":
            assert case["arms"]["while"] == {"missing": "not applicable: there is no GPU"}
    # Before anything is learned the loss is near that of equal probabilities of 6 words and 4 special symbols.
    (train,) = (case["arms"]["default"]["value"] for case in timed if (case["kind"], case["runs"]) == ("train", 2))
    assert train / (QUICK.training_steps * 2) ** 0.5 == pytest.approx(math.log(10), rel=0.1)


def test_a_flag_that_this_jaxlib_does_not_know_is_told():
    lane = accelerator.Lane(Arm("odd", "--xla_no_such_flag=1"), True)
    lane.start()
    lane.greet()
    assert lane.gone == "this jaxlib does not know the flag: --xla_no_such_flag=1"
