"""What training draws: mean power, and the CO2 of a kilowatt-hour, by codecarbon and without a network.

Where the processor's energy counters (RAPL) can be read, codecarbon measures, and measures the whole machine;
elsewhere it estimates from the processor's model and how busy this process keeps it.
"""

import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from codecarbon import OfflineEmissionsTracker
from codecarbon.input import DataSource

COUNTERS = Path("/sys/class/powercap")
SHORTEST = 1.0  # seconds; of less than that the load of a processor says nothing
LONGEST = 600.0  # seconds between two looks at a counter, which begins anew when it is full


@dataclass
class Reading:
    """Filled when the measurement ends; None where it was too short or codecarbon knew nothing.

    `power_is_measured`: whether this machine measures power, however short the measurement was.
    """

    power_watts: float | None = None
    co2_g_per_kwh: float | None = None
    power_is_measured: bool = False

    def as_cost(self) -> dict:
        """As a result file has it."""
        return asdict(self)


@cache
def known_countries() -> Collection[str]:
    """Three-letter codes (ISO 3166) of the countries whose mix codecarbon knows."""
    return DataSource().get_global_energy_mix_data().keys()


@cache
def start_tracker(country: str | None, on_gpu: bool) -> OfflineEmissionsTracker:
    """One for the process: to look the hardware up takes seconds. `country` is one of `known_countries`."""
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    return OfflineEmissionsTracker(
        country_iso_code=country or "unknown",  # then the world's average
        tracking_mode="process",
        gpu_ids=None if on_gpu else [],  # else all that a GPU draws, for others, would be this process's
        save_to_file=False,
        allow_multiple_runs=True,
        log_level="critical",
    )


@contextmanager
def measure_power(country: str | None, on_gpu: bool = False) -> Iterator[Reading]:
    """Measure what is run within; the reading is filled at its end. With `on_gpu` it has all that the GPU draws."""
    reading, parts, ended = Reading(), [], threading.Event()
    tracker = start_tracker(country, on_gpu)

    def look_now_and_then():
        while not ended.wait(LONGEST):
            parts.append(tracker.stop_task())
            tracker.start_task()

    tracker.start_task()
    watch = threading.Thread(target=look_now_and_then, daemon=True)
    watch.start()
    try:
        yield reading
    finally:
        ended.set()
        watch.join()
        parts.append(tracker.stop_task())
        parts = [part for part in parts if part is not None]
        seconds, energy, emissions = (
            sum(getattr(part, name) for part in parts) for name in ("duration", "energy_consumed", "emissions")
        )
        if seconds >= SHORTEST and energy > 0:
            reading.power_watts = energy * 3.6e6 / seconds
            reading.co2_g_per_kwh = emissions * 1000 / energy
        reading.power_is_measured = counters_can_be_read()


def counters_can_be_read() -> bool:
    for counter in COUNTERS.glob("*/energy_uj"):
        try:
            counter.read_text()
            return True
        except OSError:  # readable by root alone since 2020 (CVE-2020-8694)
            pass
    return False
