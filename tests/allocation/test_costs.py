"""Cheap scores put to scale by a few measured divergences."""

from types import SimpleNamespace

import pytest

from fewbit.allocation.costs import chosen_pairs, kind_of, scaled

SIZES = {"int2": 2, "int3": 3, "int4": 4, "int8": 8}


def subject(blocks=8, parts=("up", "down")):
    names = [f"h.{block}.{part}" for block in range(blocks) for part in parts] + ["head"]
    gptq, nearest = SimpleNamespace(name="gptq"), SimpleNamespace(name="nearest")
    rows = {
        name: {
            own: SimpleNamespace(bytes_after=size, scheme=own, algorithm=nearest if name == "head" else gptq)
            for own, size in SIZES.items()
        }
        for name in names
    }
    return SimpleNamespace(rows=rows, layers=[SimpleNamespace(name=name) for name in names])


def every(of):
    return {(name, own): 4.0 ** -SIZES[own] for name in of.rows for own in SIZES}


def test_layers_at_one_place_of_alike_blocks_are_one_kind():
    assert kind_of("h.12.up") == kind_of("h.0.up") != kind_of("h.0.down")


def test_pairs_are_spread_over_each_kind_with_the_coarsest_candidate_always():
    of = subject()
    pairs = chosen_pairs(of, every(of), 18)
    assert len(pairs) == 2 * (3 + 3 + 1)
    assert [name for name, own in pairs if own == "int2"] == [
        "h.0.up", "h.4.up", "h.7.up", "h.0.down", "h.4.down", "h.7.down", "head",
    ]  # fmt: skip
    # The other one goes through what is left, so that gains of every candidate are known.
    assert [own for _, own in pairs if own != "int2"] == ["int3", "int4", "int8", "int3", "int4", "int8", "int3"]


def test_pairs_without_a_cheap_score_are_not_chosen():
    of = subject(1)
    cheap = {pair: score for pair, score in every(of).items() if pair[0] != "head" and pair[1] != "int2"}
    assert {own for _, own in chosen_pairs(of, cheap, 18)} <= {"int3", "int4", "int8"}
    assert all(name != "head" for name, _ in chosen_pairs(of, cheap, 18))


def test_costs_are_the_truth_where_it_is_a_factor_of_the_layer_and_one_of_the_candidate():
    of = subject()
    cheap = every(of)
    # Twice as much for each block further on, and GPTQ gains more on fewer bits; the head is rounded to nearest.
    gain = {"int2": 0.1, "int3": 0.3, "int4": 0.5, "int8": 1.0}

    def truth(pair):
        name, own = pair
        if name == "head":
            return 5.0 * cheap[pair]
        return cheap[pair] * gain[own] * 2.0 ** int(name.split(".")[1])

    pairs = chosen_pairs(of, cheap, 18)
    costs = scaled(of, cheap, {pair: truth(pair) for pair in pairs})
    for pair, cost in costs.items():
        if pair[0] != "head":
            # Places are not quite as far from one another as blocks: 4 to 7 of them hold another number of layers.
            assert cost == pytest.approx(truth(pair), rel=0.05), pair
    assert costs["head", "int2"] == pytest.approx(truth(("head", "int2")), rel=0.05)


def test_measured_noise_is_no_scale():
    of = subject(1)
    cheap = every(of)
    costs = scaled(of, cheap, {("h.0.up", "int8"): 1e-9, ("head", "int2"): 0.0})
    assert costs == cheap


def test_what_has_no_cheap_score_costs_what_was_measured():
    of = subject(1)
    cheap = {pair: score for pair, score in every(of).items() if pair[0] != "head"}
    costs = scaled(of, cheap, {("head", own): 0.01 for own in SIZES})
    assert costs["head", "int4"] == 0.01
    assert costs["h.0.up", "int4"] == cheap["h.0.up", "int4"]
