"""Power while something runs: plausible watts, the mix of a country, nothing where it was too short."""

import time

import pytest

import energy
from energy import counters_can_be_read, known_countries, measure_power


def keep_busy(seconds):
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        sum(range(10_000))


@pytest.mark.parametrize(("country", "low", "high"), [(None, 300, 700), ("FRA", 10, 150)])
def test_power_and_the_mix_of_the_country(country, low, high):
    with measure_power(country) as reading:
        keep_busy(1.5)
        assert reading.power_watts is None  # not before the end
    assert 1 < reading.power_watts < 2000
    assert low < reading.co2_g_per_kwh < high
    assert set(reading.as_cost()) == {"power_watts", "co2_g_per_kwh", "power_is_measured"}


def test_what_is_too_short_to_tell_is_not_told():
    with measure_power(None) as reading:
        pass
    assert reading.power_watts is None and reading.co2_g_per_kwh is None
    assert reading.power_is_measured == energy.counters_can_be_read()  # or a row of long folds would be an estimate


def test_a_long_measurement_is_made_in_parts(monkeypatch):
    """A processor's counter begins anew after a while: it is looked at before that."""
    monkeypatch.setattr(energy, "LONGEST", 0.4)
    tracker, looks = energy.start_tracker("FRA", False), []
    stop_task = tracker.stop_task
    monkeypatch.setattr(tracker, "stop_task", lambda: looks.append(stop_task()) or looks[-1])
    with measure_power("FRA") as reading:
        keep_busy(2)
    assert len(looks) > 2 and sum(look.duration for look in looks) == pytest.approx(2, abs=0.7)
    assert 1 < reading.power_watts < 2000 and 10 < reading.co2_g_per_kwh < 150


@pytest.mark.parametrize(("on_gpu", "gpus"), [(True, None), (False, [])])
def test_a_gpu_is_charged_to_those_who_use_it(monkeypatch, on_gpu, gpus):
    asked = {}
    monkeypatch.setattr(energy, "OfflineEmissionsTracker", lambda **settings: asked.update(settings))
    energy.start_tracker.__wrapped__("FRA", on_gpu)
    assert asked["gpu_ids"] == gpus and asked["country_iso_code"] == "FRA"


def test_countries_are_three_letters():
    assert "FRA" in known_countries() and "FR" not in known_countries()


def test_an_error_within_is_passed_on():
    with pytest.raises(KeyError), measure_power(None):
        raise KeyError
    with measure_power(None) as reading:  # and the next measurement works
        keep_busy(1.2)
    assert reading.power_watts > 0


def test_measured_only_where_the_counters_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "COUNTERS", tmp_path)
    assert not counters_can_be_read()
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # there, and cannot be read
    assert not counters_can_be_read()
    (tmp_path / "intel-rapl:1").mkdir()
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("123")
    assert counters_can_be_read()
