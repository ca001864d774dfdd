"""What can be read off the machine while it works: memory, utilisation, temperature. A reading costs a millisecond."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline_lib.hardware.machine import peak_memory_bytes
from pipeline_lib.workspace.machine import usable_cores

if TYPE_CHECKING:
    import torch

EVERY_SECONDS = 2.0
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")  # best first


class Gauges:
    """The latest reading, at most two seconds old."""

    def __init__(self, device: torch.device) -> None:
        import psutil

        self.device, self.read_at = device, -EVERY_SECONDS
        self.process = psutil.Process()
        self.process.cpu_percent()  # counts from here
        self.latest: dict[str, float | None] = {}

    def read(self) -> dict[str, float | None]:
        """{memory_bytes (peak so far), utilisation (share of the device, or of the cores this process may use), temperature
        (°C)}; None: cannot be read here."""
        if time.monotonic() - self.read_at >= EVERY_SECONDS:
            self.read_at = time.monotonic()
            utilisation, temperature = self._gpu() if self.device.type == "cuda" else self._cpu()
            memory = peak_memory_bytes(self.device)
            self.latest = {"memory_bytes": memory, "utilisation": utilisation, "temperature": temperature}
        return self.latest

    def _gpu(self) -> tuple[float | None, float | None]:
        """From NVML, where its Python binding and the driver let us."""
        import torch

        try:
            return torch.cuda.utilization(self.device) / 100, float(torch.cuda.temperature(self.device))
        except Exception:  # no binding, no permission, a slice of a device: all mean that it cannot be read
            return None, None

    def _cpu(self) -> tuple[float | None, float | None]:
        share = self.process.cpu_percent() / 100 / usable_cores()
        return share, cpu_temperature()


def cpu_temperature() -> float | None:
    """The hottest sensor of the processor in °C; None where the system shows none."""
    import psutil

    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    for name in CPU_SENSORS:
        if found := [sensor.current for sensor in sensors.get(name, ())]:
            return float(max(found))
    return None
