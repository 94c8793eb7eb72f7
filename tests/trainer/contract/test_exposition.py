from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deepseek_trainer.contract.exposition import with_former_names


def families_of(page: bytes) -> dict[str, tuple[str, list[tuple[str, dict[str, str], float]]]]:
    families = text_string_to_metric_families(page.decode())
    return {family.name: (family.type, [sample[:3] for sample in family.samples]) for family in families}


def test_a_metric_is_there_under_its_name_and_under_the_one_that_it_had():
    registry = CollectorRegistry()
    Gauge("dstj_jobs", "Jobs.", ["phase"], registry=registry).labels("dstj_Running").set(3)
    Counter("dstj_writes", "Writes.", registry=registry).inc()
    Gauge("process_dstj_things", "Not ours.", registry=registry).set(1)
    families = families_of(with_former_names(generate_latest(registry)))
    assert families["dstj_jobs"] == ("gauge", [("dstj_jobs", {"phase": "dstj_Running"}, 3)])
    assert families["dst_jobs"] == ("gauge", [("dst_jobs", {"phase": "dstj_Running"}, 3)])
    assert families["dst_writes"][1][0] == ("dst_writes_total", {}, 1)
    assert [name for name in families if "things" in name] == ["process_dstj_things"]
