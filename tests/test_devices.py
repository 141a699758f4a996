"""What the machine offers."""

import torch

from cast import devices


def test_a_device_that_can_be_used():
    assert torch.zeros(1, device=devices.pick_device()).item() == 0


def test_the_number_type_is_measured_on_a_cpu(monkeypatch):
    seconds = {torch.bfloat16: 1.0, torch.float32: 3.0}
    monkeypatch.setattr(devices, "_product_seconds", seconds.__getitem__)
    devices._bfloat16_is_faster.cache_clear()
    assert devices.pick_dtype(torch.device("cpu")) == torch.bfloat16
    seconds[torch.bfloat16] = 30.0
    devices._bfloat16_is_faster.cache_clear()
    assert devices.pick_dtype(torch.device("cpu")) == torch.float32
    devices._bfloat16_is_faster.cache_clear()


def test_a_product_takes_time():
    assert 0 < devices._product_seconds(torch.float32) < 10


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    machine = devices.available_memory(torch.device("cpu"))
    (tmp_path / "max").write_text("5000000")
    (tmp_path / "used").write_text("2000000")
    monkeypatch.setattr(devices, "_CGROUP_LIMIT", tmp_path / "max")
    monkeypatch.setattr(devices, "_CGROUP_USED", tmp_path / "used")
    assert devices.available_memory(torch.device("cpu")) == 3_000_000
    (tmp_path / "max").write_text("max\n")
    assert devices.available_memory(torch.device("cpu")) > machine // 4
