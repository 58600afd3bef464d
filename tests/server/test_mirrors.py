"""Mirrors of stores as a scraper sees them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from router.extensions.mirrors import MirrorsCollector, MirrorState


def test_a_line_for_each_store():
    registry = CollectorRegistry()
    registry.register(
        MirrorsCollector(lambda: [MirrorState("s3://a/", 12.5, 3, 1), MirrorState("s3://b/", 0, 0, 0)])
    )
    text = generate_latest(registry).decode()
    assert 'lora_router_mirror_behind_seconds{store="s3://a/"} 12.5' in text
    assert 'lora_router_mirror_adapters{store="s3://a/"} 3.0' in text
    assert 'lora_router_mirror_refused{store="s3://a/"} 1.0' in text
    assert 'lora_router_mirror_behind_seconds{store="s3://b/"} 0.0' in text
