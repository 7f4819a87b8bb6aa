"""The benchmarks' own machinery: order, sums, tables. Nothing is trained or timed here."""

import json
import subprocess
import sys

import pytest
from benchmarks import (
    child,
    command,
    data,
    engines,
    exports,
    flops,
    harness,
    newcomer,
    pretrain,
    processes,
    serve,
    size,
    tables,
)
from benchmarks.harness import Candidate
from benchmarks.records import Column, Result, Run, goal, middle, ratio


def runs_of(**seconds: list[float]) -> list[Run]:
    return [
        Run(name, seed, {"seconds": s, "load": [0.0, 0.0]})
        for name, all_ in seconds.items()
        for seed, s in enumerate(all_)
    ]


def result_of(runs: list[Run], **more) -> Result:
    names = list(dict.fromkeys(run.candidate for run in runs))
    about = {"load": [[0.1, 0.2]], "machine": {}, "versions": {"torch": "1"}, "command": "python -m benchmarks.toy"}
    machine = dict.fromkeys(("processor", "cores", "memory_gb", "system", "python"), "some")
    about |= {"machine": {**machine, "instructions": ["avx2"]}, "seeds": [0, 1, 2], "date": "2026-11-24"}
    return Result("toy", "A toy", [Column("seconds", "s", 1)], names, runs, about=about, **more)


SOURCE = '''"""Doc."""

import a
from b import (
    c,
)


# comment
def f():
    """Doc
    doc."""
    return [
        a,  # here

        c,
    ]
'''


def test_lines_of_code_are_counted_without_words_about_it_and_imports_apart():
    assert newcomer.lines_of(SOURCE) == (5, 4)


def echo(name: str, content: str) -> Candidate:
    return Candidate(name, (sys.executable, "-c", f"print({content!r})"))


def test_candidates_alternate_and_get_the_seed_of_their_round(tmp_path):
    runs = harness.measure([echo("a", '{"n": {seed}}'), echo("b", '{"n": {seed}}')], 2, tmp_path)
    assert [(run.candidate, run.values["n"]) for run in runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_a_candidate_that_lacks_a_package_is_not_tried_again(tmp_path):
    runs = harness.measure([echo("a", '{"missing": "openvino"}'), echo("b", "{}")], 2, tmp_path)
    assert [(run.candidate, run.missing) for run in runs] == [("a", "openvino"), ("b", None), ("b", None)]


def test_a_candidate_that_fails_is_kept_with_its_last_line(tmp_path):
    broken = Candidate("broken", (sys.executable, "-c", "raise ValueError('no luck')"))
    (run,) = harness.measure([broken], 1, tmp_path)
    assert run.error == "exit code 1: ValueError: no luck"


def test_lines_that_libraries_print_are_not_taken_for_the_result(tmp_path):
    run = harness.run_one(echo("a", "{'loss': 1}\n" + '{"n": 7}' + "\n{done}"), 0, tmp_path)
    assert run.values["n"] == 7


def test_memory_of_a_child_is_watched(tmp_path):
    code = "import hashlib; hashlib.sha512(b'x' * 200_000_000)"
    run = harness.run_one(Candidate("big", (sys.executable, "-c", code)), 0, tmp_path, memory=True)
    assert 200 < run.values["private_mb"] <= run.values["sampled_mb"] < 400


def test_ratios_are_of_medians_and_above_one_is_better():
    runs = runs_of(slow=[10.0, 12.0, 99.0], fast=[1.0, 3.0, 4.0])
    assert middle(runs, "slow", "seconds") == 12.0
    assert ratio(runs, "fast", "slow", "seconds") == 4.0
    assert ratio(runs, "fast", "slow", "seconds", better="higher") == 0.25
    assert ratio(runs, "fast", "absent", "seconds") is None


@pytest.mark.parametrize(("value", "least", "met"), [(2.0, True, True), (2.0, False, False), (None, True, None)])
def test_a_goal_is_met_missed_or_open(value, least, met):
    assert goal("goal", value, 1.5, least=least).met is met


def test_a_table_shows_median_spread_ratio_and_what_is_missing():
    runs = [*runs_of(slow=[10.0, 12.0, 99.0], fast=[1.0, 3.0, 4.0]), Run("gone", 0, missing="nncf")]
    head, slow, fast, gone = tables.cells(result_of(runs, baseline="slow"))
    assert head == ["toy", "s (spread)", "against slow"]
    assert slow == ["slow", "12.0 (10.0–99.0)", "1.00x"]
    assert fast == ["fast", "3.0 (1.0–4.0)", "4.00x"]
    assert gone == ["gone", "not installed: nncf", ""]


def test_a_candidate_without_numbers_says_what_it_takes():
    runs = [Run("a", 0, missing="nncf"), Run("b", 0, missing="it takes pip install nncf")]
    _, a, b = tables.cells(result_of(runs))
    assert (a[1], b[1]) == ("not installed: nncf", "not measured: it takes pip install nncf")


def test_engines_open_the_model_or_an_export_that_there_is(monkeypatch):
    from llmasos.serving import facts

    kinds = {"encoder": "encoder", "decoder": "decoder", "translator": "encoder-decoder"}
    for kind, names in engines.ENGINES.items():
        for name, _, precision in (one.partition(":") for one in names if not one.startswith("transformers:")):
            exporter = facts.ENGINES[name].exporter
            assert facts.ENGINES[name].runs(kinds[kind])
            assert exporter is None or precision in exporter.precisions[kinds[kind]]
    assert engines.opens("decoder:openvino-genai:int8") == engines.opens("decoder:openvino:int8")
    assert engines.opens("decoder:transformers:float32") == "decoder:model"
    monkeypatch.setattr(facts, "_absent", lambda modules: modules == ("openvino_genai",))
    monkeypatch.setenv("PATH", "")
    wanted = ("torch:float32", "llama-server:f16", "openvino-genai:int8")
    assert [exports.lacking(name) for name in wanted] == [
        "", "it takes the program llama-server on the path", "it takes pip install 'llmasos[openvino-genai]'"
    ]  # fmt: skip


def test_slow_calls_are_repeated_less(monkeypatch):
    calls = []
    engines.best(lambda: calls.append(1) or 1)
    monkeypatch.setattr(engines, "SECONDS", 0.0)
    engines.best(lambda: calls.append(2) or 1)
    monkeypatch.setattr(engines, "LONG", 0.0)
    engines.best(lambda: calls.append(3) or 1)
    assert calls == [1] * (1 + engines.ROUNDS) + [2, 2, 3]


def test_served_engines_and_those_that_are_driven_directly():
    names = {serve.engine_of(name) for name in serve.CANDIDATES}
    assert names == {"", "openvino:bfloat16", "openvino:int8", "onnxruntime:int8", "openvino-genai:bfloat16",
                     "llama-server:f16"}  # fmt: skip
    made = {serve.export_of(name) for name in ("llmasos:openvino:int8", "llama-server:f16_8", "serve_1", "predict")}
    assert made == {"export:sst2:openvino:int8", "export:writer:gguf:f16", ""}
    rates = {"serve_8": 90.0, "serve:llama-server:f16_8": 99.0, "llama-server:f16_8": 100.0, "serve_1": 50.0}
    runs = [Run(name, 0, {"rate": rate}) for name, rate in rates.items()]
    runs.append(Run("machine", 0, {"read_gb_s": 10.0, "weight_mb": 100.0}))
    found = serve.beside(runs, 8, serve.DIRECT, "the better peer", 0.95)
    assert (found.met, found.reached) == (True, "0.99x (serve:llama-server:f16 against llama-server:f16)")
    assert found.text == "8 clients: at least 0.95x the better peer"
    assert serve.beside(runs, 32, serve.DIRECT, "the better peer", 0.95).met is None
    assert serve.limit(runs).endswith("allows 100 tokens/s; of that serve 50 %")


def test_the_page_is_rewritten_from_the_json_between_its_markers_only(tmp_path):
    from dataclasses import asdict

    result = result_of(runs_of(a=[1.0, 2.0, 3.0]), goals=[goal("at most 1 s", 2.0, 1, least=False)])
    (tmp_path / "toy.json").write_text(json.dumps(asdict(result)))
    (tmp_path / "toy.partial.json").write_text("a trial run, never read")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table:toy -->\nold\n<!-- end:toy -->\nafter\n")
    assert tables.update(page, tmp_path) == ["toy"]
    once = page.read_text()
    assert "| a | 2.0 (1.0–3.0) |" in once
    assert "| at most 1 s | 2.00 | missed |" in once
    assert "old" not in once
    assert once.startswith("before\n<!-- table:toy -->\n|")
    assert once.endswith("<!-- end:toy -->\nafter\n")
    tables.update(page, tmp_path)
    assert page.read_text() == once


def test_every_benchmark_has_its_place_on_the_page():
    from benchmarks.__main__ import NAMES

    page = tables.PAGE.read_text(encoding="utf-8")
    assert [
        name for name in NAMES if f"<!-- table:{name} -->\n" not in page or f"<!-- end:{name} -->" not in page
    ] == []


def test_laps_follow_the_phases_of_a_run():
    from llmasos.core.events import Note, Phase

    phases = child.Phases()
    for event in (Phase("read"), Note("hello"), Phase("train"), Phase("evaluate"), Phase("train")):
        phases(event)
    laps = phases.values()
    assert list(laps) == ["seconds", "prepare_seconds", "read_seconds", "train_seconds", "evaluate_seconds"]
    assert laps["seconds"] == pytest.approx(sum(list(laps.values())[1:]))


def test_batches_by_length_hold_every_row_once_and_say_which():
    rows = [[7] * n for n in (5, 1, 4, 2, 3)]
    batches = list(data.batches(rows, 2))
    assert [list(indices) for indices, _ in batches] == [[1, 3], [4, 2], [0]]
    assert [batch["attention_mask"].sum() for _, batch in batches] == [3, 7, 5]
    assert batches[0][1]["input_ids"].tolist() == [[7, 0], [7, 7]]


def test_useful_work_counts_the_encoder_matrices(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 2, "intermediate_size": 8, "num_hidden_layers": 3}')
    assert flops.matrix_parameters(tmp_path) == 3 * (4 * 4 + 2 * 16)
    assert flops.useful(tmp_path, tokens=10) == 6 * 144 * 10


def test_executed_work_counts_products_that_are_added_in_place():
    import torch

    left, right, total = torch.ones(2, 3), torch.ones(3, 5), torch.zeros(2, 5)
    with flops.counted() as counter:
        total.addmm_(left, right)
        left @ right
    assert counter.get_total_flops() == 2 * (2 * 2 * 3 * 5)


def test_made_up_rows_are_alike_for_a_seed_and_of_a_size(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    rows = size.write_rows(one, 50_000, seed=3)
    size.write_rows(two, 50_000, seed=3)
    texts = [row["text"] for row in data.read(one)]
    assert one.read_bytes() == two.read_bytes()
    assert 50_000 <= one.stat().st_size < 51_000
    assert rows == len(set(texts)) == len(texts)
    assert 200 < sum(map(len, texts)) / rows < 400


def test_the_first_steps_of_pretraining_are_not_timed():
    pace = pretrain.Pace()
    for loss in (9.0, 9.0, 9.0, 9.0, 2.0, 4.0):
        pace.step(10, loss)
    assert (pretrain.WARM, pace.tokens, pace.losses) == (4, 20, [2.0, 4.0])


def test_blocks_are_alike_for_a_seed_and_lie_within_the_stream():
    one, same, other = (list(pretrain.starts(range(300), 3, seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert [len(step) for step in one] == [pretrain.ROWS] * 3
    assert 0 <= min(map(min, one)) <= max(map(max, one)) < 300 - pretrain.LENGTH - 1


def test_the_validation_loss_is_that_of_each_next_token_and_of_the_end(tmp_path):
    import torch

    from writers import END, byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "validation.jsonl").write_text('{"text": "ab"}\n{"text": "' + "a" * 999 + '"}\n')
    seen = []

    def after_a_comes_b_and_then_the_end(ids):
        seen.append(ids.shape[1])
        foretold = {END: ord("a"), ord("a"): ord("b"), ord("b"): END}
        return 100.0 * torch.nn.functional.one_hot(torch.tensor([[foretold[i] for i in ids[0].tolist()]]), 259)

    loss = pretrain.validation_loss(after_a_comes_b_and_then_the_end, tmp_path, tmp_path)
    assert seen == [3, pretrain.LENGTH]
    assert loss == pytest.approx(100 * (pretrain.LENGTH - 1) / (pretrain.LENGTH + 3))


def test_what_others_take_longer_in_a_collective_is_waiting():
    def step(compute: float, *collectives: float) -> dict:
        return {"compute": compute, "update": 0.1, "collectives": list(collectives), "whole": 1.0}

    found = processes.where([[step(9, 9), step(0.4, 0.1, 0.3)], [step(9, 9), step(0.6, 0.1, 0.1)]])
    assert found == pytest.approx({
        "step_ms": 1000, "compute_ms": 500, "update_ms": 100, "telling_ms": 200, "waiting_ms": 100, "other_ms": 100,
        "telling_share": 20, "uneven": 20})  # fmt: skip


def test_two_processes_are_held_against_one_of_the_same_round_and_size():
    seconds = {"one_32": (10.0, 20.0), "ddp_32": (11.0, 24.0), "one_128": (1.0, 1.0), "fsdp_32": (9.0, 9.0)}
    runs = [
        Run(name, seed, {"seconds": s, "losses": [1.0, 2.0 + 0.2 * (name == "ddp_32")]})
        for name, all_ in seconds.items()
        for seed, s in enumerate(all_)
    ]
    found = {(run.candidate, run.seed): run.values for run in processes.compared(runs)}
    assert [found["ddp_32", seed]["overhead"] for seed in (0, 1)] == pytest.approx([10, 20])
    assert found["ddp_32", 0]["apart"] == pytest.approx(0.1)
    assert "overhead" not in found["one_128", 0] | found["fsdp_32", 0]
    assert command.difference([1.0], [1.0, 1.0]) == float("inf")


@pytest.mark.slow
@pytest.mark.data
def test_the_benchmark_of_checkpoints_runs_in_toy_sizes():
    if not data.SST2.exists():
        pytest.skip("SST-2 is absent")
    words = ("--steps", "5", "--every", "2", "--rounds", "1", "--rows", "64")
    done = subprocess.run([sys.executable, "-m", "benchmarks.checkpoints", *words], cwd=harness.ROOT, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = json.loads((harness.RESULTS / "checkpoints.partial.json").read_text())["runs"]
    seen = [run["values"] for run in runs if "held_ms" in run["values"]]
    assert [values["checkpoints"] for values in seen] == [2]
    assert seen[0]["megabytes"] > 100
    assert seen[0]["held_ms"] >= seen[0]["copy_ms"] > 0


@pytest.mark.slow
def test_the_benchmark_of_the_gpu_runs_in_toy_sizes_and_fails_without_a_gpu():
    def bench(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.gpu", *words]
        return subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)

    import torch

    if not torch.cuda.is_available():
        done = bench()
        assert done.returncode == 1
        assert "no such GPU" in done.stderr
    toy = ("--device", "cpu", "--tiny", "--steps", "2", "--seeds", "1")
    done = bench(*toy, "--only", "encoder_llmasos", "--only", "decoder_llmasos", "--only", "decoder_trainer_defaults")
    assert done.returncode == 0, done.stderr
    written = json.loads((harness.RESULTS / "gpu.partial.json").read_text())
    measured = {run["candidate"]: run["values"] for run in written["runs"] if run["candidate"] != "machine"}
    assert len(measured) == 3
    assert all(values["tokens_per_second"] > 0 and values["peak_share"] > 0 for values in measured.values())
