"""A damaged or foreign kernel cache is compiled again and never loaded."""

import pytest
from test_compile import HELPER, PROBE, plant, run_probe


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a package, its cache and the files there, which every test leaves whole."""
    place = tmp_path_factory.mktemp("planted")
    package, cache = plant(place, {"_helper.py": HELPER, "probe.py": PROBE}), place / "cache"
    run_probe(package, cache)
    files = sorted(cache.rglob("*.nbc"))
    assert len(files) == 2
    return package, cache, files


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "empty": b"",
        "truncated": content[:middle],
        "zeroed": content[:200] + bytes(len(content) - 200),
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }[how]


@pytest.mark.parametrize("how", ["empty", "truncated", "zeroed", "flipped"])
def test_damaged_files_are_compiled_again(planted, how):
    package, cache, files = planted
    for file in files:
        file.write_bytes(damage(file.read_bytes(), how))
    assert run_probe(package, cache)[:2] == (1, 0)
    assert run_probe(package, cache)[:2] == (1, 1)
    assert not list(cache.rglob("*.tmp"))


def test_a_file_that_others_can_write_is_compiled_again(planted):
    package, cache, files = planted
    for file in files:
        file.chmod(0o666)
    assert run_probe(package, cache)[:2] == (1, 0)
    assert run_probe(package, cache)[:2] == (1, 1)


def test_a_kernel_under_the_name_of_another_is_not_loaded(planted):
    package, cache, files = planted
    contents = [file.read_bytes() for file in files]
    for file, other in zip(files, reversed(contents), strict=True):
        file.write_bytes(other)
    assert run_probe(package, cache)[:2] == (1, 0)
