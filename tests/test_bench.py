"""bench.py --decode=True: that its tables come together on a CPU, of tiny shapes."""
import csv
import json
import math
import signal
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from test_cache import THINK, make

import bench
import bench_decode
import bench_models
import bench_ranks
import burst
import figures
import generate
import sweep
from configurator import read_settings
from dataset import checkpoint_meta, model_facts
from kernels import paths
from model import GPT, GPTConfig
from model_loop import LoopConfig, LoopGPT
from runtime import load_checkpoint


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_models, "BATCHES", (1, 2))
    monkeypatch.setattr(bench, "announce", lambda name: None)


def test_a_token_by_every_way(small):
    """All ways write what the model says; the bars ask what the issue asks."""
    case = bench_decode.micro_case(bench.prepare, bench.Case, "cpu", 16, 1, "whole")
    assert [p.name for p in case.paths] == [
        *(f"called: {way}" for way in ("compiled", "graph", "eager", "auto")), "eager, re-reading"]
    assert all(p.run for p in case.paths)
    assert [p.note.removeprefix("error 0e+00, 3.00 loops") for p in case.paths] == ["", "", "", ", by eager", ""]
    assert ("best called", "<=", 1.05) in {p.name: p for p in case.paths}["called: auto"].bars
    half = bench_decode.micro_case(bench.prepare, bench.Case, "cpu", 16, 2, "half")
    assert all(", 1.00 loops" in p.note for p in half.paths)


def test_auto_is_said_to_write_by_what_it_may_take():
    """The compiled step is for those who name it, though it were the fastest."""
    pace = {("compiled", 1): (3, 0.1), ("graph", 1): (3, 0.2), ("eager", 1): (3, 0.9)}
    assert (bench_decode.fastest(pace, "auto"), bench_decode.fastest(pace, "compiled")) == ("graph", "compiled")


def test_a_wrong_token_has_a_gap(small):
    torch.manual_seed(0)
    model = bench_decode.micro_model(16, 3, 24, "mixture")
    tokens = next(iter([sum((b.tokens[0] for b in generate.write(model, [[0]], 20, seed=7)), [])]))
    assert bench_decode.gap(model, [0], tokens, 1.0, 7) < 1e-5
    tokens[10] = (tokens[10] + 1) % 65
    assert bench_decode.gap(model, [0], tokens, 1.0, 7) > 0.05


def test_a_token_of_each_row_of_a_tuning_file(scripts, small, monkeypatch):
    """Of the models that train.py would make, a GPT among them: each token by all loops, whatever halts. Answers in
    slots are not written token by token; data that are not there are a line."""
    monkeypatch.chdir(scripts.folder)
    for key in read_settings((ROOT / "sweep.py").read_text()):
        monkeypatch.setattr(sweep, key, getattr(sweep, key))
    adds = "--dataset=addition --pos=place --num_loops=3"
    rows = [f"qk: {adds} --block=qk --halt=delta --halt_threshold=99 --prompt_loops=1", f"after: {adds} --block=after",
            "layers @1: --dataset=shakespeare_char --model_type=gpt --n_layer=2 --block_size=20",
            f"P: {adds} --dataset=addition/parallel"]
    text = f'overrides = ["--n_embd=16 --n_head=2"]\nseeds = [0, 1]\nrows = {rows}\n'
    (scripts.folder / "sweep_rows.py").write_text(text)
    (shapes,) = bench_decode.micro_shapes(False, ["sweep_rows.py"])
    assert [row for _, row in shapes] == ["qk", "after", "layers"]
    assert bench_decode.micro_shapes(True, ["sweep_rows.py"]) == [[shape] for shape in shapes]
    model, meta = sweep.models("sweep_rows.py")["qk"]()
    assert (model.config.block, model.config.halt, meta.task) == ("qk", "delta", "addition")
    notes, begun, write = {}, [], generate.write

    def noted(model, given, *args, **kwargs):
        begun.append((model.config, given))
        return write(model, given, *args, **kwargs)
    monkeypatch.setattr(generate, "write", noted)
    for shape in shapes:
        case = bench_decode.row_case(bench.prepare, bench.Case, "cpu", *shape)
        (path,) = case.paths
        assert path.run, path.note
        assert path.calls == (19 if case.name == "layers" else 39)
        notes[case.name] = path.note
    for config, given in begun:  # additions after "="; text has none, and begins with its first character
        assert given == [[getattr(config, "think_token", 0)]]
    assert model.config.think_token == meta.vocab.index("=")
    why = generate.KernelWriter.why_not(model, 1, 40)
    assert "block 'qk'" in why
    assert notes["qk"] == f"error 0e+00, 3.00 loops, by eager, 40 tokens, no kernel: {why}"
    assert notes["layers"] == "error 0e+00, by eager, 20 tokens, no kernel: a plain GPT has no loops"
    (scripts.folder / "sweep_none.py").write_text('rows = ["a: --dataset=none"]')
    with pytest.raises(SystemExit, match="the data of 'a' are not there"):
        bench_decode.micro_shapes(False, ["sweep_none.py"])


def test_what_is_written_begins_where_the_kernel_may(rng):
    """With the think token, after which nothing keeps the decode kernel from its turn, whatever the model then says;
    after another token it waits for the model to say it."""
    model = make(halt="none", halt_head="none", update="replace", pos="place", place_ids=400, place_subset=0,
                 number_tokens=tuple(range(10)))
    (begin,) = bench_decode.beginning(model)
    assert begin == model.config.think_token == THINK
    for first in range(THINK + 1):
        reader = generate.Reader(model, [[first]], 24)
        reader.next()
        reader.append([[int(rng.integers(10))]])
        writer = burst.KernelWriter(reader, None, 0.0, None, None, 0)
        writer.cache = reader.cache  # as `burst` keeps it
        assert bool(reader.cache.thinks_of_all.all()) == bool(writer.tokens([20])) == (first == begin)
    assert bench_decode.beginning(bench_decode.micro_model(16, 3, 24, "whole")) == [0]
    assert bench_decode.beginning(GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=9, block_size=4))) == [0]


def test_a_case_without_the_first_path_shows_no_other_ones_time():
    rows = [dict(table="decode", case=case, path=f"called: {way}", microseconds=us, note="")
            for case, way, us in (("a", "kernel", 1.0), ("a", "auto", 2.0), ("b", "auto", 3.0))]
    rows.append(dict(table="decode", case="c", note="FAILED: x"))
    assert bench.markdown(rows).splitlines()[3:] == [
        "| a | 1.0 | 2.0 |  |", "| b |  | 3.0 |  |", "| c | FAILED: x |  |  |"]


def of_the_card_measured():
    """The rows that bench.py wrote of the H200."""
    with open(ROOT / "results/bench_h200.csv", encoding="utf-8") as f:
        return [{k: x for k, x in row.items() if x != "" or k == "note"} for row in csv.DictReader(f)]


def test_the_table_of_paths_is_that_of_the_rows():
    found = bench.faster_paths(of_the_card_measured())
    assert found == json.loads((ROOT / "looplm_kernels.json").read_text())["NVIDIA H200"]
    lost = [r for r in of_the_card_measured() if r.get("case") != "64x128x16 fixed" or r["path"] != "called: graph"]
    assert found.keys() - bench.faster_paths(lost).keys() == {"C128 T64 tokens1024 fixed bfloat16"}


def test_a_new_card_gets_its_entries_and_its_table(monkeypatch, tmp_path, rng, capsys):
    """One command, with rows that stand in for measured ones: other cards' entries stay, auto reads the new ones."""
    slower = {f"{T}x{C}x{B} {mode}": rng.choice(["kernel", "graph"]) for T, C, B in bench.LOOP[:3]
              for mode in ("fixed", "adaptive")}
    said = [dict(table="loop", case=name, path=f"called: {way}", microseconds=9.0 if way == slow else 2.0, note="")
            for name, slow in slower.items() for way in ("auto", "graph", "kernel")]
    table, card = tmp_path / "looplm_kernels.json", "NVIDIA A Card"
    old = {"NVIDIA H200": {"x": "graph"}, card: {"y": "kernel", "C128 T64 tokens1024 fixed bfloat16": "?"}, "B": {}}
    table.write_text(json.dumps(old))
    monkeypatch.setattr(bench.kernels, "TABLE", table)
    monkeypatch.setattr(paths, "TABLE", table)
    for key in ("XDG_CACHE_HOME", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(key, "1")  # so that what main sets ends with this test
    monkeypatch.setattr(bench, "on_gpu", lambda: True)
    monkeypatch.setattr(bench, "machine", lambda: "cpu")
    monkeypatch.setattr(bench, "versions", lambda: (card, f"{card}, torch"))
    monkeypatch.setattr(bench, "run_batch", lambda batch, ceilings, emit: [emit(dict(r)) for r in said])
    monkeypatch.setattr("sys.argv", ["bench.py", "--quick=True", "--record=True"])
    for key in read_settings((ROOT / "bench.py").read_text()):
        monkeypatch.setattr(bench, key, getattr(bench, key))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert not ended.value.code
    assert f"recorded: 6 cases of {card} in looplm_kernels.json" in capsys.readouterr().out
    assert "called: graph" in (tmp_path / "results/bench_a_card.csv").read_text()
    new = json.loads(table.read_text())
    assert list(new) == sorted(old)
    assert list(new[card]) == sorted(new[card])
    assert {k: new[k] for k in new if k != card} == {k: old[k] for k in old if k != card}
    assert new[card]["y"] == "kernel"
    paths.path_table.cache_clear()
    try:
        for name, way in slower.items():
            (T, C, B), mode = map(int, name.split()[0].split("x")), name.split()[1]
            case = paths.loop_case(C, B, T, "confidence" if mode == "adaptive" else "fixed", torch.bfloat16)
            assert paths.path_table(card)[case] == {"kernel": "graph", "graph": "kernel"}[way], name
    finally:
        paths.path_table.cache_clear()


def test_what_a_mixture_costs():
    def row(mode, microseconds, note=""):
        return dict(table="decode", case=f"C384 B1 {mode}", path="called: auto", microseconds=microseconds, note=note)
    rows = [row("whole", 120.0), row("half", 60.0), row("mixture", 92.0, "error 1e-03, 8.00 loops, by kernel")]
    line, = bench_decode.mixture_lines(rows)
    assert line.startswith("C384 mixture, called: auto: 1.15 of what 8.00 loops would cost")
    assert line.endswith("met")
    rows[2]["microseconds"] = 93.0
    assert bench_decode.mixture_lines(rows)[0].endswith("MISSED")
    assert bench_decode.mixture_lines(rows[:2]) == []


def test_the_tables_of_models(small, monkeypatch, tmp_path, capsys):
    """An adder with a halt head, a text model of OUT's shapes without weights, and what is written of them."""
    meta = checkpoint_meta(load_checkpoint(str(ROOT / "pretrained/addition.pt")))
    config = LoopConfig(n_embd=16, n_head=2, num_loops=3, pos="place", halt_head="joint", tie_weights=False,
                        **model_facts(meta))
    torch.manual_seed(0)
    adder = bench_models.addition_subject("adder", LoopGPT(config).eval(), meta, True)
    text = bench_models.text_subject("train_gpt_1l", bench_models.fresh_text("train_gpt_1l", True), False, None, True)
    monkeypatch.setattr(bench_models, "subjects", lambda *args: [adder, text])
    before, rows = dict(vars(config)), []
    bench_models.model_rows([], "cpu", "float32", ["addition", "text"], "", 0, rows.append)
    assert vars(config) == before
    names = [r["case"] for r in rows]
    assert names[0] == "adder, depth 1"  # no weights that were trained: any depth is as good
    assert [n.split()[1] for n in names[1:-1]] == ["confidence", "entropy", "delta", "kl", "gate"]
    for row in rows:
        assert all(row[k] > 0 for k in ("tokens_s_1", "tokens_s_2", "us_1", "first_ms", "loops"))
        assert row["joules_1"] == ""
        assert "energy counter" in row["note"]
        assert float(row["flops"]) > 0
    assert all(1 <= r["loops"] <= 3 for r in rows)
    assert all(0 <= r["quality"] <= 1 for r in rows[:-1])
    assert "quality" not in rows[-1]
    assert "as they are drawn" in rows[-1]["note"]
    assert "2 of 2, " in capsys.readouterr().out
    lines = bench_models.markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2 * 3
    assert figures.draw_writing(rows, str(tmp_path / "x.png"))


def test_a_rule_is_held_against_the_best_depth_and_chance(small):
    """The cheapest threshold that is as good; equally many loops at random."""
    model = make(halt="confidence", pos="rope", update="replace", step_encoding="none").float()
    X = torch.randint(10, (6, 12))
    X[:, 0] = THINK
    with bench_models.settings(model, halt="none"):
        Y = model.logits(X).argmax(-1)  # so that the whole depth is right everywhere
    s = bench_models.Subject("addition", "m", model, True, X, Y, [[1]], 4, None, 0.0)
    found = {v[0].split()[1]: v for v in bench_models.variants(s)}
    assert found["depth"][2] == 4
    assert found["depth"][3] == 1.0
    for rule in ("confidence", "entropy", "delta", "kl", "gate"):
        name, _, _, quality, loops, at_random = found[rule]
        assert 1 <= loops <= 4
        assert (quality >= 1 - bench_models.MARGIN["addition"]) == (not name.endswith("depth"))
        assert at_random <= 1


@pytest.mark.parametrize("given", [[], ["a.pt"]])
def test_checkpoints_that_are_given_are_measured_in_full_on_a_cpu_and_in_turns(monkeypatch, rng, given):
    sizes, order, rows = [], [], []
    speed = {name: iter(rng.permutation(bench_models.TURNS) + 10.0 * i) for i, name in enumerate("abc")}
    monkeypatch.setattr(bench_models, "subjects", lambda checkpoints, device, small: sizes.append(small) or [
        types.SimpleNamespace(task="addition")])
    monkeypatch.setattr(bench_models, "variants", lambda s: ((name,) for name in "abc"))

    def row_of(s, name, meter, span, short):
        order.append((name, span))
        return dict(case=name, us_1=next(speed[name]), quality=0.5)
    monkeypatch.setattr(bench_models, "row_of", row_of)
    bench_models.model_rows(given, "cpu", "float32", ["addition"], "", 10.0, rows.append)
    turns = bench_models.TURNS if given else 1
    assert sizes == [not given]
    assert order == [(name, 10 / turns) for name in "abc"] * turns
    assert [r["case"] for r in rows] == ["a", "b", "c"]
    if given:
        assert rows == [dict(case=name, us_1=10.0 * i + turns // 2, quality=0.5) for i, name in enumerate("abc")]


def test_joules(monkeypatch):
    assert "no energy counter" in bench_models.Meter("cpu").why_not
    assert math.isnan(bench_models.Meter("cpu").joules())

    class Library:
        def __getattr__(self, name):
            def call(*args):
                if name == "nvmlDeviceGetTotalEnergyConsumption":
                    args[1]._obj.value = 2500
                return 0
            return call
    monkeypatch.setattr(bench_models.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="x"))
    assert bench_models.Meter("cuda").why_not == ""
    assert bench_models.Meter("cuda").joules() == 2.5

    def missing(name):
        raise OSError("libnvidia-ml.so.1: not found")
    monkeypatch.setattr(bench_models.ctypes, "CDLL", missing)
    assert "no NVML" in bench_models.Meter("cuda").why_not


@pytest.mark.full
def test_the_whole_script(scripts):
    """Groups in processes of their own, a row at a time."""
    said = scripts("bench.py", "--decode=True", "--device=cpu", "--out=x/decode.csv", "--span=0", "--seconds=300",
                   "--tables=decode,text,start", forks=True)
    assert "table: x/decode.csv" in said.out
    with open(scripts.folder / "x/decode.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert {r["table"] for r in rows} == {"run", "decode", "text", "start"}
    assert not any("FAILED" in r["note"] or "WRONG" in r["note"] for r in rows)
    assert all(r["seconds"] for r in rows if r["table"] == "start")
    text = (scripts.folder / "x/decode.md").read_text(encoding="utf-8")
    assert text.startswith("`python bench.py --decode=True")
    assert "| train_gpt_12l |" in text


# ---- several GPUs

def rank_row(what, ranks, ms, model="1 x 12", mb=7.0):
    return dict(model=model, what=what, ranks=ranks, ms=ms, tokens_s=round(64 * (1 + ("each" in what)) / ms * 1e6),
                sequences=64, gradient_mb=mb, note="")


def test_the_bars_of_a_second_gpu():
    """Half of the batch in 0.6 of the time, or twice the batch at 1.85 times the speed; nothing without a baseline."""
    one = rank_row("one", 1, 10.0)
    for ms, met in ((6.0, "met"), (6.1, "MISSED")):
        row = bench_ranks.judge(rank_row("same batch", 2, ms), [one])
        assert row["bar"] == f"time <= 0.6 {met}"
        assert row["ratio"] == ms / 10
    for ms, met in ((10.8, "met"), (10.9, "MISSED")):
        assert bench_ranks.judge(rank_row("batch of each", 2, ms), [one])["bar"].endswith(met)
    assert "ratio" not in bench_ranks.judge(rank_row("same batch", 2, 6.0, "12 layers"), [one])
    assert bench_ranks.judge(dict(model="1 x 12", what="same batch", ranks=2, note="FAILED"), [one])["note"] == "FAILED"


def test_what_more_gpus_lead_to_expect():
    """10 ms alone and 0.2 more on two: 7 MB moved at 35 GB/s, 12.25 MB on eight; between hosts as slowly."""
    rows = [rank_row("one", 1, 10.0), rank_row("batch of each", 2, 10.2)]
    line, = bench_ranks.expected(rows)
    assert "(35 GB/s)" in line
    assert "2 GPUs 10.20 ms (98% of each), 4 GPUs 10.30 ms (97% of each), 8 GPUs 10.35 ms" in line
    assert f"64 GPUs {10 + 7 * 2 * 63 / 64 / 35:.2f} ms" in line
    fast, = bench_ranks.expected([rows[0], rank_row("batch of each", 2, 10.02)])
    assert f"64 GPUs {10 + 7 * 2 * 63 / 64 / 50:.2f} ms" in fast


def test_four_gpus_beside_what_two_led_to_expect():
    """A step of 16 sequences takes 3 ms alone and 3.6 on each of four, so a sixth is the exchange; from 0.2 ms on two,
    0.3 were expected. Plain steps are held against plain ones of one GPU, and against no bar."""
    jobs = bench_ranks.jobs(4)
    assert [job[:3] for job in jobs if job[1] == 1] == [("one", 1, 64), ("one, plain", 1, 64),
                                                        ("one, its share", 1, 32), ("one, its share", 1, 16)]
    assert {job[1] for job in jobs} == {1, 2, 4}
    share = rank_row("one, its share", 1, 3.0) | dict(sequences=16)
    rows = [rank_row("one", 1, 10.0), rank_row("one, plain", 1, 20.0), share, rank_row("batch of each", 2, 10.2)]
    same = bench_ranks.judge(rank_row("same batch", 4, 3.6), rows)
    assert (same["exchange"], same["expected_ms"], same["ratio"], same.get("bar")) == (0.167, 3.3, 0.36, None)
    each = rank_row("batch of each", 4, 10.25) | dict(sequences=256, tokens_s=round(256 / 10.25 * 1e6))
    assert bench_ranks.judge(each, rows)["bar"] == "tokens per second >= 3.4 met"
    assert bench_ranks.judge(each, rows)["expected_ms"] == 10.3
    assert bench_ranks.judge(rank_row("same batch, plain", 4, 10.0), rows)["ratio"] == 0.5


def test_a_row_that_needs_more_gpus_than_there_are(monkeypatch):
    """It says so, and the others go on."""
    monkeypatch.setattr(bench_ranks.gpus, "visible", lambda: ["one", "two"])
    monkeypatch.setattr(bench_ranks, "write_text", lambda folder: None)
    monkeypatch.setattr(bench_ranks, "speed", lambda folder, model, job, device, quick, environment: rank_row(
        job[0], job[1], float(environment["CUDA_VISIBLE_DEVICES"].count(",") + 1), model))
    runs, counts = bench_ranks.todo(4, "cuda", ["speed"], "1 x", []), []
    rows = bench_ranks.measure(runs, 4, "cuda", True, lambda rows, left: counts.append((len(rows), left)))
    assert {r["ranks"]: r.get("ms") for r in rows} == {1: 1.0, 2: 2.0, 4: None}
    assert all("it needs 4 GPU(s), and 2 are left" in r["note"] for r in rows if r["ranks"] == 4)
    assert counts == [(n, len(runs) - n) for n in range(1, len(runs) + 1)]


def test_a_table_goes_on_with_rows_of_its_own_machine(monkeypatch, tmp_path, rng, capsys):
    """Any rows of it, in any order, a failed one tried again: then no run is left, and each is held against its one
    GPU, which may have come last. Another machine, other settings and tables that do not say theirs begin anew."""
    path, cards = str(tmp_path / "x.csv"), ["GPU-b", "GPU-a"]
    monkeypatch.setattr(bench_ranks.gpus, "visible", lambda: cards)
    monkeypatch.setattr(bench_ranks, "write_text", lambda folder: None)
    monkeypatch.setattr(bench_ranks, "speed", lambda folder, model, job, *more: rank_row(
        job[0], job[1], 8.0 / job[1], model) | dict(sequences=job[1] * job[2]))
    wanted = bench_ranks.todo(2, "cuda", ["speed"], "", [])
    assert len(wanted) == 14
    machine = bench_ranks.fingerprint("cuda", "a line", False)
    rows = bench_ranks.measure(wanted, 2, "cuda", False, lambda rows, left: rows[-1].update(machine=machine))
    kept = [rows[i] for i in rng.permutation(14)[:7]]
    failed = dict(model="1 x 12", what="one", ranks=1, note="FAILED: x", machine=machine)
    kept = [r for r in kept if (r["model"], r["what"]) != ("1 x 12", "one")]
    bench_ranks.outputs.write_csv(path, bench_ranks.COLUMNS, [failed, *kept])
    cards.reverse()  # the order of the cards says nothing
    assert bench_ranks.fingerprint("cuda", "a line", False) == machine
    before = bench_ranks.rows_there(path, machine)
    assert before == kept
    left = bench_ranks.todo(2, "cuda", ["speed"], "", before)
    assert [run for run in wanted if run in left] == left
    assert len(left) == 14 - len(kept)
    whole = bench_ranks.measure(left, 2, "cuda", False, lambda rows, left: rows[-1].update(machine=machine), before)

    def by_run(rows):
        return sorted(rows, key=lambda r: (r["model"], r["what"], r["ranks"], r["sequences"]))
    assert by_run(whole) == by_run(rows)
    assert bench_ranks.todo(2, "cuda", ["speed"], "", whole) == []
    assert capsys.readouterr().out == ""
    cards[0] = "GPU-c"
    for other in (bench_ranks.fingerprint("cuda", "a line", False), bench_ranks.fingerprint("cpu", "a line", False)):
        assert bench_ranks.rows_there(path, other) == []
        assert "all is run anew" in capsys.readouterr().out
    assert len({bench_ranks.fingerprint("cuda", line, quick) for line in "ab" for quick in (False, True)}) == 4
    bench_ranks.outputs.write_csv(path, bench_ranks.COLUMNS[:-2], kept)
    assert bench_ranks.rows_there(path, machine) == []


@pytest.mark.parametrize("damage", [b"1 x 12,one,1,6x4", b"1 x 12,one,1,64\xff"])
def test_a_table_that_cannot_be_read_stays(tmp_path, damage):
    """Its rows took hours: whoever can mend it decides."""
    path, row = tmp_path / "x.csv", dict(model="1 x 12", what="one", ranks=1, sequences=64, note="", machine="m")
    bench_ranks.outputs.write_csv(str(path), bench_ranks.COLUMNS, [row])
    assert bench_ranks.rows_there(str(path), "m") == [row]
    path.write_bytes(path.read_bytes().replace(b"1 x 12,one,1,64", damage))
    with pytest.raises(SystemExit, match="cannot be read"):
        bench_ranks.rows_there(str(path), "m")


def test_a_run_that_has_ended_is_kept_before_one_that_began_earlier(monkeypatch):
    monkeypatch.setattr(bench_ranks.gpus, "visible", lambda: ["GPU-0", "GPU-1"])
    monkeypatch.setattr(bench_ranks, "write_text", lambda folder: None)
    kept = threading.Event()

    def speed(folder, model, job, *more):
        if job[2] == 64:
            assert kept.wait(60)
        return rank_row(job[0], job[1], 1.0, model)
    monkeypatch.setattr(bench_ranks, "speed", speed)
    runs = [("1 x 12", ("one", 1, 64, ())), ("1 x 12", ("one, its share", 1, 32, ()))]
    rows = bench_ranks.measure(runs, 2, "cuda", True, lambda rows, left: kept.set())
    assert [r["what"] for r in rows] == ["one, its share", "one"]


def test_a_command_that_is_stopped_ends_its_runs(monkeypatch, tmp_path):
    """The one that runs, and those that wait for its place never start."""
    monkeypatch.setattr(bench_ranks, "ROOT", str(tmp_path))
    monkeypatch.setattr(bench_ranks, "running", [])
    monkeypatch.setattr(bench_ranks, "ending", threading.Event())
    (tmp_path / "train.py").write_text("import time\nopen('started', 'a').write('x')\ntime.sleep(3600)\n")
    with ThreadPoolExecutor(1) as pool:
        runs = [pool.submit(bench_ranks.launch, str(tmp_path), "x", 1, "cpu") for _ in range(3)]
        while not (tmp_path / "started").exists():
            assert not runs[0].done()
            time.sleep(0.01)
        bench_ranks.end_all()
        for run in runs:
            with pytest.raises(KeyboardInterrupt):
                run.result()
    (process,) = bench_ranks.running
    assert process.returncode == -signal.SIGTERM
    assert (tmp_path / "started").read_text() == "x"


@pytest.mark.full
def test_two_ranks_beside_one_on_a_cpu(scripts):
    """That all of it runs, of one model, in two commands of which the first is stopped; the times say nothing."""
    def found():
        with open(scripts.folder / "x/ranks.csv", encoding="utf-8") as f:
            return list(csv.DictReader(f))
    command = "bench.py", "--ranks=2", "--device=cpu", "--quick=True", "--only=1 x", "--out=x/ranks.csv"
    said = scripts(*command, forks=True, signal_at=("what=one ranks", signal.SIGTERM), status=130)
    assert "Traceback" not in said.err
    first = found()
    assert [r["what"] for r in first] == ["parity", "one"]
    assert "Not all of it: 6 runs are left" in (scripts.folder / "x/ranks.md").read_text(encoding="utf-8")
    said = scripts(*command, forks=True)
    assert "0 rows failed" in said.out
    rows = found()
    assert rows[:2] == first
    again = scripts(*command, forks=True)
    assert "nothing is left to run" in again.out
    assert found() == rows
    same = rows.pop(0)
    assert same["bar"] == "losses within 0.0001 met", same
    assert [(r["what"], int(r["ranks"]), int(r["sequences"])) for r in rows] == [
        ("one", 1, 4), ("one, its share", 1, 2), ("same batch", 2, 4), ("batch of each", 2, 8),
        ("one, plain", 1, 4), ("same batch, plain", 2, 4), ("batch of each, plain", 2, 8)]
    assert all(float(r["ms"]) > 0 for r in rows)
    text = (scripts.folder / "x/ranks.md").read_text(encoding="utf-8")
    assert text.startswith("`python bench.py --ranks=2")
    assert "\n1 x 12: gradients 0.1 MB" in text
    assert "\n2 of these rows were there before this command: " in text
    assert "runs are left" not in text
