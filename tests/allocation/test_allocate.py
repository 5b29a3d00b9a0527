"""A search as a whole: what is asked for holds, and what comes out is an ordinary recipe."""

import json
import math

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

import fewbit as fb
from fewbit.errors import PlanError, RecipeError


@pytest.mark.parametrize("solver", ["exact", "greedy"])
@pytest.mark.parametrize("bits", [3.6, 4.1, 5.0, 7.7])
def test_bits_are_those_of_the_plan_and_never_above_the_budget(bits, solver, llama, found):
    model, batches = llama
    own = found(model, batches, bits, solver=solver)
    made = fb.plan(model, own.recipe, dtype="float16")
    assert not made.problems
    assert made.bytes_after == own.report.bytes
    numbers = sum(math.prod(row.layer.shape) for row in made.rows)
    assert own.report.bits == 8 * (made.bytes_after - made.rest_bytes) / numbers <= bits
    assert [row.becomes for row in made.rows] == [row.scheme for row in own.rows]


def test_a_size_counts_all_tensors(llama, found):
    model, batches = llama
    own = found(model, batches, "36kB")
    assert own.report.bytes == fb.plan(model, own.recipe, dtype="float16").bytes_after <= 36_000
    # It uses what it may: one more layer at the next candidate would not fit.
    assert own.report.bytes > 35_000


def test_the_exact_solver_predicts_no_more_than_the_greedy_one(llama, tmp_path, found):
    model, batches = llama
    for bits in (4.0, 4.7, 6.1):
        exact, greedy = (
            found(model, batches, bits, solver=solver, cache=tmp_path).report for solver in ("exact", "greedy")
        )
        assert exact.predicted <= greedy.predicted * (1 + 1e-9)  # sums in another order
        assert exact.gap is not None
        assert greedy.gap is None


def test_the_amplified_layer_gets_the_most_bits(planted, found):
    for language in (True, False):
        model, batches = planted(language)
        own = found(model, batches, 4.8)
        bits = {row.name: row.bits for row in own.rows}
        assert bits["layers.2"] == max(bits.values()) > min(bits.values())


def test_it_is_closer_to_the_float_model_than_the_uniform_one_of_its_size(planted, found):
    model, batches = planted(language=True)
    own = found(model, batches, 4.5, "int2 g32,int3 g32,int4 g32,int6 g32,int8 g32", rounds=2)
    uniform = fb.quantize(
        model, fb.Recipe([fb.Rule(".*", weight="int4 g32")]), calibration=batches, evaluation=batches, dtype="float16"
    )
    assert own.report.bytes <= uniform.report.bytes_after
    assert own.report.measured < 0.5 * uniform.report.after.kl_divergence


def test_a_divergence_is_held_by_the_measured_model_with_fewer_bytes_than_needed_everywhere(llama, found):
    model, batches = llama
    own = found(model, batches, "kl 0.02", rounds=4)
    result = fb.quantize(model, own.recipe, calibration=batches, evaluation=batches, dtype="float16")
    assert result.report.after.kl_divergence <= 0.02
    assert result.report.after.kl_divergence == pytest.approx(own.report.measured, rel=1e-6)  # sums by batch
    assert own.report.bytes < max(point.bytes for point in own.report.pareto)
    assert all(turn.holds == (turn.measured <= 0.02) for turn in own.report.rounds)


def test_the_loop_goes_back_where_predictions_are_too_low(llama, monkeypatch, found):
    # Costs that are a hundredth of the truth choose too few bits at first; the loop has to see that and move up.
    from fewbit.allocation import allocator

    model, batches = llama
    honest = allocator.costs_of

    def low(*given):
        from dataclasses import replace

        own = honest(*given)
        return replace(own, costs={pair: 0.01 * cost for pair, cost in own.costs.items()})

    monkeypatch.setattr(allocator, "costs_of", low)
    own = found(model, batches, "kl 0.005", rounds=4).report
    assert not own.rounds[0].holds
    assert own.measured <= 0.005
    assert own.interaction > 10


def test_a_divergence_that_no_candidate_reaches_is_refused_with_the_closest(llama, found):
    model, batches = llama
    with pytest.raises(
        PlanError, match=r"no choice of candidates comes as close as 1e-06: the closest measures 0\.\d+"
    ):
        found(model, batches, "kl 1e-6", "int3 g32,int4 g32", rounds=1)
    with pytest.raises(PlanError, match="no choice of candidates is predicted to come as close as 1e-06"):
        found(model, batches, "kl 1e-6", "int3 g32,int4 g32")


def test_a_size_that_no_candidate_reaches_is_refused_with_the_smallest(llama, found):
    model, batches = llama
    with pytest.raises(
        PlanError, match=r"3 bits a weight cannot be: .* it is 0\.\d MB, 3\.500 bits a weight; add cand"
    ):
        found(model, batches, 3.0)


def test_fused_layers_are_equal_where_runtimes_fuse_them_and_blocks_where_asked(llama, tmp_path, found):
    model, batches = llama
    kept = {"keep": ["lm_head", "model.embed_tokens"], "cache": tmp_path}
    free = {row.name: row.scheme for row in found(model, batches, 8.8, equal="none", **kept).rows}
    fused = {row.name: row.scheme for row in found(model, batches, 8.8, to="compressed-tensors", **kept).rows}
    alike = [f"model.layers.{block}." for block in range(3)]
    pairs = [(f"{own}self_attn.q_proj", f"{own}self_attn.{other}_proj") for own in alike for other in "kv"]
    pairs += [(f"{own}mlp.gate_proj", f"{own}mlp.up_proj") for own in alike]
    assert all(fused[a] == fused[b] for a, b in pairs)
    assert any(free[a] != free[b] for a, b in pairs)
    blocks = found(model, batches, 8.8, equal="blocks", **kept).rows
    for own in alike:
        assert len({row.scheme for row in blocks if row.name.startswith(own)}) == 1
    assert [row.scheme for row in blocks if row.name in ("lm_head", "model.embed_tokens")] == ["float", "float"]


def test_experts_of_a_mixture_are_equal_where_runtimes_make_one_operator_of_them(found):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    with torch.no_grad():  # experts that count for less have less bits, where they may
        for name, own in model.named_parameters():
            own.mul_(4.0 if ".layers." in name and own.ndim > 1 else 1.0)
        model.model.layers[0].mlp.experts.down_proj[0] *= 0.1
    batches = [torch.randint(0, 64, (2, 24)) for _ in range(2)]
    free = found(model, batches, 7.0, equal="none", keep=["lm_head"]).rows
    fused = found(model, batches, 7.0, to="compressed-tensors", keep=["lm_head"]).rows  # without: 2 and 2 schemes

    def schemes(rows, block):
        own = [row for row in rows if row.name.startswith(f"model.layers.{block}.mlp.experts.")]
        assert len(own) == 9
        return {row.scheme for row in own}

    assert len(schemes(free, 0)) > 1
    assert [len(schemes(fused, block)) for block in range(2)] == [1, 1]


def test_a_layer_that_no_candidate_fits_stays_float_and_is_told(found):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 8))
    own = found(model, [torch.randn(64, 64)], 10.0, "int4 g32,int8 g32")
    assert [row.scheme for row in own.rows] == ["int8 g32", "float"]
    assert "in_features 30" in own.rows[1].note
    assert any(
        note.startswith("2: float, since no candidate fits; not int4 g32, int8 g32") for note in own.report.notes
    )


def test_float_can_be_a_candidate(planted, found):
    model, batches = planted(language=False)
    own = found(model, batches, 8.0, "int3 g32,float")
    assert {row.name: row.scheme for row in own.rows}["layers.2"] == "float"
    assert not fb.plan(model, own.recipe, dtype="float16").problems


def test_gguf_types_fall_back_where_blocks_do_not_divide_a_width(llama, opening):
    model, batches = llama
    with opening(model, batches, None, "nearest", to="gguf") as place:
        unit = next(own for own in place.units if own.name == "model.layers.0.mlp.down_proj")
    # q2_k and q3_k both come to q4_0 for 64 columns; what comes to the same is there once.
    assert [str(own.rows[0].scheme) for own in unit.choices] == ["q4_0", "iq4_nl", "q5_0", "q5_1", "q8_0"]
    assert unit.choice("q3_k") is unit.choice("q2_k") is unit.choices[0]


def test_tied_layers_are_one_unit_and_their_codes_are_stored_once_in_gguf(opening):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model, batches = LlamaForCausalLM(config), [torch.randint(0, 300, (1, 24))]
    with opening(model, batches, "q4_0,q8_0", to="gguf") as place:
        unit = place.units[0]
    assert [layer.name for layer in unit.layers] == ["model.embed_tokens", "lm_head"]
    assert [own.bytes for own in unit.choices] == [300 * 18, 300 * 34]


def test_the_recipe_reads_back_from_its_text(llama, tmp_path, found):
    model, batches = llama
    own = found(model, batches, 5.0, algorithm={"name": "gptq", "guided": True, "sweeps": 1})
    read = fb.Recipe.from_toml(own.save(tmp_path / "found.toml"))
    assert read.rules == own.recipe.rules
    with pytest.raises(RecipeError, match=r"a recipe is written as \.toml"):
        own.save(tmp_path / "found.json")


def test_inputs_are_rounded_in_the_rounds(planted, found):
    model, batches = planted(language=False)
    own = found(model, batches, 4.8, input="int8 token", rounds=1)
    assert all(rule.input is not None for rule in own.recipe.rules if not rule.keep)
    floats = found(model, batches, 4.8, rounds=1)
    assert own.report.measured > floats.report.measured
    assert any(note.startswith("inputs were float while single layers were scored") for note in own.report.notes)


def test_a_latency_is_a_sum_of_measured_layers(planted, found):
    model, batches = planted(language=False)
    own = found(model, batches, "10s", "int4 g32,int8 g32").report  # more than any choice takes
    assert 0 < own.seconds < 10
    assert own.bits == max(point.bits for point in own.pareto)
    with pytest.raises(PlanError, match=r"0\.001 ms cannot be: .* it is .* ms, .* ms of it outside of layers"):
        found(model, batches, "1us", "int4 g32,int8 g32")


def test_scores_come_from_the_cache_when_nothing_has_changed(llama, tmp_path, monkeypatch, found):
    from fewbit.allocation import metrics

    model, batches = llama
    first = found(model, batches, 5.0, cache=tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())
    monkeypatch.setattr(metrics, "METRICS", dict.fromkeys(metrics.METRICS, "fewbit.errors:RecipeError"))
    again = found(model, batches, 5.0, cache=tmp_path)
    assert again.report.layers == first.report.layers
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1.0
    with pytest.raises(
        AttributeError, match="'RecipeError' object has no attribute 'items'"
    ):  # which stands for a metric
        found(model, batches, 5.0, cache=tmp_path)


def test_a_cache_with_something_else_in_it_is_refused(llama, tmp_path, found):
    model, batches = llama
    (tmp_path / "scores.json").write_text('{"a": "b"}')
    with pytest.raises(fb.FewbitError, match=r"scores\.json holds no scores of layers"):
        found(model, batches, 5.0, cache=tmp_path)


def test_records_and_tables_show_each_layer(planted, found):
    model, batches = planted(language=False)
    own = found(model, batches, 4.8)
    records = own.records()
    assert [record["layer"] for record in records] == [row.name for row in own.rows]
    assert {"scheme", "bits", "cost of int3 g32"} <= set(records[0])
    assert "layers.2" in own._repr_html_()
    assert "for 4.8 bits a weight" in str(own)


def test_the_pareto_points_hold_uniform_ones_and_the_chosen_one(llama, found):
    model, batches = llama
    own = found(model, batches, 4.9, rounds=1).report
    assert [point.bytes for point in own.pareto] == sorted(point.bytes for point in own.pareto)
    assert {"int3 g32", "int4 g32", "int8 g32"} <= {point.label for point in own.pareto}
    (chosen,) = [point for point in own.pareto if point.chosen]
    assert (chosen.bytes, chosen.measured) == (own.bytes, own.measured)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"solver": "quick"}, "unknown solver 'quick'"),
        ({"rounds": -1}, "rounds = -1"),
        ({"equal": "all"}, "unknown choice of layers that are equal 'all'"),
        ({"keep": ["nothing"]}, "keep 'nothing' matches no layer"),
        ({"keep": [".*"]}, "every layer is kept"),
        ({"candidates": "float"}, "float is the only candidate"),
        ({"candidates": " , "}, "hold no scheme"),
        ({"budget": "much"}, "budget 'much' is not understood; give 4.5"),
        ({"budget": 0}, "is no positive number"),
        ({"budget": True}, "budget True is not understood"),
    ],
)
def test_what_makes_no_sense_is_refused(values, message, planted, found):
    model, batches = planted(language=False)
    with pytest.raises(RecipeError, match=message):
        found(model, batches, **{"budget": 5.0, **values})


def test_without_data_there_is_nothing_to_allocate_by(planted, found):
    model, _ = planted(language=False)
    with pytest.raises(PlanError, match="bits are allocated by what data shows"):
        found(model, "none", 5.0)
