"""What training draws: mean power, and the CO2 of a kilowatt-hour, by codecarbon and without a network.

Where the processor's energy counters (RAPL) can be read, codecarbon measures, and measures the whole machine;
elsewhere it estimates from the processor's model and how busy this process keeps it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from codecarbon import OfflineEmissionsTracker

COUNTERS = Path("/sys/class/powercap")
SHORTEST = 1.0  # seconds; of less than that the load of a processor says nothing


@dataclass
class Reading:
    """Filled when the measurement ends; None where it was too short or codecarbon knew nothing."""

    power_watts: float | None = None
    co2_g_per_kwh: float | None = None
    power_is_measured: bool = False

    def as_cost(self) -> dict:
        """As a result file has it."""
        return asdict(self)


@cache
def start_tracker(country: str | None) -> OfflineEmissionsTracker:
    """One for the process: to look the hardware up takes seconds. `country` is a three-letter code (ISO 3166)."""
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    return OfflineEmissionsTracker(
        country_iso_code=country or "unknown",  # then the world's average
        tracking_mode="process",
        save_to_file=False,
        allow_multiple_runs=True,
        log_level="critical",
    )


@contextmanager
def measure_power(country: str | None) -> Iterator[Reading]:
    """Measure what is run within; the reading is filled at its end."""
    reading = Reading()
    tracker = start_tracker(country)
    tracker.start_task()
    try:
        yield reading
    finally:
        used = tracker.stop_task()
        if used is not None and used.duration >= SHORTEST and used.energy_consumed > 0:
            reading.power_watts = used.energy_consumed * 3.6e6 / used.duration
            reading.co2_g_per_kwh = used.emissions * 1000 / used.energy_consumed
            reading.power_is_measured = counters_can_be_read()


def counters_can_be_read() -> bool:
    for counter in COUNTERS.glob("*/energy_uj"):
        try:
            counter.read_text()
            return True
        except OSError:  # readable by root alone since 2020 (CVE-2020-8694)
            pass
    return False
