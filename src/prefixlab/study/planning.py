"""A plan with its costs: counted where everything is at hand, else estimated (estimate.py)."""

from prefixlab.config import HardwareConfig, Study
from prefixlab.errors import UserError
from prefixlab.model.machine import resolve
from prefixlab.study.checks import check_study
from prefixlab.study.cost_records import Forecast, Price
from prefixlab.study.devices import find_device
from prefixlab.study.estimate import estimate, out_of_reach
from prefixlab.study.forecast import forecast
from prefixlab.study.run import current_plan
from prefixlab.study.steps import Plan
from prefixlab.study.store import Store
from prefixlab.study.workload import Workload


def planned(
    study: Study, store: Store, device: str = "", price: Price | None = None
) -> tuple[Plan | None, str, Forecast]:
    """Plan a study and say what it costs.

    Args:
        study: Validated study.
        store: Its run folder, where a plan may be stored.
        device: A name of `devices.GPUS`; this machine where empty.
        price: Of a judge on a server.

    Returns:
        The plan, or None and why it is an estimate; the costs.

    Raises:
        UserError: A mistake in the study, or an unknown device.
    """
    made, why = None, ""
    try:
        made = current_plan(study, store, lambda text: None)
        loads = [Workload.model_validate(load) for load in made.workloads]
        hardware = made.hardware
    except UserError as error:
        if not out_of_reach(error):
            raise
        check_study(study)
        why = str(error)
        hardware = resolve(HardwareConfig(**study.hardware.model_dump()))
        loads = list(estimate(study))
    return made, why, forecast(study, loads, find_device(device, hardware, study.hardware.dtype), price)
