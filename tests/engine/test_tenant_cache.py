from __future__ import annotations

from router.engine.tenant_cache import TenantCache


def test_a_cached_value_is_found_by_its_tenant_only() -> None:
    cache: TenantCache[str, int] = TenantCache(9)
    cache.put("a", "key", 1)
    cache.put("b", "key", 2)
    assert [cache.get(tenant, "key") for tenant in ("a", "b", "c")] == [1, 2, None]
    cache.discard("a", "key", 3)
    assert cache.get("a", "key") == 1
    cache.discard("a", "key", 1)
    assert cache.get("a", "key") is None


def test_the_tenant_with_the_most_values_loses_the_one_used_least_recently() -> None:
    cache: TenantCache[int, int] = TenantCache(4)
    cache.put("b", 0, 0)
    for key in range(3):
        cache.put("a", key, key)
    assert cache.get("a", 0) == 0
    cache.put("b", 1, 1)
    assert [key for key in range(3) if cache.get("a", key) is None] == [1]
    assert [cache.get("b", key) for key in range(2)] == [0, 1]


def test_large_values_count_as_several() -> None:
    cache: TenantCache[int, int] = TenantCache(4, size=lambda key: key)
    for key in (1, 3, 2):
        cache.put("", key, key)
    assert [cache.get("", key) for key in (1, 3, 2)] == [None, None, 2]
    cache.put("", 9, 9)
    assert [cache.get("", key) for key in (2, 9)] == [None, 9], "the newest stays, however large"
