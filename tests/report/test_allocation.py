"""What a search for bits found, as data of the report."""

import json

from fewbit.report.allocation import AllocatedLayer, AllocationPoint, AllocationReport, AllocationRound
from fewbit.report.data import Report
from fewbit.report.strict_json import json_text


def found(**values):
    layers = (
        AllocatedLayer(
            name="a", kind="linear", numbers=64, scheme="int4 g32", bytes=36, unit="a", predicted=0.01,
            costs={"int4 g32": 0.01, "int8 g32": 0.001}, measured={"int4 g32": 0.011},
        ),
        AllocatedLayer(name="b", kind="linear", numbers=64, scheme="float", bytes=128, unit="b", costs={}, measured={}),
    )  # fmt: skip
    given = {
        "budget": "4.5 bits a weight", "cost": "KL divergence (nats)", "candidates": ("int4 g32", "int8 g32"),
        "constraints": (), "metric": "fisher", "scored": 4, "refined": 1, "measured_on": "8 tokens", "solver": "exact",
        "gap": 0.0, "bytes": 164, "bits": 10.25, "seconds": None, "predicted": 0.01, "measured": 0.02,
        "layers": layers,
        "pareto": (AllocationPoint(label="allocation", bytes=164, bits=10.25, predicted=0.01, chosen=True),),
        "rounds": (AllocationRound(bytes=164, bits=10.25, predicted=0.01, measured=0.02, holds=True, moved=0),),
    }  # fmt: skip
    return AllocationReport(**{**given, **values})


def test_bits_of_a_layer_count_its_scales():
    assert found().layers[0].bits == 36 * 8 / 64


def test_the_interaction_is_what_was_measured_by_what_was_predicted():
    assert found().interaction == 2.0
    assert found(measured=None).interaction is None
    assert found(predicted=0.0).interaction is None


def test_the_report_carries_it_as_plain_values_and_sums_it_up():
    report = Report(
        model="m", recipe="r", rules=(), storage_type="float16", bytes_before=1, bytes_after=1, layers=(),
        allocation=found(),
    )  # fmt: skip
    data = json.loads(json_text(report.to_dict()))
    assert data["allocation"]["layers"][0]["costs"] == {"int4 g32": 0.01, "int8 g32": 0.001}
    assert data["allocation"]["pareto"][0]["chosen"] is True
    assert "bits" in dict(report.summary())
    assert dict(report.summary())["bits"] == "10.250 a weight, for 4.5 bits a weight: 1 x int4 g32, 1 x float"
    assert "predicted 0.01, measured 0.02" in str(report)
