"""What a run is predicted to take: more for larger blocks, no more for more blocks, and what is above the limit."""

from dataclasses import replace

from fewbit.execution.budget import Part, SolvedLayer, Tokens, Work, budget_of

LAYER = SolvedLayer(256, 512, quantized=True, measured=True, factored=True)
BLOCK = Part(4 * 256 * 512, 2 * 256 * 512, (LAYER,), repeated=True)
HEAD = Part(4 * 1000 * 256, 2 * 1000 * 256, (SolvedLayer(1000, 256, quantized=False, measured=False, factored=False),))
WORK = Work([HEAD, *[BLOCK] * 4], Tokens(2048, 256, 8), stored=1 << 20, output=1 << 19, width=256)


def test_memory_is_that_of_the_largest_part_however_many_there_are():
    once, twice = (budget_of(replace(WORK, parts=[HEAD, *[BLOCK] * count]), 0, 1e9) for count in (4, 8))
    assert once.memory == twice.memory
    wide = replace(BLOCK, layers=(replace(LAYER, inputs=1024),))
    assert budget_of(replace(WORK, parts=[wide]), 0, 1e9).memory > once.memory


def test_time_grows_with_blocks_and_tokens():
    seconds = [budget_of(replace(WORK, parts=[BLOCK] * count, stored=0), 0, 1e9).seconds - 1.0 for count in (4, 8)]
    assert abs(seconds[1] / seconds[0] - 2.0) < 1e-9  # a sum of equal parts, but for its rounding
    more = replace(WORK, tokens=Tokens(4096, 256, 16))
    assert budget_of(more, 0, 1e9).seconds > budget_of(WORK, 0, 1e9).seconds


def test_runs_that_wait_take_memory_for_all_batches_and_others_for_one():
    waiting, repeated = (budget_of(replace(WORK, waiting=own), 0, 1e9) for own in (True, False))
    more = replace(WORK, tokens=Tokens(8192, 256, 32))
    assert waiting.memory > repeated.memory
    assert budget_of(replace(more, waiting=False), 0, 1e9).memory == repeated.memory
    assert budget_of(more, 0, 1e9).memory > waiting.memory


def test_a_second_moment_costs_the_square_of_its_width():
    def solving(inputs):
        part = replace(BLOCK, layers=(replace(LAYER, inputs=inputs),))
        blind = replace(part, layers=(replace(part.layers[0], factored=False),))
        return [budget_of(replace(WORK, parts=[own], tokens=Tokens()), 0, 1e9).memory for own in (part, blind)]

    factored, blind = solving(8192)
    assert factored - blind >= 4 * 4 * 8192**2


def test_it_is_said_in_words():
    assert str(budget_of(WORK, 1 << 28, 1e9)).startswith("predicted: at most 5")
