"""Energy comes from the kernel's counters, over their wraps and over sessions; without counters there is no number."""

import json

import pytest

from prefixlab.study.energy import counters, metered


def package(root, number, name, microjoules, top=1_000_000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{top - 1}\n")
    return folder / "energy_uj"


def test_packages_add_up_over_wraps_and_sessions(tmp_path):
    first, second = package(tmp_path / "cap", 0, "package-0", 900_000), package(tmp_path / "cap", 1, "package-1", 5)
    package(tmp_path / "cap", 2, "psys", 7)  # the whole board: would count the packages twice
    assert len(counters(tmp_path / "cap")) == 2
    for _ in range(2):
        with metered(tmp_path, tmp_path / "cap"):
            first.write_text("100000\n")  # wrapped: 0.2 J
            second.write_text("300005\n")  # 0.3 J
        first.write_text("900000\n")
        second.write_text("5\n")
    found = json.loads((tmp_path / "energy.json").read_text())
    assert found["joules"] == pytest.approx(1.0) and found["seconds"] > 0 and "without memory" in found["meter"]


def test_a_failure_inside_is_not_hidden_and_still_counted(tmp_path):
    place = package(tmp_path / "cap", 0, "package-0", 0)
    with pytest.raises(ValueError, match="broken"), metered(tmp_path, tmp_path / "cap"):
        place.write_text("500000\n")
        raise ValueError("broken")
    assert json.loads((tmp_path / "energy.json").read_text())["joules"] == pytest.approx(0.5)


def test_no_counter_no_number(tmp_path):
    package(tmp_path / "cap", 0, "package-0", "not a number")
    with metered(tmp_path, tmp_path / "cap"):
        pass
    assert not (tmp_path / "energy.json").exists()
